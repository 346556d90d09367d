"""What a sweep found: accuracies of its arms with 95 % intervals, beside figures from elsewhere.

An interval is that of Student's t over the runs of an arm, which differ in their seeds. It covers what the seeds change
and nothing else: the held-out samples are the same in every run. With a single run it is the Wilson interval over its
held-out samples, which covers nothing of the seeds.
"""

import csv
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.stats import t as student

from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.task import Metric
from egt_pipeline.metrics import Bin, accuracy_by_bin

BINS = 10


@dataclass(frozen=True)
class Scored:
    """One evaluated run of an arm; ``digest`` and ``metrics`` are those of its evaluate artifact."""

    arm: str
    seed: int
    digest: str
    metrics: Mapping[str, Metric]


@dataclass(frozen=True)
class Estimate:
    """A mean over ``runs`` distinct runs with its 95 % interval, and what that interval is over."""

    mean: float
    low: float
    high: float
    runs: int
    over: Literal["seeds", "samples"]


@dataclass(frozen=True)
class Row:
    """One row of a comparison, by column; ``arm`` is None where only the reference has the row."""

    name: str
    arm: str | None
    found: Mapping[str, Estimate]
    reference: Mapping[str, float]

    @property
    def runs(self) -> int:
        """How many distinct runs its estimates are of; 0 before any is evaluated."""
        return max((one.runs for one in self.found.values()), default=0)


@dataclass(frozen=True)
class Orderings:
    """Of the pairs of rows that the reference orders: what our intervals say of them, in words of the rows."""

    held: Sequence[str]
    reversed: Sequence[str]
    open: Sequence[str]


@dataclass(frozen=True)
class Layout:
    """What a table is to show: ``arms`` by row; with ``x`` the rows are points of a curve."""

    name: str
    title: str
    x: str | None
    arms: Mapping[str, str]


@dataclass(frozen=True)
class Comparison:
    """A table: rows by columns, and how its first column agrees with the reference."""

    name: str
    title: str
    x: str | None
    columns: Sequence[str]
    rows: Sequence[Row]
    orderings: Orderings

    def has_reference(self, column: str) -> bool:
        """True if the reference has a figure in this column."""
        return any(column in row.reference for row in self.rows)


@dataclass(frozen=True)
class Reference:
    """Figures from elsewhere, as shares by (table, row) and column; ``source`` says whose they are."""

    source: str
    figures: Mapping[tuple[str, str], Mapping[str, float]]


@dataclass(frozen=True)
class ByEntropy:
    """Agreement with the labels in bins of answer entropy, of one probe."""

    digest: str
    bins: Sequence[Bin]


@dataclass(frozen=True)
class Outcome:
    """What is known of a sweep: ``scored`` of its ``runs`` runs are evaluated; ``varied`` are its fields of seeds."""

    name: str
    base: str
    varied: Sequence[str]
    seeds: Sequence[int]
    runs: int
    scored: Sequence[Scored]
    comparisons: Sequence[Comparison]
    by_entropy: Sequence[ByEntropy]
    source: str


def estimate(metric: str, scored: Sequence[Scored]) -> Estimate:
    """The estimate of a metric over the runs of one arm; runs that share their evaluation count once.

    Raises TaskError naming the metrics that there are when a run has none of this name.
    """
    distinct = list({one.digest: one for one in scored}.values())
    values = [_value(one, metric) for one in distinct]
    mean = statistics.fmean(values)
    if len(values) == 1:
        low, high = (_value(distinct[0], f"{metric}.{end}") for end in ("low", "high"))
        return Estimate(mean, low, high, 1, "samples")
    # Two-sided 95 %: Student's t with n - 1 degrees of freedom.
    half = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    # What no accuracy can be is cut off; that leaves the coverage as it is.
    return Estimate(mean, max(0.0, mean - half), min(1.0, mean + half), len(values), "seeds")


def _value(scored: Scored, metric: str) -> float:
    model = "final" if "final.accuracy" in scored.metrics else "sft"
    value = scored.metrics.get(f"{model}.{metric}")
    if not isinstance(value, float):
        known = (name.removeprefix(f"{model}.") for name in scored.metrics if name.startswith(f"{model}.accuracy"))
        known = (name for name in known if not name.endswith((".low", ".high")))
        raise TaskError(f"columns: {metric!r} is no metric of evaluate/{scored.digest}; it has {', '.join(known)}")
    return value


def compare(layout: Layout, metrics: Mapping[str, str], scored: Sequence[Scored], reference: Reference) -> Comparison:
    """A table by ``metrics`` (column to metric), of the runs that are evaluated so far.

    Rows that the reference has under this table's name and no arm stands for come last.
    """
    elsewhere = {row: found for (table, row), found in reference.figures.items() if table == layout.name}
    rows = []
    for row, arm in [*layout.arms.items(), *((row, None) for row in elsewhere if row not in layout.arms)]:
        runs = [one for one in scored if one.arm == arm]
        found = {column: estimate(metric, runs) for column, metric in metrics.items()} if runs else {}
        rows.append(Row(row, arm, found, elsewhere.get(row, {})))
    agreement = orderings(rows, next(iter(metrics)))
    return Comparison(layout.name, layout.title, layout.x, list(metrics), rows, agreement)


def orderings(rows: Sequence[Row], column: str) -> Orderings:
    """How our estimates agree with the order of the reference; intervals that overlap leave a pair open."""
    found: dict[str, list[str]] = {"held": [], "reversed": [], "open": []}
    known = [row for row in rows if column in row.found and column in row.reference]
    for one, other in combinations(known, 2):
        if one.reference[column] == other.reference[column]:
            continue
        better, worse = (one, other) if one.reference[column] > other.reference[column] else (other, one)
        high, low = better.found[column], worse.found[column]
        verdict = "held" if high.low > low.high else "reversed" if low.low > high.high else "open"
        found[verdict].append(f"{better.name} > {worse.name}")
    return Orderings(**found)


def read_reference(path: Path) -> Reference:
    """Figures in percent, as ``table,row,COLUMN..``; lines that begin with # say whose they are.

    An empty cell is a figure that is not known. Raises TaskError naming the line that does not fit.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    source = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
    rows = list(csv.reader(line for line in lines if not line.startswith("#")))
    if not rows or rows[0][:2] != ["table", "row"]:
        raise TaskError(f"{path}: its first line must begin with table,row")
    return Reference(source, dict(_figures(path, rows[0][2:], rows[1:])))


def _figures(
    path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> Iterator[tuple[tuple[str, str], dict[str, float]]]:
    for row in rows:
        where = f"{path}: {','.join(row)}"
        if len(row) != len(columns) + 2:
            raise TaskError(f"{where}: has {len(row)} cells; the first line has {len(columns) + 2}")
        try:
            figures = {column: float(cell) / 100 for column, cell in zip(columns, row[2:], strict=True) if cell}
        except ValueError:
            raise TaskError(f"{where}: a cell is neither empty nor a number in percent") from None
        yield (row[0], row[1]), figures


def accuracy_by_entropy(entropies: Path, preferences: Path) -> list[Bin]:
    """Agreement of the first generation with the labels, by decile of answer entropy (EGT Fig. 2)."""
    probed = pq.read_table(entropies, columns=["row", "generation", "answer_entropy_nats", "predicted"])
    probed = probed.filter(pc.equal(probed["generation"], 0))
    probed = probed.filter(pc.is_valid(probed["answer_entropy_nats"]))
    labelled = pq.read_table(preferences, columns=["row", "label"])
    labels = labelled["label"].take(pc.index_in(probed["row"], value_set=labelled["row"]))
    agrees = pc.equal(probed["predicted"], labels).fill_null(False)
    return accuracy_by_bin(_numbers(probed["answer_entropy_nats"]), _numbers(agrees.cast(pa.int8())), BINS)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.to_numpy(), np.float64)
