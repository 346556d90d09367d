"""Rows worked off in chunks, each committed whole: what is lost with a worker is its open chunk, nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from egt_pipeline.context import Context
from egt_pipeline.contract.task import Progress
from egt_pipeline.preferences import Preference

_FOLDER = "chunks/"


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


def commit_share(
    chunks: Sequence[Chunk],
    context: Context,
    make: Callable[[Chunk], pa.Table],
    speed: Callable[[], float | None],
) -> None:
    """Commit this worker's chunks, then what others have left; ``speed`` is shown as tokens/s.

    Worker w of W has chunks w, w + W, .. Whoever is done early takes chunks of the slow and the dead: the first to
    commit one wins, so at most one chunk a worker is made twice. Returns when every chunk is committed. Raises
    StoppedError between two chunks when asked to stop.
    """
    own = chunks[context.worker :: context.workers]
    total, done = sum(len(chunk.rows) for chunk in own), 0
    for chunk in own:
        if not context.work.has(chunk.name):
            _commit(chunk, context, make)
        done += len(chunk.rows)
        context.progress(Progress(done=done, total=total, unit="rows", metric_name="tokens/s", metric_value=speed()))
        context.check_stopped()
    while missing := _missing(chunks, context):
        # From the end, where the slow are not yet, and each helper at another place.
        _commit(missing[-1 - context.worker % len(missing)], context, make)
        context.check_stopped()


def _commit(chunk: Chunk, context: Context, make: Callable[[Chunk], pa.Table]) -> None:
    path = context.scratch / "chunk.parquet"
    pq.write_table(make(chunk), path)
    context.work.commit(chunk.name, path)
    path.unlink(missing_ok=True)


def _missing(chunks: Sequence[Chunk], context: Context) -> list[Chunk]:
    """The chunks that nobody has committed; none once the artifact has replaced them."""
    there = set(context.work.names(_FOLDER))
    return [chunk for chunk in chunks if chunk.name not in there] if there else []


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
