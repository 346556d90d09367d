"""The S3 store behind a network that damages, breaks off and refuses: right data or a clear error, never wrong data."""

import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from build_artifact import publish
from egt_pipeline.contract.errors import ArtifactError, TaskError, UnavailableError
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.task import StoreRef
from egt_pipeline.store import Store, open_store
from fault_proxy import Fault, Faults, fault_proxy
from s3_server import BUCKET, KEY, SECRET, S3Server, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    return "".join(character if character.isalnum() else "-" for character in request.node.name)


@pytest.fixture
def flaky(server: S3Server, prefix: str) -> Iterator[tuple[Store, Faults]]:
    with fault_proxy(server.port) as (endpoint, faults):
        yield open_store(StoreRef(uri=f"s3://{BUCKET}/{prefix}", endpoint=endpoint)), faults


@pytest.mark.s3
@pytest.mark.parametrize("fault", ["corrupt-upload", "corrupt-download", "truncate-download", "busy", "reset"])
def test_a_fault_that_passes_costs_a_retry_and_no_data(flaky: tuple[Store, Faults], tmp_path: Path, fault: str) -> None:
    store, faults = flaky
    data = os.urandom(50_000)
    faults.add(fault, 2)  # type: ignore[arg-type]
    try:
        published = publish(store, tmp_path, {"table": data})
    except UnavailableError:
        assert fault == "corrupt-upload", "a wrong checksum is refused by the server; the attempt is then repeated"
        published = publish(store, tmp_path, {"table": data})
    assert (store.fetch(published, tmp_path / "cache") / "table").read_bytes() == data
    assert faults.log.count(fault) >= 1  # type: ignore[arg-type]


@pytest.mark.s3
@pytest.mark.parametrize("fault", ["corrupt-upload", "corrupt-download", "truncate-download", "busy", "reset"])
def test_a_fault_in_one_part_costs_a_retry_and_no_data(flaky: tuple[Store, Faults], tmp_path: Path, fault: str) -> None:
    store, faults = flaky
    data = os.urandom(2**20) * 33 + b"tail"
    faults.add(fault, 1)  # type: ignore[arg-type]
    published = publish(store, tmp_path, {"weights": data})
    assert (store.fetch(published, tmp_path / "cache") / "weights").read_bytes() == data
    assert faults.log == [fault]


@pytest.mark.s3
@pytest.mark.parametrize(
    ("fault", "error"), [("corrupt-download", ArtifactError), ("truncate-download", UnavailableError)]
)
def test_a_fault_that_stays_is_an_error_and_never_wrong_data(
    flaky: tuple[Store, Faults], tmp_path: Path, fault: Fault, error: type[Exception]
) -> None:
    store, faults = flaky
    published = publish(store, tmp_path, {"table": os.urandom(50_000)})
    faults.add(fault, 1000)
    with pytest.raises(error, match=r"artifacts/probe/0123456789abcdef"):
        store.fetch(published, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*table*"))


@pytest.mark.s3
@pytest.mark.parametrize(
    ("key", "secret", "bucket"), [(KEY, "wrong", BUCKET), ("nobody", SECRET, BUCKET), (KEY, SECRET, "nosuch")]
)
def test_what_is_wrong_for_good_is_not_called_a_service_that_does_not_answer(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, key: str, secret: str, bucket: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the keys it has seen first
    store = open_store(StoreRef(uri=f"s3://{bucket}/x", endpoint=server.endpoint))
    with pytest.raises(TaskError, match=rf"s3://{bucket}/x/.*; check the bucket, its region and the credentials"):
        store.manifest(StageName.SFT, "0" * 16)
