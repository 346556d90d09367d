"""curate: which samples are trained on, and in which order, from the probe's entropies alone.

``selection.parquet`` has one row for every sample that came in, in the order they came in::

    row 17 · sample_id "pool-00017" · rank 3 · score 0.12 · decision "kept" · reason ""

``rank`` is the place in the curriculum: 0 .. k-1 without gaps for the kept samples, null for the others; rl trains on
the kept ones by rank, ascending. ``score`` is null exactly where a sample could not be ranked, and ``reason`` says why.

The table is read in batches. What stays in memory is some 25 bytes a sample and the ids of the candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from egt_pipeline import curation
from egt_pipeline.context import Context, StageResult
from egt_pipeline.contract.errors import ArtifactError
from egt_pipeline.contract.recipes import CurateRecipe
from egt_pipeline.contract.task import Metric, Progress
from egt_pipeline.curation import Floats, Mask, Positions, as_arrow
from egt_pipeline.preferences import PREFERENCES_FILE
from egt_pipeline.sample_scores import ANSWER, SENTENCE, Batch, Samples, batches, read_ids, read_samples, read_sentence

ENTROPIES_FILE = "entropies.parquet"
SELECTION_FILE = "selection.parquet"
SELECTION = pa.schema(
    [
        ("row", pa.int64()),
        ("sample_id", pa.string()),
        ("rank", pa.int64()),
        ("score", pa.float64()),
        ("decision", pa.string()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class Selection:
    """What was selected: ``kept`` are the positions of the kept samples, easiest first."""

    samples: Samples
    kept: Positions
    threshold: float | None


def run(recipe: CurateRecipe, inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Writes selection.parquet; metrics count what was kept, and what was dropped for which reason.

    Raises TaskError when nothing would be kept, or topK asks for more samples than can be ranked.
    """
    source = inputs["entropies"] / ENTROPIES_FILE
    labels = _labels(inputs["labels"] / "rl") if recipe.baseline == "accuracy" else None
    selection = select(recipe, source, labels)
    context.check_stopped()
    write_selection(recipe, selection, source, out / SELECTION_FILE)
    count, kept = len(selection.samples.score_N), len(selection.kept)
    context.progress(Progress(done=count, total=count, unit="samples", metric_name="kept", metric_value=kept))
    return StageResult(metrics=_metrics(selection))


def select(recipe: CurateRecipe, source: Path, labels: NDArray[np.int8] | None = None) -> Selection:
    """The curriculum of the samples in an entropies table, in the total order (score, sentence entropy, sample id)."""
    columns = ["sample_id"] if recipe.baseline == "random" else []
    samples = read_samples(source, partial(_score, recipe, labels), columns)
    score, rankable = samples.score_N, samples.rankable
    kept, threshold = curation.amount(recipe.keep, score)
    predicted = samples.predicted_N
    groups = [rankable] if recipe.balance == "none" else [rankable & (predicted == answer) for answer in (1, 2)]
    found = curation.cuts(score, groups, recipe.keep, kept, threshold)
    order = curation.curriculum(found, score, partial(read_sentence, source), partial(read_ids, source))
    return Selection(samples, order, threshold)


def _score(recipe: CurateRecipe, labels: NDArray[np.int8] | None, batch: Batch, usable_R: Mask) -> Floats:
    """What each sample of a batch is ranked by."""
    if recipe.baseline == "random":
        return curation.random_scores(batch.heads["sample_id"].to_pylist(), recipe.seed)
    if labels is not None:
        rows = np.from_dlpack(batch.rows["row"])
        if rows[-1] >= len(labels):
            raise ArtifactError(f"{ENTROPIES_FILE}: row {rows[-1]} is beyond the {len(labels)} labelled rows")
        # An unusable generation is a wrong one, in every accuracy.
        right = usable_R & (batch.predicted() == labels[rows])
        return batch.mean(right.astype(np.float64), np.ones(len(right), bool))
    answer, sentence = (batch.mean(batch.floats(column), usable_R) for column in (ANSWER, SENTENCE))
    return curation.entropy_score(answer, sentence, recipe.score)


def _labels(folder: Path) -> NDArray[np.int8]:
    """The labels by row, 0 where a row has none."""
    table = pq.read_table(folder / PREFERENCES_FILE, columns=["row", "label"])
    rows = table["row"].to_numpy()
    labels = np.zeros(rows.max(initial=-1) + 1, np.int8)
    labels[rows] = table["label"].fill_null(0).to_numpy()
    return labels


def write_selection(recipe: CurateRecipe, selection: Selection, source: Path, target: Path) -> None:
    """Writes one row for every sample of ``source``, in its order."""
    samples = selection.samples
    rank = np.full(len(samples.score_N), -1, np.int32)
    rank[selection.kept] = np.arange(len(selection.kept), dtype=np.int32)
    not_kept = "above the cut" if recipe.keep.band == "low" else f"outside the {recipe.keep.band} band"
    decisions, reasons = pa.array(["dropped", "kept"]), pa.array([*samples.reasons, not_kept])
    done = 0
    with pq.ParquetWriter(target, SELECTION, compression="zstd") as writer:
        for batch in batches(source, ("sample_id",)):
            here = slice(done, done + len(batch.starts))
            kept, score = rank[here] >= 0, samples.score_N[here]
            reason = np.where(~kept & (samples.reason_N[here] == 0), len(samples.reasons), samples.reason_N[here])
            columns = [
                batch.heads["row"],
                batch.heads["sample_id"],
                as_arrow(rank[here], kept).cast(pa.int64()),
                as_arrow(score, ~np.isnan(score)),
                decisions.take(as_arrow(kept.astype(np.int8))),
                reasons.take(as_arrow(reason)),
            ]
            writer.write_batch(pa.record_batch(columns, schema=SELECTION))
            done = here.stop


def _metrics(selection: Selection) -> dict[str, Metric]:
    samples, kept = selection.samples, selection.kept
    rankable = samples.rankable
    not_ranked = np.bincount(samples.reason_N, minlength=len(samples.reasons))
    dropped = {
        f"dropped.{name.replace(' ', '_')}": int(n)
        for name, n in zip(samples.reasons, not_ranked, strict=True)
        if name and n
    }
    scores = selection.samples.score_N[kept]
    metrics: dict[str, Metric] = {
        "samples": len(selection.samples.score_N),
        "rankable": int(not_ranked[0]),
        "kept": len(kept),
        "dropped": len(selection.samples.score_N) - len(kept),
        "dropped.by_rank": int(not_ranked[0]) - len(kept),
        **dropped,
        "lowest_kept_score": float(scores.min()),
        "highest_kept_score": float(scores.max()),
        "threshold": selection.threshold,
        "share_predicted_1_kept": float(np.mean(samples.predicted_N[kept] == 1)),
        "share_predicted_1_all": float(np.mean(samples.predicted_N[rankable] == 1)),
        "tie_share": curation.tie_share(scores),
    }
    if len(kept) > 1 and scores.min() == scores.max():
        metrics["warning"] = "all kept scores are equal: sentence entropy and sample id decided"
    return metrics
