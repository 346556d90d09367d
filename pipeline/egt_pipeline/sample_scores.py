"""The probe's table of generations, read in batches of whole samples and reduced to one row a sample.

A sample's entropies are the means over its ok generations. A sample is ranked if it has an ok generation and none of
them carries an entropy that cannot be one (null, not finite, negative) or lacks its predicted answer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from egt_pipeline.contract.errors import ArtifactError
from egt_pipeline.curation import Floats, Mask, Positions, as_arrow
from egt_pipeline.preferences import STATUS_OK

BATCH_ROWS = 65_536  # columns of half a megabyte: they stay in the processor's cache from one operation to the next
ANSWER, SENTENCE = "answer_entropy_nats", "sentence_entropy_nats"
_NAN, _NO_ANSWER = as_arrow(np.array([np.nan]))[0], as_arrow(np.zeros(1, np.int8))[0]
_T = TypeVar("_T", bound=np.generic)
_BROKEN = ("entropy is null", "entropy is not finite", "entropy is negative", "no predicted answer")


@dataclass(frozen=True)
class Batch:
    """The rows of whole samples; ``starts`` are the places where a sample starts."""

    rows: pa.RecordBatch
    starts: Positions

    @property
    def heads(self) -> pa.RecordBatch:
        """The first row of each sample."""
        return self.rows if self._alone else self.rows.take(as_arrow(self.starts))

    @property
    def _alone(self) -> bool:
        # One greedy generation a sample is the rule; then nothing has to be gathered or added up.
        return len(self.starts) == len(self.rows)

    def floats(self, column: str) -> Floats:
        """A column of floats, null as NaN."""
        return np.from_dlpack(self.rows[column].fill_null(_NAN)).astype(np.float64, copy=False)

    def predicted(self) -> NDArray[np.int8]:
        """The predicted answers, null as 0."""
        return np.from_dlpack(self.rows["predicted"].fill_null(_NO_ANSWER)).astype(np.int8, copy=False)

    def reduce(self, reduction: np.ufunc, values_R: NDArray[_T]) -> NDArray[_T]:
        """``values_R``, one a row, reduced to one a sample."""
        if self._alone:
            return values_R
        reduced: NDArray[_T] = reduction.reduceat(values_R, self.starts)
        return reduced

    def mean(self, values_R: Floats, over_R: Mask) -> Floats:
        """The mean over the rows of each sample that are in ``over_R``; NaN where none is."""
        if self._alone:
            return np.where(over_R, values_R, np.nan)
        count = np.add.reduceat(over_R, self.starts, dtype=np.int64)
        total = np.add.reduceat(np.where(over_R, values_R, 0.0), self.starts)
        mean: Floats = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
        return mean


@dataclass
class Samples:
    """Arrays over the N samples of a table, in its order.

    ``score_N`` is NaN for a sample that cannot be ranked; ``reason_N`` is then the place of its reason in ``reasons``,
    else 0. ``predicted_N`` is the answer most of its ok generations gave, 1 on an even split, 0 where there is none.
    """

    score_N: Floats
    predicted_N: NDArray[np.int8]
    reason_N: NDArray[np.int8]
    reasons: list[str] = field(default_factory=lambda: ["", *_BROKEN])

    @property
    def rankable(self) -> Mask:
        """True for the samples that can be ranked."""
        return np.equal(self.reason_N, 0)


def batches(path: Path, columns: Sequence[str]) -> Iterator[Batch]:
    """The columns (``row`` is added) in batches of whole samples.

    Raises ArtifactError for another format, a missing column, or rows that do not ascend, as a sample's generations
    would not lie together.
    """
    file = _open(path)
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        raise ArtifactError(f"{path.name}: has no column {missing}; it has {file.schema_arrow.names}")
    open_sample: pa.RecordBatch | None = None
    for read in file.iter_batches(batch_size=BATCH_ROWS, columns=["row", *columns], use_threads=False):
        rows = pa.concat_batches([open_sample, read]) if open_sample is not None else read
        number = np.from_dlpack(rows["row"])
        step = np.diff(number)
        if (step < 0).any():
            place = int(np.argmax(step < 0))
            raise ArtifactError(f"{path.name}: row {number[place + 1]} follows {number[place]}; rows have to ascend")
        starts = np.concatenate([[0], np.flatnonzero(step) + 1])
        last = int(starts[-1])
        open_sample = rows.slice(last)
        if last:
            yield Batch(rows.slice(0, last), starts[:-1])
    if open_sample is not None:
        yield Batch(open_sample, np.zeros(1, np.int64))


def read_samples(path: Path, score: Callable[[Batch, Mask], Floats], columns: Sequence[str]) -> Samples:
    """The samples of an entropies table. ``score`` gives one value a sample from a batch and its usable rows."""
    count = _open(path).metadata.num_rows
    samples = Samples(np.empty(count), np.empty(count, np.int8), np.empty(count, np.int8))
    done = 0
    for batch in batches(path, ("status", "predicted", ANSWER, SENTENCE, *columns)):
        here = slice(done, done + len(batch.starts))
        reason_R = _reasons(batch, samples.reasons)
        usable_R = reason_R == 0
        # Broken entropies are negative, failed generations positive: broken outweighs usable, usable outweighs failed.
        lowest, highest = batch.reduce(np.minimum, reason_R), batch.reduce(np.maximum, reason_R)
        usable = batch.reduce(np.logical_or, usable_R)
        samples.reason_N[here] = np.where(lowest < 0, -lowest, np.where(usable, 0, highest))
        votes = batch.reduce(np.add, np.where(usable_R, 3 - 2 * batch.predicted(), 0))
        samples.predicted_N[here] = np.where(votes >= 0, np.int8(1), np.int8(2)) * usable
        samples.score_N[here] = np.where(samples.reason_N[here] == 0, score(batch, usable_R), np.nan)
        done = here.stop
    pa.default_memory_pool().release_unused()  # what decoding took is needed for sorting now
    return Samples(samples.score_N[:done], samples.predicted_N[:done], samples.reason_N[:done], samples.reasons)


def read_sentence(path: Path, positions: Positions) -> Floats:
    """The sentence entropies of the samples at ``positions`` (ascending)."""
    found, done = [np.empty(0)], 0
    for batch in batches(path, ("status", SENTENCE)):
        inside, done = _inside(positions, done, batch), done + len(batch.starts)
        usable = _statuses(batch.rows["status"], [""]) == 0
        found.append(batch.mean(batch.floats(SENTENCE), usable)[inside])
    pa.default_memory_pool().release_unused()
    return np.concatenate(found)


def read_ids(path: Path, positions: Positions) -> pa.StringArray:
    """The ids of the samples at ``positions``, in the order of ``positions``."""
    order = np.argsort(positions)
    ascending = positions[order]
    found, done = [pa.nulls(0, pa.string())], 0
    for batch in batches(path, ("sample_id",)):
        inside, done = _inside(ascending, done, batch), done + len(batch.starts)
        found.append(batch.heads["sample_id"].take(as_arrow(inside)))
    ids = pa.concat_arrays(found)
    del found
    pa.default_memory_pool().release_unused()
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return ids.take(as_arrow(back))


def _inside(positions: Positions, done: int, batch: Batch) -> Positions:
    """Those of the ascending positions that fall into a batch, counted from its first sample."""
    first, last = np.searchsorted(positions, (done, done + len(batch.starts)))
    return positions[first:last] - done


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, read_dictionary=["status"], pre_buffer=False, buffer_size=1 << 18)
    except pa.ArrowInvalid as error:
        raise ArtifactError(f"{path.name}: is no Parquet file: {error}") from error


def _reasons(batch: Batch, reasons: list[str]) -> NDArray[np.int8]:
    """For each row 0 if usable, the place of its status in ``reasons``, or minus the place of what is broken.

    Statuses not seen before are added to ``reasons``.
    """
    reason = _statuses(batch.rows["status"], reasons)
    answer, sentence, predicted = batch.floats(ANSWER), batch.floats(SENTENCE), batch.predicted()
    fine = (answer >= 0) & (answer < np.inf) & (sentence >= 0) & (sentence < np.inf)
    fine &= (predicted == 1) | (predicted == 2)
    broken = np.flatnonzero(~fine & (reason == 0))
    if len(broken):
        few = batch.rows.take(as_arrow(broken))
        answer, sentence = answer[broken], sentence[broken]
        null = np.from_dlpack(pc.or_(few[ANSWER].is_null(), few[SENTENCE].is_null()).cast(pa.int8())) == 1
        endless = ~np.isfinite(answer) | ~np.isfinite(sentence)
        negative = (answer < 0) | (sentence < 0)
        reason[broken] = -np.select([null, endless, negative], [1, 2, 3], default=4)
    return reason


def _statuses(column: pa.DictionaryArray, reasons: list[str]) -> NDArray[np.int8]:
    codes = []
    for name in column.dictionary.to_pylist():
        reason = "" if name == STATUS_OK else f"status is {name}"
        if reason not in reasons:
            reasons.append(reason)
        codes.append(reasons.index(reason))
    places: NDArray[np.int8] = np.array(codes, np.int8)[np.from_dlpack(column.indices)]
    return places
