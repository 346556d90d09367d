"""Artifacts with a few files, published in a store."""

from datetime import UTC, datetime
from pathlib import Path

from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.task import Manifest, Producer
from egt_pipeline.store import Store

DIGEST = "0123456789abcdef"
STAGE = StageName.PROBE


def manifest_of(run: str = "run") -> Manifest:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    producer = Producer(run=run, attempt=1, host="here", started=now, finished=now, versions={})
    return Manifest(stage=STAGE, digest=DIGEST, revision=1, recipe={}, inputs={}, files=(), metrics={"rows": 3},
                    producer=producer)  # fmt: skip


def publish(store: Store, scratch: Path, files: dict[str, bytes], run: str = "run") -> Manifest:
    folder = store.workspace(STAGE, DIGEST, 1, scratch)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return store.publish(folder, manifest_of(run))
