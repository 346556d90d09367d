"""Rows worked off in chunks, each committed whole: what is lost with a worker is its open chunk, nothing else."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from egt_pipeline.context import Context
from egt_pipeline.contract.task import Progress
from egt_pipeline.preferences import Preference

_FOLDER, _CLAIMS = "chunks/", "claims/"


@dataclass(frozen=True)
class Chunk:
    """``rows`` that are committed together; ``number`` counts the chunks of ``group`` from 0."""

    group: str
    number: int
    rows: Sequence[Preference]

    @property
    def name(self) -> str:
        """Where its table is committed."""
        return f"{_FOLDER}{self.group}part-{self.number:06d}.parquet"


def cut(rows: Sequence[Preference], size: int, group: str = "") -> list[Chunk]:
    """``rows`` in chunks of ``size`` in their order; ``group`` is empty or ends with a dot."""
    return [Chunk(group, number, rows[at : at + size]) for number, at in enumerate(range(0, len(rows), size))]


class Board(Protocol):
    """What workers see of each other. Claims are hints: they spare work, and nothing rests on them."""

    def committed(self) -> set[str]:
        """Names of the chunks that are committed; none once the artifact has replaced them."""

    def claimed(self) -> set[str]:
        """Names of the chunks that somebody has begun on another's behalf."""

    def claim(self, name: str) -> bool:
        """Say that this worker begins ``name``; False if somebody has said so before."""


def share(chunks: Sequence[Chunk], worker: int, workers: int, board: Board) -> Iterator[Chunk]:
    """What worker w of W makes, decided one by one: its own chunks w, w + W, .., then what others have left.

    Whoever is done early takes chunks of the slow and the dead: those that nobody has claimed first, from the end,
    where the slow are not yet; then those that somebody has claimed and not committed, as he may be dead. The first to
    commit one wins. Ends when every chunk is committed or was taken here.
    """
    taken: set[str] = set()
    seen = False  # that anything was committed
    for chunk in chunks[worker::workers]:
        there = board.committed()
        seen |= bool(there)
        if chunk.name not in there and chunk.name not in board.claimed():
            taken.add(chunk.name)
            yield chunk
    while (there := board.committed()) or not seen:
        seen |= bool(there)
        left = [chunk for chunk in chunks if chunk.name not in there and chunk.name not in taken]
        claimed = board.claimed()
        left = [chunk for chunk in left if chunk.name not in claimed] or left
        if not left:
            return
        chunk = left[-1 - worker % len(left)]  # each helper at another place
        if chunk.name in claimed or board.claim(chunk.name):
            taken.add(chunk.name)
            yield chunk


class _SharedBoard:
    """The board of all workers of a stage, in their shared work."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def committed(self) -> set[str]:
        return set(self._context.work.names(_FOLDER))

    def claimed(self) -> set[str]:
        return {name.removeprefix(_CLAIMS) for name in self._context.work.names(_CLAIMS)}

    def claim(self, name: str) -> bool:
        path = self._context.scratch / "claim"
        path.write_text(f"worker {self._context.worker}")
        return self._context.work.commit(_CLAIMS + name, path)


def commit_share(
    chunks: Sequence[Chunk],
    context: Context,
    make: Callable[[Iterator[Chunk]], Iterator[tuple[Chunk, pa.Table]]],
    speed: Callable[[], float | None],
) -> None:
    """Commit this worker's share; ``speed`` is shown as tokens/s. Returns when every chunk is committed.

    ``make`` gives the tables of the chunks it is given, and may read ahead: what it has taken and not given is lost
    with the worker. Raises StoppedError between two chunks when asked to stop.
    """
    own = chunks[context.worker :: context.workers]
    so_far = dict(zip((chunk.name for chunk in own), accumulate(len(chunk.rows) for chunk in own), strict=True))
    total = max(so_far.values(), default=0)
    path = context.scratch / "chunk.parquet"
    for chunk, table in make(share(chunks, context.worker, context.workers, _SharedBoard(context))):
        pq.write_table(table, path)
        context.work.commit(chunk.name, path)
        path.unlink(missing_ok=True)
        done = so_far.get(chunk.name, total)
        context.progress(Progress(done=done, total=total, unit="rows", metric_name="tokens/s", metric_value=speed()))
        context.check_stopped()


def committed(chunks: Sequence[Chunk], context: Context) -> list[pa.Table] | None:
    """The tables of all chunks in their order; None as long as one is missing, or once the artifact replaced them."""
    if not {chunk.name for chunk in chunks} <= set(context.work.names(_FOLDER)):
        return None
    tables = []
    path = context.scratch / "committed.parquet"
    for chunk in chunks:
        if not context.fetch_committed(chunk.name, path):
            return None
        tables.append(pq.read_table(path, memory_map=False))
        path.unlink()
    return tables
