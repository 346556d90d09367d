"""Identity and hand-over: the digest that names an output, the file a stage is handed, the manifest it leaves."""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from egt_pipeline.contract.base import Recipe
from egt_pipeline.contract.errors import excerpt
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.tracking import Tracking

DIGEST_LENGTH = 16  # hex digits: 64 bits; at a million artifacts a clash has probability 3e-8
PROGRESS_MARK = "egt-progress "  # begins a line of a stage's log; the rest is a Progress as JSON
SUMMARY_BYTES = 4096  # what Kubernetes keeps of a termination message
_LEAST_CHARACTERS = 200  # of a summary's message, whatever else is in it

Metric = float | int | str | bool | None


class Record(BaseModel):
    """Base of what programs hand to each other: frozen, strict about unknown fields, snake_case JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def content_digest(data: Any) -> str:
    """The first 16 hex digits of the SHA-256 of ``data`` as canonical JSON (sorted keys, no white space, UTF-8)."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]


def digest(stage: StageName, revision: int, recipe: Recipe, inputs: Mapping[str, str]) -> str:
    """The name of a stage's output: it changes when the recipe, the stage's revision or an input does.

    ``inputs`` maps the input's name to the digest it is known by. Placement fields of the recipe do not count.
    """
    return content_digest(
        {"stage": str(stage), "revision": revision, "recipe": recipe.identity, "inputs": dict(inputs)}
    )


class InputRef(Record):
    """One input of a task: where it lies (``stage``, ``digest``) and what it is known by (``identity``)."""

    stage: StageName
    digest: str
    output: str | None = None
    identity: str


class StoreRef(Record):
    """A store: every artifact of a tenant lies below ``uri`` (file:///path or s3://bucket/prefix)."""

    uri: str
    endpoint: str | None = None
    region: str | None = None
    ca_file: str | None = None


class TaskFile(Record):
    """What one attempt of one stage is handed, as JSON, by ``python -m egt_pipeline STAGE --task FILE``.

    ``run_recipes`` holds the recipes of all enabled stages, for prepare only: it says what is published already.
    ``digest`` is None for a prepare whose task was written where the sources cannot be seen; the stage finds it.
    ``{worker}`` in the two paths stands for the worker's number.
    """

    run: str
    stage: StageName
    digest: str | None
    revision: int
    recipe: dict[str, Any]
    inputs: dict[str, InputRef]
    source_fingerprint: str | None = None
    store: StoreRef
    attempt: int = 1
    workers: int = 1
    processes: int = 1
    gpus: int = 0  # of each pod; 0 where nobody promises any
    grace_seconds: float = 20.0  # between SIGTERM and SIGKILL
    tracking: Tracking | None = None
    run_recipes: dict[StageName, dict[str, Any]] = {}
    scratch: str
    summary_path: str | None = None
    progress_path: str | None = None

    def known_digest(self) -> str:
        """The digest of a task that has been identified."""
        if self.digest is None:
            raise RuntimeError(f"{self.stage}: its digest is not known yet")
        return self.digest


class FileEntry(Record):
    """One file of an artifact. ``key`` is its place below the artifact's own prefix."""

    path: str
    key: str
    size_bytes: int
    sha256: str


class Producer(Record):
    """Who made an artifact, where and when: provenance, no part of its identity."""

    run: str
    attempt: int
    host: str
    started: datetime
    finished: datetime
    versions: dict[str, str]


class Manifest(Record):
    """What a stage leaves: the record of an artifact and, because it is written last and once, its success marker."""

    schema_version: int = 1
    stage: StageName
    digest: str
    revision: int
    recipe: dict[str, Any]
    inputs: dict[str, InputRef]
    source_fingerprint: str | None = None
    content: dict[str, str] = {}
    files: tuple[FileEntry, ...]
    metrics: dict[str, Metric]
    producer: Producer

    @property
    def seconds(self) -> float:
        """How long the attempt that published it took."""
        return (self.producer.finished - self.producer.started).total_seconds()


class Summary(Record):
    """What a stage says of itself in its termination message (below 4 KiB)."""

    stage: StageName
    digest: str
    phase: str
    exit_code: int
    message: str = ""
    content: dict[str, str] = {}
    metrics: dict[str, Metric] = {}

    def fitting(self) -> Self:
        """What of it fits a termination message: metrics from the end, then the message's middle, are left out."""
        summary = self
        while summary._excess_bytes() > 0 and summary.metrics:
            summary = summary.model_copy(update={"metrics": dict(list(summary.metrics.items())[:-1])})
        if (excess := summary._excess_bytes()) > 0:  # a character is a byte or more
            left = max(len(self.message) - excess, _LEAST_CHARACTERS)
            summary = summary.model_copy(update={"message": excerpt(self.message, left)})
        return summary

    def _excess_bytes(self) -> int:
        return len(self.model_dump_json().encode()) - SUMMARY_BYTES


class Progress(Record):
    """How far a stage is: ``done`` of ``total`` units, and one figure worth watching."""

    done: float
    total: float
    unit: str
    metric_name: str | None = None
    metric_value: float | None = None
