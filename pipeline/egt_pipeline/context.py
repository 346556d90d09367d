"""What a stage is given besides its recipe and inputs: everything that depends on where it runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from egt_pipeline.contract.errors import ArtifactError, EgtError, StoppedError
from egt_pipeline.contract.task import InputRef, Metric, Progress
from egt_pipeline.contract.tracking import Tracking

BROUGHT = "sources"  # below the scratch folder: local copies of sources that lie elsewhere


class Work(Protocol):
    """Resumable work in progress of one artifact, shared by its attempts and workers, removed once it is published.

    Names are relative paths. A name is written once: the first writer wins, so duplicates are harmless.
    """

    def has(self, name: str) -> bool:
        """True if ``name`` was committed."""

    def commit(self, name: str, source: Path) -> bool:
        """Store the file or the directory ``source`` under ``name``, all or nothing; False if it was there already."""

    def fetch(self, name: str, target: Path) -> bool:
        """Bring ``name`` to ``target``, verified; False if it was never committed."""

    def names(self, prefix: str) -> list[str]:
        """Committed names below the folder ``prefix``, at any depth, sorted."""

    def discard(self, name: str) -> None:
        """Remove ``name``, as an older checkpoint is once a newer one is committed."""


@dataclass(frozen=True)
class Context:
    """Where a stage runs. ``scratch`` is private to the attempt; ``work`` outlives it."""

    scratch: Path
    work: Work
    refs: Mapping[str, InputRef]
    attempt: int = 1
    worker: int = 0
    workers: int = 1
    processes: int = 1  # how many processes a training stage spreads over on this machine
    progress: Callable[[Progress], None] = field(default=lambda _: None)
    grace_seconds: float = 20.0  # from the request to stop to the end by force
    stopping: Callable[[], bool] = field(default=lambda: False)
    name: str = "egt"  # of the attempt, for people: <run>-<stage>-a<attempt>
    tracking: Tracking | None = None

    def fetch_committed(self, name: str, target: Path) -> bool:
        """As ``work.fetch``; raises EgtError for what is damaged and removes it, so the next attempt makes it again."""
        try:
            return self.work.fetch(name, target)
        except ArtifactError as error:
            self.work.discard(name)
            raise EgtError(f"{error}; it is removed, and the next attempt makes it again") from error

    def check_stopped(self) -> None:
        """Raise StoppedError once SIGTERM arrived; call it where everything done so far is committed."""
        if self.stopping():
            raise StoppedError("stopped on request; the next attempt goes on from what is committed")


@dataclass(frozen=True)
class StageResult:
    """What a stage returns: figures for its manifest, and the content digests others know its outputs by."""

    metrics: Mapping[str, Metric]
    content: Mapping[str, str] = field(default_factory=dict)
    published_elsewhere: bool = False  # a shard that was not the last: another worker publishes
