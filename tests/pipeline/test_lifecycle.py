"""One attempt of one stage: published once, from verified inputs, whatever happened before. Shown with curate."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from build_entropies import generation, write_entropies
from egt_pipeline.context import Context, StageResult
from egt_pipeline.contract.chain import link_digest
from egt_pipeline.contract.errors import ArtifactError, StoppedError, TaskError
from egt_pipeline.contract.graph import STAGE_TYPES, StageName
from egt_pipeline.contract.recipes import CurateRecipe
from egt_pipeline.contract.task import InputRef, Manifest, Producer, StoreRef, TaskFile
from egt_pipeline.lifecycle import run_task, versions
from egt_pipeline.stages import curate
from egt_pipeline.store import Store, open_store

PROBE = "feedfeedfeedfeed"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store in which a probe is published."""
    store = open_store(StoreRef(uri=f"file://{tmp_path}/store"))
    folder = store.workspace(StageName.PROBE, PROBE, 1, tmp_path)
    write_entropies(folder, [generation(number, number / 10) for number in range(10)])
    now = datetime(2026, 1, 1, tzinfo=UTC)
    producer = Producer(run="r", attempt=1, host="h", started=now, finished=now, versions={})
    store.publish(folder, Manifest(stage=StageName.PROBE, digest=PROBE, revision=1, recipe={}, inputs={}, files=(),
                                   metrics={}, producer=producer))  # fmt: skip
    return store


def task_of(tmp_path: Path, **changes: Any) -> TaskFile:
    recipe = CurateRecipe.model_validate({"keep": {"share": 0.5}})
    inputs = {"entropies": InputRef(stage=StageName.PROBE, digest=PROBE, identity=PROBE)}
    fields = {
        "run": "r",
        "stage": StageName.CURATE,
        "digest": link_digest(StageName.CURATE, recipe, inputs, None),
        "revision": STAGE_TYPES[StageName.CURATE].revision,
        "recipe": recipe.model_dump(mode="json", by_alias=True),
        "inputs": inputs,
        "store": StoreRef(uri=f"file://{tmp_path}/store"),
        "scratch": str(tmp_path / "task" / "scratch"),
    }
    return TaskFile.model_validate(fields | changes)


def attempt(task: TaskFile, *, stopping: bool = False) -> Manifest | None:
    return run_task(task, worker=0, progress=lambda _: None, stopping=lambda: stopping)


def test_an_attempt_publishes_its_artifact_and_says_who_made_it(store: Store, tmp_path: Path) -> None:
    task = task_of(tmp_path, attempt=3)
    made = attempt(task)
    assert made == store.manifest(StageName.CURATE, task.digest)
    assert made is not None
    assert (made.producer.attempt, made.metrics["kept"]) == (3, 5)
    assert store.verify(made) == []


def test_what_is_published_is_not_made_again(store: Store, tmp_path: Path) -> None:
    first = attempt(task_of(tmp_path))
    assert attempt(task_of(tmp_path, attempt=2)) == first


def test_a_damaged_input_is_named_and_nothing_is_published(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "store" / "artifacts" / "probe" / PROBE / "entropies.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    task = task_of(tmp_path)
    with pytest.raises(ArtifactError, match=r"entropies\.parquet: \d+ bytes, its manifest says"):
        attempt(task)
    assert store.manifest(StageName.CURATE, task.digest) is None


def test_a_missing_input_says_which_stage_has_to_run_again(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not published; run probe again"):
        attempt(task_of(tmp_path))


def test_a_task_whose_name_does_not_fit_its_recipe_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="digest: the task says 0123"):
        attempt(task_of(tmp_path, digest="0123"))


def test_a_task_for_another_revision_of_the_code_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="revision: the task wants curate revision 99"):
        attempt(task_of(tmp_path, revision=99))


def test_a_failed_attempt_leaves_nothing_that_looks_like_success(store: Store, tmp_path: Path) -> None:
    recipe = CurateRecipe.model_validate({"keep": {"topK": 11}})
    inputs = task_of(tmp_path).inputs
    digest = link_digest(StageName.CURATE, recipe, inputs, None)
    task = task_of(tmp_path, recipe=recipe.model_dump(mode="json", by_alias=True), digest=digest)
    with pytest.raises(TaskError, match="11"):
        attempt(task)
    assert store.manifest(StageName.CURATE, digest) is None


@pytest.mark.parametrize("ending", ["returns", "fails"])
def test_what_is_written_after_another_has_published_is_cleared_away(
    ending: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, run = task_of(tmp_path), curate.run

    def late(_recipe: Any, _inputs: Any, out: Path, context: Context) -> StageResult:
        monkeypatch.setattr(curate, "run", run)
        attempt(task.model_copy(update={"attempt": 2}))
        (out / "chunk").write_text("made in vain")
        context.work.commit("chunks/part-000000.parquet", out / "chunk")
        if ending == "fails":
            raise StoppedError("its pod is taken away")
        return StageResult(metrics={}, published_elsewhere=True)

    monkeypatch.setattr(curate, "run", late)
    found = attempt(task)
    assert found is not None
    assert found.producer.attempt == 2
    assert store.work(task.stage, task.known_digest()).names("chunks/") == []


def test_the_versions_that_numbers_depend_on_are_recorded() -> None:
    assert {"python", "egt", "torch", "transformers"} <= set(versions())


def test_being_stopped_is_an_exit_code_of_its_own() -> None:
    assert StoppedError.exit_code == 143
