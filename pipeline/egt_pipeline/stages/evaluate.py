"""evaluate: every model of the run judges the held-out preferences by free greedy generation.

``predictions.parquet`` has one row for each model and every held-out sample that came in::

    row 17 · sample_id "held-00017" · model "final" · benchmark "heldout" · subset "clear" · group "word" · vote 0
    answer_order "12" · label 1 · predicted 2 · correct false · response "<think>..." · status "ok" · reason ""

What is not ok is wrong: a model that does not answer has not answered correctly. What computed the table is in its
metadata, as in the probe's.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from egt_pipeline.adapters import base_of, trained_model
from egt_pipeline.chunks import Chunk, commit_share, committed, cut
from egt_pipeline.context import Context, StageResult
from egt_pipeline.contract.recipes import EvaluateRecipe
from egt_pipeline.contract.task import Metric
from egt_pipeline.engines import open_engine
from egt_pipeline.engines.facts import with_all_facts, with_facts
from egt_pipeline.engines.interface import Batch
from egt_pipeline.judgements import Judgement, judge_chunks, refused_rows, requests
from egt_pipeline.metrics import Proportion, accuracy
from egt_pipeline.preferences import STATUS_OK, Images, Preference, read_preferences
from egt_pipeline.reward_model import MODEL_FOLDER

PREDICTIONS_FILE = "predictions.parquet"
PREDICTIONS = pa.schema(
    [
        ("row", pa.int64()),
        ("sample_id", pa.string()),
        ("model", pa.string()),
        ("benchmark", pa.string()),
        ("subset", pa.string()),
        ("group", pa.string()),
        ("vote", pa.int32()),
        ("answer_order", pa.string()),
        ("label", pa.int8()),
        ("predicted", pa.int8()),
        ("correct", pa.bool_()),
        ("response", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)
MODELS = ("sft", "final")  # in the order of training
_CHUNK_ROWS = 128  # the default of the probe: committed every few minutes on a GPU
# With answers balanced over both positions a good judge stays near one half; only a fixed choice gets here.
_CONSTANT_SHARE = 0.95
# A column with more values numbers groups of pairs instead of naming categories, and metrics have to stay below 4 KiB.
_MOST_CATEGORIES = 12


def run(recipe: EvaluateRecipe, inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Writes predictions.parquet; metrics are the accuracies of each model with their intervals."""
    benchmarks = sorted(path for path in (inputs["data"] / "evaluate").iterdir() if path.is_dir())
    parts = [_Part(model, benchmark) for model in MODELS if model in inputs for benchmark in benchmarks]
    judges = _Judges(recipe, _models(inputs, context.scratch), parts)
    commit_share([chunk for part in parts for chunk in part.chunks], context, judges.predict, lambda: None)
    tables, chunks = [PREDICTIONS.empty_table()], []
    for part in parts:
        predicted = committed(part.chunks, context)
        if predicted is None:
            return StageResult(metrics={}, published_elsewhere=True)
        chunks += predicted
        tables.append(pa.concat_tables([part.refused(), *predicted]).sort_by("row"))
    table, engines = with_all_facts(pa.concat_tables(tables).combine_chunks(), chunks)
    pq.write_table(table, out / PREDICTIONS_FILE, compression="zstd")
    return StageResult(metrics={**metrics(table), "engine": ", ".join(engines)})


def _models(inputs: Mapping[str, Path], scratch: Path) -> Callable[[str], Path]:
    """The folder of a model, when it is asked for; an adapter of rl goes on what sft has made."""

    @cache
    def folder(name: str) -> Path:
        adapted = not (inputs[name] / MODEL_FOLDER).is_dir()
        base = (folder("sft") if name == "final" else base_of(inputs)) if adapted else None
        return trained_model(inputs[name], base, scratch)

    return folder


class _Part:
    """What one model is asked of one benchmark."""

    def __init__(self, model: str, benchmark: Path) -> None:
        self.model, self.benchmark = model, benchmark
        self.group = f"{model}.{benchmark.name}."
        self.chunks = cut(read_preferences(benchmark, labelled=True), _CHUNK_ROWS, self.group)

    @cached_property
    def images(self) -> Images:
        """The pictures of the benchmark."""
        return Images(self.benchmark)

    def refused(self) -> pa.Table:
        """The rows that prepare found unusable: not judged, so not correct."""
        return self.table([{**row, "correct": False} for row in refused_rows(self.benchmark)])

    def table(self, rows: Sequence[Mapping[str, object]]) -> pa.Table:
        """``rows`` with the names of model and benchmark."""
        names = {"model": self.model, "benchmark": self.benchmark.name, "vote": 0}
        return pa.Table.from_pylist([{**names, **row} for row in rows], schema=PREDICTIONS)


class _Judges:
    """The models of the run, loaded when a chunk needs them and one at a time: two may not fit."""

    def __init__(self, recipe: EvaluateRecipe, models: Callable[[str], Path], parts: Sequence[_Part]) -> None:
        self._recipe, self._models = recipe, models
        self._parts = {part.group: part for part in parts}
        self._max_images = max(
            (len(row.images) for part in parts for chunk in part.chunks for row in chunk.rows), default=0
        )

    def predict(self, chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, pa.Table]]:
        """One row for each row of each chunk."""
        for model, found in groupby(chunks, lambda chunk: self._parts[chunk.group].model):
            engine = open_engine(self._recipe, self._models(model), max_images=self._max_images)
            facts, longest = engine.facts, self._recipe.max_new_tokens
            for chunk, judged in judge_chunks(engine, found, self._batch, max_new_tokens=longest, temperature=0.0):
                pairs = zip(chunk.rows, judged, strict=True)
                table = self._parts[chunk.group].table([_prediction(row, judgement) for row, judgement in pairs])
                yield chunk, with_facts(table, facts)

    def _batch(self, chunk: Chunk) -> Batch:
        return Batch(requests(chunk.rows, self._parts[chunk.group].images))


def _prediction(row: Preference, judgement: Judgement) -> dict[str, object]:
    known = {name: getattr(row, name) for name in ("row", "sample_id", "subset", "group", "answer_order", "label")}
    said = {name: getattr(judgement, name) for name in ("predicted", "response", "status", "reason")}
    return {**known, **said, "correct": judgement.predicted == row.label}


def metrics(table: pa.Table) -> dict[str, Metric]:
    """Figures of a predictions table by model; ``accuracy`` is that of the last model in the order of training."""
    figures: dict[str, Metric] = {}
    for model in MODELS:
        rows = table.filter(pc.equal(table["model"], model))
        if len(rows):
            found = _accuracies(rows) | _positions(rows)
            figures |= {f"{model}.{name}": value for name, value in found.items()}
            figures["accuracy"] = found["accuracy"]
    return figures


def _accuracies(rows: pa.Table) -> dict[str, Metric]:
    correct = rows["correct"].to_numpy()
    figures = _bounds("accuracy", accuracy(correct))
    figures["rows"] = len(rows)
    statuses = Counter(rows["status"].to_pylist())
    figures |= {f"status.{status}": count for status, count in sorted(statuses.items())}
    for column in ("benchmark", "subset", "group"):
        values = rows[column].to_pylist()
        names = sorted(set(values) - {None})
        for value in names if len(names) <= _MOST_CATEGORIES else ():
            chosen = np.array([found == value for found in values])
            figures |= _bounds(f"accuracy.{column}.{value}", accuracy(correct[chosen]))
    return figures


def _positions(rows: pa.Table) -> dict[str, Metric]:
    """Accuracy by the position of the better answer, and how one-sided the answers are."""
    correct, label = rows["correct"].to_numpy(), rows["label"].fill_null(0).to_numpy()
    by_position = {position: accuracy(correct[label == position]) for position in (1, 2)}
    figures: dict[str, Metric] = {}
    for position, found in by_position.items():
        figures |= _bounds(f"accuracy.position_{position}", found)
    if all(found.count for found in by_position.values()):
        figures["position_gap"] = by_position[1].share - by_position[2].share
    answered = rows.filter(pc.equal(rows["status"], STATUS_OK))["predicted"].to_numpy()
    if len(answered):
        share = float((answered == 1).mean())
        figures["answered_1_share"] = share
        figures["position_constant"] = max(share, 1 - share) >= _CONSTANT_SHARE
    return figures


def _bounds(name: str, found: Proportion) -> dict[str, Metric]:
    if not found.count:
        return {}
    return {name: found.share, f"{name}.low": found.low, f"{name}.high": found.high}
