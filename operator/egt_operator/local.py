"""The same plan with subprocesses: ``egt local run`` on a laptop or one GPU.

One stage at a time. What is kept between calls lies in the state folder: logs, task files, and what each stage was when
it last ran (for the reasons that ``egt plan`` gives).
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from egt_operator.api import EGTRun
from egt_operator.local_lock import only_one
from egt_operator.local_stage import StageFailedError, failure, start, stop, watch
from egt_operator.plan import Observed, Past, Phase, Plan, Task, plan
from egt_pipeline.contract.base import Recipe
from egt_pipeline.contract.chain import Link, chain
from egt_pipeline.contract.errors import StoppedError
from egt_pipeline.contract.graph import STAGE_TYPES, StageName
from egt_pipeline.contract.recipes import PrepareRecipe
from egt_pipeline.contract.task import Manifest, Progress, StoreRef, TaskFile

Lookup = Callable[[StageName, str], Manifest | None]


class View(Protocol):
    """Who watches a local run."""

    def started(self, stage: StageName, attempt: int) -> None:
        """A stage started."""

    def progressed(self, stage: StageName, progress: Progress | None) -> None:
        """Called at every poll with the last known progress."""

    def stopping(self, stage: StageName) -> None:
        """The stage was asked to stop, and has some time for a checkpoint."""

    def ended(self, stage: StageName, phase: Phase, manifest: Manifest | None) -> None:
        """A stage ended, or was found published."""


@dataclass(frozen=True)
class LocalRun:
    """A run on this machine: the object, its store, and where its state lies."""

    run: EGTRun
    store: StoreRef
    state: Path
    lookup: Lookup
    fingerprint: Callable[[PrepareRecipe], str]

    @property
    def recipes(self) -> Mapping[StageName, Recipe]:
        """The recipes of the enabled stages."""
        return self.run.recipes

    def links(self) -> dict[StageName, Link]:
        """The links of the run, as far as they are known. Raises ArtifactError when prepare's manifest is damaged."""
        recipes = self.recipes
        prepare = recipes[StageName.PREPARE]
        if not isinstance(prepare, PrepareRecipe):
            raise TypeError("the recipe of prepare is a PrepareRecipe by construction")
        source = self.fingerprint(prepare)
        links = chain(recipes, source_fingerprint=source, prepared=None)
        prepared = self.lookup(StageName.PREPARE, links[StageName.PREPARE].known_digest())
        return links if prepared is None else chain(recipes, source_fingerprint=source, prepared=prepared.content)

    def chain(self) -> tuple[dict[StageName, Link], dict[Task, Manifest]]:
        """The links of the run, and the artifacts of it that are published. Raises ArtifactError at a damaged one."""
        links = self.links()
        found: dict[Task, Manifest] = {}
        for link in links.values():
            manifest = self.lookup(link.stage, link.digest) if link.digest else None
            if manifest is not None:
                found[Task(link.stage, manifest.digest)] = manifest
        return links, found

    def past(self) -> dict[StageName, Past]:
        """What each stage was when it last ran or was reused here."""
        path = self.state / "past.json"
        stages = json.loads(path.read_text()) if path.exists() else {}
        return {StageName(name): Past(**past) for name, past in stages.items()}

    def remember(self, link: Link) -> None:
        """Keep what a stage is now, for the reasons that ``egt plan`` gives later."""
        inputs = {name: ref.identity for name, ref in (link.inputs or {}).items()}
        if link.source_fingerprint is not None:
            inputs["sources"] = link.source_fingerprint
        recipe = link.recipe.model_dump(mode="json", by_alias=True)
        stages = {name: vars(past) for name, past in self.past().items()}
        stages[link.stage] = {"digest": link.known_digest(), "recipe": recipe, "inputs": inputs}
        part = self.state / "past.part"
        part.write_text(json.dumps(stages))
        part.replace(self.state / "past.json")


def state_folder(store: StoreRef, run_name: str) -> Path:
    """Where a local run keeps its state: beside the artifacts of a file store, else in the user's state folder."""
    if store.uri.startswith("file://"):
        return Path(store.uri.removeprefix("file://")) / "local" / run_name
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "egt" / hashlib.sha256(store.uri.encode()).hexdigest()[:12] / run_name


def run_local(local: LocalRun, view: View) -> dict[StageName, tuple[Manifest, int]]:
    """Run what the plan wants until every enabled stage is published; the manifest and attempt (0: reused) of each.

    Raises StageFailedError with the stage's exit code, StoppedError on Ctrl-C or SIGTERM.
    """
    local.state.mkdir(parents=True, exist_ok=True)
    attempts: dict[Task, int] = {}
    seen: set[Task] = set()
    with only_one(local.state) as lock, _sigterm_is_ctrl_c():
        while True:
            links, found = local.chain()
            for task in (task for task in found if task not in seen):
                seen.add(task)
                local.remember(links[task.stage])
                view.ended(task.stage, Phase.SUCCEEDED, found[task])
            now: Plan = plan(links, Observed(published=set(found), started={}))
            if now.complete:
                return {task.stage: (found[task], attempts.get(task, 0)) for task in found}
            task = next(Task(link.stage, link.digest) for link in links.values()
                        if link.digest and Task(link.stage, link.digest) in now.tasks)  # fmt: skip
            if task in attempts:
                raise StageFailedError(f"{task.stage}: ended well but published nothing; see {local.state}/logs", 1)
            attempts[task] = _attempt(local, links[task.stage], view, lock)


def _attempt(local: LocalRun, link: Link, view: View, lock: int) -> int:
    """Run one attempt of one stage to its end; the number of the attempt."""
    digest = link.known_digest()
    name = f"{link.stage}-{digest[:8]}"
    logs = local.state / "logs"
    logs.mkdir(exist_ok=True)
    number = 1 + len(list(logs.glob(f"{name}-a*-w0.log")))
    folder = local.state / "tasks" / f"{name}-a{number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    task = _task_file(local, link, number, folder)
    (folder / "task.json").write_text(task.model_dump_json(indent=1))
    local.remember(link)
    view.started(link.stage, number)
    workers = [start(task, folder, logs / f"{name}-a{number}-w{w}.log", w, lock) for w in range(task.workers)]
    try:
        watch(workers, folder, partial(view.progressed, link.stage))
    except KeyboardInterrupt:
        view.stopping(link.stage)
        stop(workers)
        view.ended(link.stage, Phase.WAITING, None)
        raise StoppedError(f"stopped during {link.stage}; the same command goes on from there") from None
    failed = next((w for w, process in enumerate(workers) if process.returncode), None)
    if failed is not None:
        view.ended(link.stage, Phase.FAILED, None)
        log = logs / f"{name}-a{number}-w{failed}.log"
        raise failure(link.stage, folder / f"summary-{failed}.json", log, workers[failed].returncode)
    shutil.rmtree(Path(task.scratch), ignore_errors=True)
    return number


def _task_file(local: LocalRun, link: Link, attempt: int, folder: Path) -> TaskFile:
    block = local.run.spec.stage(link.stage)
    all_recipes = {name: _dump(recipe) for name, recipe in local.recipes.items()}
    return TaskFile(
        run=local.run.metadata.name,
        stage=link.stage,
        digest=link.known_digest(),
        revision=STAGE_TYPES[link.stage].revision,
        recipe=_dump(link.recipe),
        inputs=dict(link.inputs or {}),
        source_fingerprint=link.source_fingerprint,
        store=local.store,
        attempt=attempt,
        workers=getattr(block, "workers", 1),
        processes=getattr(block, "processes", 1),
        tracking=local.run.spec.tracking,
        run_recipes=all_recipes if link.stage is StageName.PREPARE else {},
        scratch=str(folder / "scratch"),
        summary_path=str(folder / "summary-{worker}.json"),
        progress_path=str(folder / "progress-{worker}.json"),
    )


def _dump(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", by_alias=True)


@contextlib.contextmanager
def _sigterm_is_ctrl_c() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class StageOutcome:
    """How one stage of a call ended; ``attempt`` is 0 when it was reused or never started."""

    link: Link
    phase: Phase
    attempt: int
    manifest: Manifest | None


def outcome(name: str, phase: str, stages: Sequence[StageOutcome], store: StoreRef) -> dict[str, Any]:
    """The last line of ``-o json``: run, phase, and what is known of each stage."""
    lines = []
    for stage in stages:
        link, manifest = stage.link, stage.manifest
        line = {
            "name": link.stage,
            "phase": stage.phase,
            "digest": link.digest,
            "attempt": stage.attempt,
            "artifact": f"{store.uri}/artifacts/{link.stage}/{link.digest}" if manifest else None,
            "seconds": manifest.seconds if manifest and stage.attempt else 0.0,
            "metrics": manifest.metrics if manifest else {},
        }
        lines.append(line)
    return {"run": name, "phase": phase, "stages": lines}
