"""A sample of what vLLM measured, measured again by transformers: another implementation, without cache or batch.

vLLM's kernels, its batches and its cache are not transformers', so the two differ by rounding. More than rounding
means that one of them does not compute what it should, and nothing is chosen by such numbers.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.recipes import ProbeRecipe
from egt_pipeline.contract.task import Metric
from egt_pipeline.judgements import judge, requests
from egt_pipeline.preferences import STATUS_OK, Images, Preference

AUDITED_ROWS = 32  # half a minute on a GPU at 7 billion weights
_COMPARED = ("answer_entropy_nats", "sentence_entropy_nats")


@dataclass(frozen=True)
class Limits:
    """The largest differences that rounding explains: in nats, and as a median of |ln(H_vllm / H_transformers)|."""

    mean_nats: float
    answer_median: float
    sentence_median: float


# Measured on a CPU, over draws of 32 rows, for three models: the judge of the demo, the same with logits four times as
# far apart (half of its answers below 5e-5 nat), and 28 random layers with entropies up to 2.2 nat.
#
#   rounding, at most (mean of answers, median ratio of answers, of sentences)
#     float32                5e-6,  5e-6,  8e-6
#     bfloat16               0.063, 0.057, 0.018       of this, the demo's judge: 0.0005, 0.0023, 0.0022
#   a temperature or a repetition penalty of 1.05, median over the draws (bfloat16; the three models)
#     mean of answers        0.02, 0.001, 0.09 .. 0.2
#     ratio of answers       0.13, 0.5, 0.07 .. 0.19
#     ratio of sentences     0.16 .. 0.26, 0.06 .. 0.09, 0.06 .. 0.08
#
# bfloat16 is allowed about twice its rounding. All three together refuse each draw under a wrong setting and none
# under rounding; a mean of 0.05 alone refuses none of the demo's judge, whose entropies are too low for it. float32 is
# allowed more, as a GPU adds in another order: its step near 1, 6e-8, is 0.6 % of the floor below.
LIMITS = {"float32": Limits(1e-4, 0.01, 0.01), "bfloat16": Limits(0.1, 0.1, 0.04)}
_FLOOR_NATS = 1e-5  # one in a million for another token: below it an entropy is what its sum was rounded to
_FEWEST = 8  # a single row moves by 0.23 in bfloat16; a median of eight stays within the figures above


@dataclass(frozen=True)
class Audit:
    """Two measurements of the same responses, by vLLM and by transformers: answer_N2 and sentence_N2, in nats."""

    answer_N2: NDArray[np.float64]
    sentence_N2: NDArray[np.float64]
    unreplayable_rows: int

    @property
    def metrics(self) -> dict[str, Metric]:
        """What is said of them in the manifest."""
        figures: dict[str, Metric] = {
            "audit.rows": len(self.answer_N2),
            "audit.unreplayable_rows": self.unreplayable_rows,
        }
        for name, pairs_N2 in zip(_COMPARED, (self.answer_N2, self.sentence_N2), strict=True):
            if len(pairs_N2):
                difference_N = np.abs(pairs_N2[:, 0] - pairs_N2[:, 1])
                figures[f"audit.{name}.mean_difference"] = float(difference_N.mean())
                figures[f"audit.{name}.max_difference"] = float(difference_N.max())
                figures[f"audit.{name}.median_ln_ratio"] = median_ln_ratio(pairs_N2)
        return figures


def median_ln_ratio(pairs_N2: NDArray[np.float64]) -> float | None:
    """The median of |ln(H_1 / H_2)| over rows with one of the two above the floor; None if these are too few."""
    ln_N2 = np.log(np.maximum(pairs_N2, _FLOOR_NATS))
    ratios = np.abs(ln_N2[:, 0] - ln_N2[:, 1])[(pairs_N2 > _FLOOR_NATS).any(1)]
    return float(np.median(ratios)) if len(ratios) >= _FEWEST else None


def audit(recipe: ProbeRecipe, table: pa.Table, rows: Sequence[Preference], images: Images, model: Path) -> Audit:
    """Replay a sample of ``table`` by transformers. Raises TaskError when more than rounding differs."""
    from egt_pipeline.engines.transformers_engine import TransformersEngine

    engine = TransformersEngine(model, precision=recipe.precision, prompt=recipe.prompt, batch_size=1)
    usable = table.filter(pc.equal(table["status"], STATUS_OK))
    replayable = _without(usable["token_ids"], engine.forbidden)
    by_number = {row.row: row for row in rows}
    pairs = []
    for row in _sample(usable.filter(replayable)):
        request = requests([by_number[row["row"]]], images)[0]
        again = judge(engine.replay(request, row["token_ids"]))
        if again.predicted != row["predicted"] or again.answer_entropy_nats is None:
            raise TaskError(
                f"engine: row {row['row']} names answer {row['predicted']} by vllm, and by transformers it has "
                f"status {again.status!r}, answer {again.predicted}"
            )
        pairs.append([[row[name], getattr(again, name)] for name in _COMPARED])
    engine.close()
    answer_N2, sentence_N2 = np.array(pairs, np.float64).reshape(-1, 2, 2).swapaxes(0, 1)
    found = Audit(answer_N2, sentence_N2, len(usable) - int(replayable.sum()))
    _check(found, recipe.precision)
    return found


def _check(found: Audit, precision: str) -> None:
    figures, limits = found.metrics, LIMITS[precision]
    gates = [
        (f"audit.{name}.{figure}", limit)
        for name, median in zip(_COMPARED, (limits.answer_median, limits.sentence_median), strict=True)
        for figure, limit in (("mean_difference", limits.mean_nats), ("median_ln_ratio", median))
    ]
    missed = [
        f"{name} is {value:.4g}, {limit:g} is accepted"
        for name, limit in gates
        if isinstance(value := figures.get(name), float) and not value <= limit
    ]
    if missed:
        raise TaskError(
            f"engine: entropies by vllm and by transformers differ by more than rounding in {precision}, over "
            f"{len(found.answer_N2)} rows: {'; '.join(missed)}. Use engine: transformers"
        )


def _without(token_ids: pa.ChunkedArray, forbidden: Sequence[int]) -> NDArray[np.bool_]:
    """Which responses hold none of these tokens."""
    kept = [np.empty(0, np.bool_)]
    for chunk in token_ids.chunks:  # one by one, for all of them may be more tokens than an offset counts
        held = pc.is_in(pc.list_flatten(chunk), value_set=pa.array(forbidden, pa.int32())).to_numpy(
            zero_copy_only=False
        )
        holders = pc.list_parent_indices(chunk).to_numpy()[held]
        kept.append(~np.isin(np.arange(len(chunk)), holders))
    return np.concatenate(kept)


def _sample(usable: pa.Table) -> list[Mapping[str, Any]]:
    """Up to AUDITED_ROWS of the rows: the same for the same samples, whatever was measured of them."""
    # The lots first: the tokens of all rows would be as many numbers in Python as the probe has generated.
    names = zip(usable["sample_id"].to_pylist(), usable["generation"].to_pylist(), strict=True)
    lots = [hashlib.sha256(f"{sample_id} {generation}".encode()).hexdigest() for sample_id, generation in names]
    drawn = sorted(range(len(lots)), key=lots.__getitem__)[:AUDITED_ROWS]
    rows: list[Mapping[str, Any]] = (
        usable.select(["row", "predicted", "token_ids", *_COMPARED]).take(pa.array(drawn, pa.int64())).to_pylist()
    )
    return rows
