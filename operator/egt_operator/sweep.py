"""From a sweep to its runs: which run differs how, what runs share, and in which order they share it. Pure."""

import copy
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from egt_operator.api import EGTRun
from egt_operator.manifest_file import say
from egt_operator.plan import Task
from egt_operator.sweep_file import EGTSweep, Overrides
from egt_pipeline.contract.chain import Link, chain
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.graph import PREPARED_OUTPUTS, StageName

SWEEP_LABEL, ARM_LABEL = "egt.dev/sweep", "egt.dev/arm"
# Seconds without a GPU: not worth waiting for, where runs that start at once would each do it.
_CHEAP = (StageName.PREPARE, StageName.CURATE)


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    arm: str
    seed: int
    run: EGTRun

    @property
    def name(self) -> str:
        """The name of the run."""
        return self.run.metadata.name


def expand(sweep: EGTSweep, base: EGTRun) -> list[SweepRun]:
    """Every arm with every seed, once; all arms with the first seed come first, so that they can be compared early.

    Raises TaskError with one line for each field that no run accepts.
    """
    document = base.model_dump(mode="json", by_alias=True, exclude={"status"})
    problems: dict[str, None] = {}  # a mistake of ``common`` is the same in each arm, and that of an arm for each seed
    runs = []
    for seed in sweep.seeds.values:
        for arm, overrides in sweep.arms.items():
            try:
                runs.append(SweepRun(arm, seed, _run(sweep, document, arm, seed, overrides)))
            except TaskError as error:
                problems |= dict.fromkeys(str(error).splitlines())
    if problems:
        raise TaskError("\n".join(problems))
    return runs


def _run(sweep: EGTSweep, base: Mapping[str, Any], arm: str, seed: int, overrides: Overrides) -> EGTRun:
    document = copy.deepcopy(dict(base))
    document["metadata"] |= {"name": sweep.run_name(arm, seed)}
    document["metadata"]["labels"] |= {SWEEP_LABEL: sweep.metadata.name, ARM_LABEL: arm}
    seeds = dict.fromkeys(sweep.seeds.fields, seed)
    for where, fields in (("common", sweep.common), (f"arms.{arm}", overrides), ("seeds.fields", seeds)):
        for path, value in fields.items():
            _replace(document["spec"], path, value, where)
    try:
        return EGTRun.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        lines = []
        for details in error.errors():
            said = say(details, EGTRun)
            field = said.partition(": ")[0].removeprefix("spec.")
            lines.append(f"{_origin(field, sweep, arm)}: {said}")
        raise TaskError("\n".join(lines)) from None


def _replace(spec: dict[str, Any], path: str, value: Any, where: str) -> None:
    *parents, last = path.split(".")
    target = spec
    for depth, name in enumerate(parents):
        inner = target.setdefault(name, {})
        if not isinstance(inner, dict):
            raise TaskError(f"{where}.{path}: {'.'.join(parents[: depth + 1])} has no fields inside")
        target = inner
    target[last] = copy.deepcopy(value)


def _origin(field: str, sweep: EGTSweep, arm: str) -> str:
    """The part of the sweep that names ``field``, or something around or inside it; the arm if none does."""
    named = {"seeds.fields": sweep.seeds.fields, f"arms.{arm}": sweep.arms[arm], "common": sweep.common}
    for where, paths in named.items():
        if any(_related(path, field) for path in paths):
            return where
    return f"arms.{arm}"


def _related(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def tasks_of(links: Mapping[StageName, Link]) -> dict[StageName, Task]:
    """The task of each enabled stage of a run.

    As long as prepare has not read the data, digests are unknown; then these are stand-ins, equal for two runs of a
    sweep where their digests will be.
    """
    if any(link.digest is None for link in links.values()):
        prepare = links[StageName.PREPARE]
        contents = {output: f"{prepare.known_digest()}/{output}" for output in PREPARED_OUTPUTS}
        recipes = {name: link.recipe for name, link in links.items()}
        links = chain(recipes, source_fingerprint=prepare.source_fingerprint, prepared=contents)
    return {name: Task(name, link.known_digest()) for name, link in links.items()}


@dataclass(frozen=True)
class Census:
    """The distinct tasks of a stage in a sweep: by how many runs they are used, and how many are published."""

    stage: StageName
    used: int
    distinct: int
    published: int

    @property
    def to_run(self) -> int:
        """How many would run now."""
        return self.distinct - self.published


def census(tasks: Sequence[Mapping[StageName, Task]], published: AbstractSet[Task]) -> list[Census]:
    """One entry a stage, in the order of the graph; what several runs share counts once in ``distinct``."""
    found = []
    for stage in StageName:
        used = [run[stage] for run in tasks if stage in run]
        found.append(Census(stage, len(used), len(set(used)), len(set(used) & published)))
    return found


def waves(tasks: Sequence[Mapping[StageName, Task]]) -> list[list[int]]:
    """The places of the runs in waves: within one wave no two runs need the same costly task that no earlier one made.

    Runs that start at once and share a stage would each do it, and all but one of the outcomes would be thrown away.
    """
    costly = [{task for task in run.values() if task.stage not in _CHEAP} for run in tasks]
    made: set[Task] = set()
    left = list(range(len(tasks)))
    found: list[list[int]] = []
    while left:
        claimed: set[Task] = set()
        wave = []
        for place in left:
            new = costly[place] - made
            if not new & claimed:
                claimed |= new
                wave.append(place)
        made |= claimed
        left = [place for place in left if place not in wave]
        found.append(wave)
    return found
