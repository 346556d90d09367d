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

from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.recipes import ProbeRecipe
from egt_pipeline.contract.task import Metric
from egt_pipeline.judgements import judge, requests
from egt_pipeline.preferences import STATUS_OK, Images, Preference

AUDITED_ROWS = 32  # half a minute on a GPU at 7 billion weights
_COMPARED = ("answer_entropy_nats", "sentence_entropy_nats")
# Largest mean difference of the answers' entropies. Measured in float32: 3e-6. bfloat16 rounds a token's entropy by
# 0.01 on average and moves single ones by 0.1; a wrong setting, as a repetition penalty of 1.05, moves all by more.
_MEAN_NATS = {"float32": 1e-4, "bfloat16": 0.05}


@dataclass(frozen=True)
class Audit:
    """Differences in nats between two measurements of the same responses, one entry a row."""

    answer_N: np.ndarray[tuple[int], np.dtype[np.float64]]
    sentence_N: np.ndarray[tuple[int], np.dtype[np.float64]]

    @property
    def metrics(self) -> dict[str, Metric]:
        """What is said of them in the manifest."""
        figures: dict[str, Metric] = {"audit.rows": len(self.answer_N)}
        if len(self.answer_N):
            figures |= {
                "audit.answer_entropy_nats.mean_difference": float(self.answer_N.mean()),
                "audit.answer_entropy_nats.max_difference": float(self.answer_N.max()),
                "audit.sentence_entropy_nats.max_difference": float(self.sentence_N.max()),
            }
        return figures


def audit(recipe: ProbeRecipe, table: pa.Table, rows: Sequence[Preference], images: Images, model: Path) -> Audit:
    """Replay a sample of ``table`` by transformers. Raises TaskError when more than rounding differs."""
    from egt_pipeline.engines.transformers_engine import TransformersEngine

    chosen = _sample(table)
    engine = TransformersEngine(model, precision=recipe.precision, prompt=recipe.prompt, batch_size=1)
    by_number = {row.row: row for row in rows}
    differences = []
    for row in chosen:
        request = requests([by_number[row["row"]]], images)[0]
        again = judge(engine.replay(request, row["token_ids"]))
        if again.predicted != row["predicted"] or again.answer_entropy_nats is None:
            raise TaskError(
                f"engine: row {row['row']} names answer {row['predicted']} by vllm, and by transformers it has "
                f"status {again.status!r}, answer {again.predicted}"
            )
        differences.append([abs(getattr(again, name) - row[name]) for name in _COMPARED])
    engine.close()
    answer_N, sentence_N = np.array(differences, np.float64).reshape(-1, 2).T
    allowed = _MEAN_NATS[recipe.precision]
    if len(answer_N) and not answer_N.mean() <= allowed:
        raise TaskError(
            f"engine: the answers' entropies by vllm and by transformers differ by {answer_N.mean():.4f} nats on "
            f"average over {len(answer_N)} rows, {allowed} is accepted in {recipe.precision}; use engine: transformers"
        )
    return Audit(answer_N, sentence_N)


def _sample(table: pa.Table) -> list[Mapping[str, Any]]:
    """Up to AUDITED_ROWS usable rows: the same for the same samples, whatever was measured of them."""
    usable = table.filter(pc.equal(table["status"], STATUS_OK))
    # The lots first: the tokens of all rows would be as many numbers in Python as the probe has generated.
    names = zip(usable["sample_id"].to_pylist(), usable["generation"].to_pylist(), strict=True)
    lots = [hashlib.sha256(f"{sample_id} {generation}".encode()).hexdigest() for sample_id, generation in names]
    drawn = sorted(range(len(lots)), key=lots.__getitem__)[:AUDITED_ROWS]
    rows: list[Mapping[str, Any]] = (
        usable.select(["row", "predicted", "token_ids", *_COMPARED]).take(pa.array(drawn, pa.int64())).to_pylist()
    )
    return rows
