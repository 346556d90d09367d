"""A sweep on this machine: its runs one after another, each as ``egt local run`` would run it."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from egt_operator.cli_parts import open_local
from egt_operator.local import LocalRun, run_local
from egt_operator.local_view import LocalView
from egt_operator.manifest_file import load, load_run
from egt_operator.plan import Phase, Task
from egt_operator.sweep import SweepRun, expand, tasks_of
from egt_operator.sweep_file import EGTSweep
from egt_pipeline.contract.errors import ArtifactError, EgtError, StoppedError, TaskError
from egt_pipeline.contract.recipes import PrepareRecipe


@dataclass(frozen=True)
class Member:
    """A run of a sweep, opened."""

    entry: SweepRun
    local: LocalRun


def read_sweep(file: Path) -> tuple[EGTSweep, list[SweepRun]]:
    """The sweep in ``file`` and its runs. Raises TaskError with one line for everything that is wrong."""
    sweep = load(file, EGTSweep)
    base = load_run(file.parent / sweep.base)
    try:
        return sweep, expand(sweep, base)
    except TaskError as error:
        raise TaskError("\n".join(f"{file}: {line}" for line in str(error).splitlines())) from None


def open_members(runs: Sequence[SweepRun], store: str | None) -> list[Member]:
    """The runs, opened. Whether sources have changed is asked once for all runs that read the same."""
    known: dict[str, str] = {}
    return [Member(entry, _asking_once(open_local(entry.run, store), known)) for entry in runs]


def _asking_once(local: LocalRun, known: dict[str, str]) -> LocalRun:
    def fingerprint(recipe: PrepareRecipe) -> str:
        key = recipe.model_dump_json()
        if key not in known:
            known[key] = local.fingerprint(recipe)
        return known[key]

    return replace(local, fingerprint=fingerprint)


@dataclass(frozen=True)
class Ended:
    """How one run of a sweep ended; ``message`` says why it is not complete."""

    entry: SweepRun
    phase: Literal["Complete", "Failed", "Blocked"]
    message: str = ""


def run_members(members: Sequence[Member], console: Console) -> list[Ended]:
    """Run what is not published yet, run by run. A failure ends its own run, and blocks those that need the same task.

    Raises StoppedError on Ctrl-C or SIGTERM.
    """
    failed: dict[Task, str] = {}
    ended = []
    for number, member in enumerate(members, 1):
        console.print(f"run {number} of {len(members)}: {member.entry.name}", style="bold", highlight=False)
        ended.append(_run(member, failed, console))
        if ended[-1].message:
            words = f"{member.entry.name}: {ended[-1].message}"
            console.print(words, style="red", highlight=False, markup=False, soft_wrap=True)
    return ended


def _run(member: Member, failed: dict[Task, str], console: Console) -> Ended:
    entry, local = member.entry, member.local
    view = LocalView(console, entry.name, list(local.recipes))
    try:
        for task in tasks_of(local.links()).values():
            if task in failed:
                return Ended(entry, "Blocked", f"not started, as {task} failed in {failed[task]}")
        with view:
            run_local(local, view)
    except StoppedError:
        raise
    except EgtError as error:
        failed.update(dict.fromkeys(_failed(local, view), entry.name))
        return Ended(entry, "Failed", str(error))
    return Ended(entry, "Complete")


def _failed(local: LocalRun, view: LocalView) -> list[Task]:
    """The tasks that failed in the run that has just ended; none when what failed was no stage."""
    with contextlib.suppress(ArtifactError):  # of a damaged prepare, whose message is the run's own
        links = local.links().values()
        return [Task(link.stage, link.digest) for link in links
                if link.digest and view.seen(link.stage)[0] is Phase.FAILED]  # fmt: skip
    return []
