"""Prepare with its sources on a real S3 server, as a pod of the operator runs it: without a digest."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from build_source import row, write_model, write_source
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.graph import STAGE_TYPES, StageName
from egt_pipeline.contract.recipes import PrepareRecipe
from egt_pipeline.contract.task import Manifest, StoreRef, TaskFile
from egt_pipeline.lifecycle import run_task
from egt_pipeline.reward_model import resolve_model
from egt_pipeline.store import open_store
from s3_server import BUCKET, S3Server, s3_server

pytestmark = pytest.mark.s3


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


def write_all(folder: Path) -> None:
    """Model and tables below ``folder``: on the server its files are its objects."""
    write_model(folder / "model")
    for name in ("sft", "rl", "held"):
        write_source(folder / name, [row(number) for number in range(4)], "data.jsonl")


def recipe_of(place: str) -> PrepareRecipe:
    data = {
        "sft": {"source": f"{place}/sft/data.jsonl"},
        "rl": {"source": f"{place}/rl/data.jsonl"},
        "evaluate": [{"name": "held", "source": f"{place}/held/data.jsonl"}],
    }
    return PrepareRecipe.model_validate({"model": {"source": f"{place}/model"}, "data": data})


def prepare(recipe: PrepareRecipe, store: StoreRef, scratch: Path) -> Manifest:
    task = TaskFile(
        run="r", stage=StageName.PREPARE, digest=None, revision=STAGE_TYPES[StageName.PREPARE].revision,
        recipe=recipe.model_dump(mode="json", by_alias=True), inputs={}, store=store, scratch=str(scratch / "scratch"),
    )  # fmt: skip
    made = run_task(task, worker=0, progress=lambda _: None, stopping=lambda: False)
    assert made is not None
    return made


def test_sources_on_s3_have_the_content_of_the_same_files_here(server: S3Server, tmp_path: Path) -> None:
    write_all(server.folder / BUCKET / "same")
    write_all(tmp_path / "here")
    store = StoreRef(uri=f"s3://{BUCKET}/store-same", endpoint=server.endpoint)
    remote = prepare(recipe_of(f"s3://{BUCKET}/same"), store, tmp_path / "a")
    local = prepare(recipe_of(str(tmp_path / "here")), StoreRef(uri=f"file://{tmp_path}/store"), tmp_path / "b")
    assert remote.content == local.content


def test_a_model_from_s3_is_kept_for_the_stages_that_load_it(server: S3Server, tmp_path: Path) -> None:
    write_all(server.folder / BUCKET / "kept")
    store = StoreRef(uri=f"s3://{BUCKET}/store-kept", endpoint=server.endpoint)
    made = prepare(recipe_of(f"s3://{BUCKET}/kept"), store, tmp_path)
    folder = open_store(store).fetch(made, tmp_path / "elsewhere")
    weights = (write_model(tmp_path / "same") / "model.safetensors").read_bytes()
    assert (resolve_model(folder) / "model.safetensors").read_bytes() == weights


def test_unchanged_objects_are_not_read_again_and_changed_ones_are(server: S3Server, tmp_path: Path) -> None:
    base = server.folder / BUCKET / "moves"
    write_all(base)
    store = StoreRef(uri=f"s3://{BUCKET}/store-moves", endpoint=server.endpoint)
    recipe = recipe_of(f"s3://{BUCKET}/moves")
    first = prepare(recipe, store, tmp_path / "a")
    assert prepare(recipe, store, tmp_path / "b").producer == first.producer
    write_source(base / "rl", [row(number, question="Another?") for number in range(4)], "data.jsonl")
    changed = prepare(recipe, store, tmp_path / "c")
    assert changed.digest != first.digest
    assert changed.content["rl"] != first.content["rl"]
    assert changed.content["sft"] == first.content["sft"]


def test_a_source_that_is_not_there_is_named(server: S3Server, tmp_path: Path) -> None:
    store = StoreRef(uri=f"s3://{BUCKET}/store-none", endpoint=server.endpoint)
    with pytest.raises(TaskError, match=rf"^model\.source: s3://{BUCKET}/nosuch/.* does not exist"):
        prepare(recipe_of(f"s3://{BUCKET}/nosuch"), store, tmp_path)
