"""The tables of a run as arrays, each with the artifact it was read from."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.task import Manifest
from egt_pipeline.preferences import PREFERENCES_FILE

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Probed:
    """The samples of the RL data, one entry each, in their order: what the probe said and what curate decided.

    ``kind`` is the known noise of a sample ("clean" where there is none, "" where it is not known).
    """

    ids: Sequence[str]
    status: Sequence[str]
    answer_N: Floats
    sentence_N: Floats
    p_N2: Floats
    predicted_N: NDArray[np.int8]
    label_N: NDArray[np.int8]
    response: Sequence[str | None]
    score_N: Floats
    rank_N: Floats
    kept_N: Mask
    kind: NDArray[np.str_]
    gold_N: NDArray[np.int8]

    @property
    def ranked(self) -> Mask:
        """True for the samples that could be ranked and whose first generation has an answer."""
        found: Mask = np.isfinite(self.score_N) & np.isfinite(self.answer_N)
        return found

    @property
    def agrees(self) -> Mask:
        """True where the prediction is the label."""
        return np.equal(self.predicted_N, self.label_N)


class Run:
    """A run whose artifacts lie in local folders; a stage that is not published has no table."""

    def __init__(
        self, manifests: Mapping[StageName, Manifest], folders: Mapping[StageName, Path], truth: Path | None
    ) -> None:
        self.manifests, self.folders, self.truth_path = manifests, folders, truth

    def source(self, stage: StageName, file: str) -> str:
        """The name of a file as the page cites it: stage, digest, file."""
        return f"{stage}/{self.manifests[stage].digest}/{file}"

    def table(self, stage: StageName, file: str) -> pa.Table | None:
        """A table of a stage, or None if the stage is not published or leaves no such file."""
        path = self.folders[stage] / file if stage in self.folders else None
        return pq.read_table(path) if path is not None and path.exists() else None

    @cached_property
    def truth(self) -> dict[str, dict[str, object]]:
        """What is known about each sample of the RL data, by its id; empty without truth."""
        if self.truth_path is None:
            return {}
        try:
            table = pq.read_table(self.truth_path)
        except pa.ArrowInvalid as error:
            raise TaskError(f"{self.truth_path}: is no Parquet table: {error}") from None
        if "split" in table.column_names:
            table = table.filter(pc.equal(table["split"], "rl"))
        return {str(row["sample_id"]): row for row in table.to_pylist()}

    @cached_property
    def preferences(self) -> pa.Table | None:
        """The RL data as prepare left them."""
        return self.table(StageName.PREPARE, f"rl/{PREFERENCES_FILE}")

    @cached_property
    def probed(self) -> Probed | None:
        """Probe, selection, labels and truth side by side; None before curate is published. First generations only."""
        entropies = self.table(StageName.PROBE, "entropies.parquet")
        selection = self.table(StageName.CURATE, "selection.parquet")
        if entropies is None or selection is None or self.preferences is None:
            return None
        entropies = entropies.filter(pc.equal(entropies["generation"], 0)).sort_by("row")
        known, labels = self._at(selection, entropies["row"]), self._at(self.preferences, entropies["row"])
        ids = entropies["sample_id"].to_pylist()
        truth = [self.truth.get(name, {}) for name in ids]
        return Probed(
            ids=ids,
            status=entropies["status"].to_pylist(),
            answer_N=_floats(entropies["answer_entropy_nats"]),
            sentence_N=_floats(entropies["sentence_entropy_nats"]),
            p_N2=np.stack([_floats(entropies["p_answer_1"]), _floats(entropies["p_answer_2"])], axis=1),
            predicted_N=_digits(entropies["predicted"]),
            label_N=_digits(labels["label"]),
            response=entropies["response"].to_pylist(),
            score_N=_floats(known["score"]),
            rank_N=_floats(known["rank"]),
            kept_N=np.array([decision == "kept" for decision in known["decision"].to_pylist()], bool),
            kind=np.array([str(row.get("kind", "")) for row in truth], dtype=np.str_),
            gold_N=self._shown_gold(labels, truth),
        )

    @staticmethod
    def _at(table: pa.Table, rows: pa.ChunkedArray) -> pa.Table:
        return table.take(pc.index_in(rows, value_set=table["row"]))

    @staticmethod
    def _shown_gold(labels: pa.Table, truth: Sequence[Mapping[str, object]]) -> NDArray[np.int8]:
        """The right answer as it is shown (1 or 2), 0 where there is none or it is not known."""
        gold = [int(str(row.get("gold") or 0)) for row in truth]
        orders = labels["answer_order"].to_pylist()
        shown = [3 - g if g and order == "21" else g for g, order in zip(gold, orders, strict=True)]
        return np.array(shown, np.int8)

    def counts(self) -> list["RowCounts"]:
        """Rows by status and reason through every stage."""
        found = [self._count(stage, file, came_in) for stage, file, came_in in self._row_tables()]
        return [counts for counts in found if counts is not None]

    def _row_tables(self) -> list[tuple[StageName, str, int]]:
        """The tables with a row for every sample, and how many samples came into each."""
        prepare = self.folders.get(StageName.PREPARE)
        if prepare is None:
            return []
        metrics = self.manifests[StageName.PREPARE].metrics
        files = sorted(path.relative_to(prepare) for path in prepare.rglob(PREFERENCES_FILE))
        rows = {str(file.parent): int(metrics[f"{file.parent}.rows"] or 0) for file in files}
        held_out = sum(count for folder, count in rows.items() if folder.startswith("evaluate"))
        return [
            *((StageName.PREPARE, f"{folder}/{PREFERENCES_FILE}", count) for folder, count in rows.items()),
            (StageName.DISTILL, "trajectories.parquet", rows.get("sft", 0)),
            (StageName.PROBE, "entropies.parquet", rows.get("rl", 0)),
            (StageName.CURATE, "selection.parquet", rows.get("rl", 0)),
            (StageName.EVALUATE, "predictions.parquet", held_out),
        ]

    def _count(self, stage: StageName, file: str, came_in: int) -> "RowCounts | None":
        table = self.table(stage, file)
        if table is None:
            return None
        column = "decision" if stage is StageName.CURATE else "status"
        names = [name for name in ("model", "benchmark", "row") if name in table.column_names]
        samples = table.group_by(names).aggregate([]).num_rows
        if "model" in names:
            samples //= max(1, len(table["model"].unique()))
        found = Counter(zip(table[column].to_pylist(), table["reason"].to_pylist(), strict=True))
        counts = [(status, reason, number) for (status, reason), number in found.most_common(_REASONS)]
        if len(found) > _REASONS:
            counts.append(
                ("other", f"{len(found) - _REASONS} more reasons", sum(found.values()) - sum(c[2] for c in counts))
            )
        return RowCounts(stage, file, counts, len(table), samples, came_in)


_REASONS = 8  # reasons shown for one table; the rest is one line, so that the sum is still the table's


@dataclass(frozen=True)
class RowCounts:
    """``counts`` are (status, reason, rows) of a table of ``rows`` rows about ``samples`` samples; ``came_in`` did."""

    stage: StageName
    file: str
    counts: Sequence[tuple[str, str, int]]
    rows: int
    samples: int
    came_in: int

    @property
    def balanced(self) -> bool:
        """True if every sample that came in is in the table, and the counts are all of its rows."""
        return self.samples == self.came_in and sum(count for _, _, count in self.counts) == self.rows


def _floats(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.cast(pa.float64()).fill_null(float("nan")).to_numpy(), np.float64)


def _digits(column: pa.ChunkedArray) -> NDArray[np.int8]:
    return np.asarray(column.fill_null(0).to_numpy(), np.int8)
