"""One suite for both stores: a folder, and a real S3 server."""

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from build_artifact import DIGEST, STAGE, publish
from egt_pipeline.contract.errors import ArtifactError, DiskFullError, TaskError
from egt_pipeline.contract.task import Manifest, StoreRef
from egt_pipeline.store import Store, open_store, safe_path
from s3_server import BUCKET, S3Server, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return "".join(character if character.isalnum() else "-" for character in request.node.name)


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Store:
    if request.param == "file":
        return open_store(StoreRef(uri=f"file://{tmp_path}/store"))
    server: S3Server = request.getfixturevalue("server")
    return open_store(StoreRef(uri=f"s3://{BUCKET}/{prefix}", endpoint=server.endpoint))


def raw_file(manifest: Manifest, name: str, tmp_path: Path, server_folder: Path | None, prefix: str) -> Path:
    """Where the bytes of one file really lie, so that a test can damage them."""
    key = next(entry.key for entry in manifest.files if entry.path == name)
    root = tmp_path / "store" if server_folder is None else server_folder / BUCKET / prefix
    return root / "artifacts" / STAGE / DIGEST / key


def test_what_is_published_comes_back(store: Store, tmp_path: Path) -> None:
    files = {"table.parquet": b"rows" * 1000, "model/weights.safetensors": os.urandom(5000), "empty": b""}
    published = publish(store, tmp_path, files)
    assert store.manifest(STAGE, DIGEST) == published
    folder = store.fetch(published, tmp_path / "cache")
    assert {name: (folder / name).read_bytes() for name in files} == files
    assert store.verify(published) == []


def test_a_withdrawn_artifact_is_gone_and_is_published_anew(store: Store, tmp_path: Path) -> None:
    first = publish(store, tmp_path, {"table.parquet": b"damaged"})
    store.withdraw(STAGE, DIGEST)
    assert store.manifest(STAGE, DIGEST) is None
    assert store.verify(first) != []
    again = publish(store, tmp_path, {"table.parquet": b"rows"})
    assert store.verify(again) == []


def test_a_file_of_several_parts_comes_back(store: Store, tmp_path: Path) -> None:
    data = os.urandom(2**20) * 70 + b"tail"
    published = publish(store, tmp_path, {"weights": data})
    assert (store.fetch(published, tmp_path / "cache") / "weights").read_bytes() == data
    assert store.verify(published) == []


def test_nothing_is_published_before_it_is_published(store: Store, tmp_path: Path) -> None:
    folder = store.workspace(STAGE, DIGEST, 1, tmp_path)
    (folder / "table").write_bytes(b"half of it")
    assert store.manifest(STAGE, DIGEST) is None
    with pytest.raises(ArtifactError, match="not published; run probe again"):
        store.require(STAGE, DIGEST)


def test_of_eight_that_publish_at_once_one_wins_and_all_learn_who(store: Store, tmp_path: Path) -> None:
    results: list[Manifest] = []
    barrier = threading.Barrier(8)

    def race(number: int) -> None:
        barrier.wait()
        results.append(publish(store, tmp_path, {"table": str(number).encode() * 100}, run=f"run-{number}"))

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({result.producer.run for result in results}) == 1
    winner = results[0].producer.run.removeprefix("run-")
    assert (store.fetch(results[0], tmp_path / "cache") / "table").read_bytes() == winner.encode() * 100


@pytest.mark.parametrize("damage", ["flip", "truncate", "grow", "delete", "swap"])
def test_damage_is_found_and_the_file_is_named(
    store: Store, tmp_path: Path, prefix: str, damage: str, request: pytest.FixtureRequest
) -> None:
    published = publish(store, tmp_path, {"a": b"a" * 1000, "b": b"b" * 1000})
    folder = request.getfixturevalue("server").folder if "s3" in request.node.name else None
    path = raw_file(published, "a", tmp_path, folder, prefix)
    data = path.read_bytes()
    other = raw_file(published, "b", tmp_path, folder, prefix).read_bytes()
    changed = {"flip": b"b" + data[1:], "truncate": data[:-1], "grow": data + b"a", "swap": other}
    path.unlink() if damage == "delete" else path.write_bytes(changed[damage])
    with pytest.raises(ArtifactError, match=r"a[: ]"):
        store.fetch(published, tmp_path / "cache")
    problems = store.verify(published)
    assert len(problems) == 1
    assert str(path.name) in problems[0]


def test_a_manifest_that_leads_out_of_its_artifact_is_refused(
    store: Store, tmp_path: Path, prefix: str, request: pytest.FixtureRequest
) -> None:
    published = publish(store, tmp_path, {"a": b"a"})
    root = tmp_path / "store"
    if "s3" in request.node.name:
        root = request.getfixturevalue("server").folder / BUCKET / prefix
    path = root / "artifacts" / STAGE / DIGEST / "manifest.json"
    path.write_text(published.model_dump_json().replace('"key":"', '"key":"../../'))
    with pytest.raises(ArtifactError, match=r"not a plain relative path|is damaged"):
        store.manifest(STAGE, DIGEST)


@given(st.sampled_from(["..", "a/../b", "/etc/passwd", "", "a//b", "a/./b", "nul\0"]))
def test_paths_that_could_leave_their_folder_are_refused(name: str) -> None:
    with pytest.raises(ArtifactError):
        safe_path(name)


def test_work_is_written_once_and_outlives_who_wrote_it(store: Store, tmp_path: Path) -> None:
    work = store.work(STAGE, DIGEST)
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"first" * 100)
    second.write_bytes(b"second" * 100)
    assert not work.has("chunks/part-1")
    assert work.commit("chunks/part-1", first)
    assert not work.commit("chunks/part-1", second)
    assert store.work(STAGE, DIGEST).fetch("chunks/part-1", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"first" * 100
    assert not work.fetch("chunks/part-3", tmp_path / "none")
    assert work.commit("chunks/deep/part-2", second)
    assert work.names("chunks/") == ["chunks/deep/part-2", "chunks/part-1"]


def test_a_checkpoint_is_a_directory_that_comes_back_whole(store: Store, tmp_path: Path) -> None:
    work = store.work(STAGE, DIGEST)
    (tmp_path / "checkpoint" / "deep").mkdir(parents=True)
    (tmp_path / "checkpoint" / "deep" / "optimizer").write_bytes(os.urandom(1000))
    assert work.commit("checkpoints/step-1", tmp_path / "checkpoint")
    assert work.names("checkpoints/") == ["checkpoints/step-1"]
    assert work.fetch("checkpoints/step-1", tmp_path / "back")
    original = (tmp_path / "checkpoint" / "deep" / "optimizer").read_bytes()
    assert (tmp_path / "back" / "deep" / "optimizer").read_bytes() == original
    work.discard("checkpoints/step-1")
    assert not work.has("checkpoints/step-1")


def test_one_flipped_bit_of_a_checkpoint_is_found(
    store: Store, tmp_path: Path, prefix: str, request: pytest.FixtureRequest
) -> None:
    work = store.work(STAGE, DIGEST)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "optimizer").write_bytes(b"state" * 100)
    work.commit("checkpoints/step-1", tmp_path / "checkpoint")
    root = tmp_path / "store"
    if "s3" in request.node.name:
        root = request.getfixturevalue("server").folder / BUCKET / prefix
    (path,) = (root / "attempts").rglob("optimizer")
    path.write_bytes(b"S" + path.read_bytes()[1:])
    with pytest.raises(ArtifactError, match="optimizer"):
        work.fetch("checkpoints/step-1", tmp_path / "back")


def test_one_flipped_bit_of_a_chunk_is_found(
    store: Store, tmp_path: Path, prefix: str, request: pytest.FixtureRequest
) -> None:
    work = store.work(STAGE, DIGEST)
    (tmp_path / "chunk").write_bytes(b"rows" * 100)
    work.commit("chunks/part-1", tmp_path / "chunk")
    root = tmp_path / "store"
    if "s3" in request.node.name:
        root = request.getfixturevalue("server").folder / BUCKET / prefix
    (path,) = (path for path in (root / "attempts").rglob("*") if path.is_file() and path.stat().st_size == 400)
    path.write_bytes(b"R" + path.read_bytes()[1:])
    with pytest.raises(ArtifactError):
        work.fetch("chunks/part-1", tmp_path / "back")


def test_the_manifest_of_another_artifact_is_not_taken_for_this_one(
    store: Store, tmp_path: Path, prefix: str, request: pytest.FixtureRequest
) -> None:
    published = publish(store, tmp_path, {"a": b"a"})
    root = tmp_path / "store"
    if "s3" in request.node.name:
        root = request.getfixturevalue("server").folder / BUCKET / prefix
    path = root / "artifacts" / STAGE / DIGEST / "manifest.json"
    path.write_text(published.model_copy(update={"digest": "f" * 16}).model_dump_json())
    with pytest.raises(ArtifactError, match=r"is the manifest of probe/ffff|is damaged"):
        store.manifest(STAGE, DIGEST)


def test_what_is_left_of_attempts_goes_away_with_them(store: Store, tmp_path: Path) -> None:
    (tmp_path / "chunk").write_bytes(b"rows")
    store.work(STAGE, DIGEST).commit("chunks/part-1", tmp_path / "chunk")
    published = publish(store, tmp_path, {"a": b"a"})
    store.discard_work(STAGE, DIGEST)
    assert not store.work(STAGE, DIGEST).has("chunks/part-1")
    assert store.verify(published) == []


def test_the_abilities_we_rely_on_are_there(store: Store) -> None:
    assert store.abilities()["conditional_create"] is True


@pytest.mark.parametrize("uri", ["gs://bucket/x", "file://host/x", "s3:///x", "relative"])
def test_an_address_that_is_no_store_is_refused(uri: str) -> None:
    with pytest.raises(TaskError, match=r"neither file:///folder nor s3://bucket/prefix"):
        open_store(StoreRef(uri=uri))


def test_a_full_disk_has_a_name_and_leaves_nothing_published(tmp_path: Path) -> None:
    script = f"""
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from pathlib import Path
from egt_pipeline.contract.errors import DiskFullError
from egt_pipeline.contract.task import StoreRef
from egt_pipeline.store import open_store
store = open_store(StoreRef(uri="file://{tmp_path}/store"))
work = store.work("probe", "{DIGEST}")
Path("{tmp_path}/large").write_bytes(b"x" * 100_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    work.commit("chunk", Path("{tmp_path}/large"))
except DiskFullError as error:
    print(error.exit_code, work.has("chunk"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(DiskFullError.exit_code), "False"], done.stderr
    assert not list((tmp_path / "store").rglob("content")), "half a copy would keep the disk full"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
