"""probe: one pass over the RL data that measures how sure the model is of each answer (EGT eq. 3 and 4).

``entropies.parquet`` has one row for each generation of every sample that came in, labels unseen::

    row 17 · sample_id "pool-00017" · generation 0 · answer_order "12" · answer_entropy_nats 0.19
    sentence_entropy_nats 0.31 · p_answer_1 0.95 · p_answer_2 0.05 · predicted 1 · response_tokens 23
    response "<think>..</think><answer>1</answer>" · status "ok" · reason ""

It depends on the recipe, the model and the data, not on how many workers there were or which of them died: to the bit
by transformers, up to rounding by vllm, whose batches are whatever is at hand.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from egt_pipeline.adapters import base_of, trained_model
from egt_pipeline.audit import audit
from egt_pipeline.chunks import Chunk, commit_share, committed, cut
from egt_pipeline.context import Context, StageResult
from egt_pipeline.contract.recipes import ProbeRecipe
from egt_pipeline.contract.task import Metric
from egt_pipeline.engines import open_engine
from egt_pipeline.engines.facts import with_all_facts, with_facts
from egt_pipeline.engines.interface import Batch
from egt_pipeline.judgements import Judgement, judge_chunks, refused_rows, requests
from egt_pipeline.metrics import tie_share
from egt_pipeline.preferences import STATUS_OK, Images, Preference, read_preferences

ENTROPIES_FILE = "entropies.parquet"
ENTROPIES = pa.schema(
    [
        ("row", pa.int64()),
        ("sample_id", pa.string()),
        ("generation", pa.int32()),
        ("answer_order", pa.string()),
        ("answer_entropy_nats", pa.float64()),
        ("sentence_entropy_nats", pa.float64()),
        ("p_answer_1", pa.float64()),
        ("p_answer_2", pa.float64()),
        ("predicted", pa.int8()),
        ("response_tokens", pa.int32()),
        ("response", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("token_ids", pa.list_(pa.int32())),  # without the end: what an audit replays
    ]
)


def run(recipe: ProbeRecipe, inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Commits this worker's chunks; the worker that finds all of them committed writes entropies.parquet.

    Raises TaskError when vLLM's entropies are not those of transformers (see ``audit``).
    """
    folder = inputs["data"] / "rl"
    rows = read_preferences(folder, labelled=False)
    chunks = cut(rows, recipe.chunk_rows)
    model = cache(lambda: trained_model(inputs["model"], base_of(inputs), context.scratch))
    prober = _Prober(recipe, model, folder, rows)
    commit_share(chunks, context, prober.measure, prober.tokens_per_second)
    tables = committed(chunks, context)
    if tables is None:
        return StageResult(metrics={}, published_elsewhere=True)
    refused = [{**row, "generation": 0} for row in refused_rows(folder)]
    table = pa.concat_tables([pa.Table.from_pylist(refused, schema=ENTROPIES), *tables])
    table = table.sort_by([("row", "ascending"), ("generation", "ascending")]).combine_chunks()
    table, names = with_all_facts(table, tables)
    figures = {**metrics(table), "tokens_per_second": prober.tokens_per_second()}
    figures["engine"] = ", ".join(names)
    if any(name.startswith("vllm") for name in names):
        figures |= audit(recipe, table, rows, Images(folder), model()).metrics
    pq.write_table(table, out / ENTROPIES_FILE, compression="zstd")
    return StageResult(metrics=figures)


class _Prober:
    """Measures chunks; the model is loaded when the first chunk needs it."""

    def __init__(self, recipe: ProbeRecipe, model: Callable[[], Path], data: Path, rows: Sequence[Preference]) -> None:
        self._recipe, self._model = recipe, model
        self._images = Images(data)
        self._max_images = max((len(row.images) for row in rows), default=0)
        self._tokens, self._seconds = 0, 0.0

    def measure(self, chunks: Iterator[Chunk]) -> Iterator[tuple[Chunk, pa.Table]]:
        """One row for each generation of each row of each chunk. What measured them is in the table's metadata."""
        first = next(chunks, None)
        if first is None:
            return
        recipe = self._recipe
        engine = open_engine(recipe, self._model(), max_images=self._max_images)
        facts = engine.facts
        longest, temperature = recipe.max_new_tokens, 0.0 if recipe.generations == 1 else 1.0
        started = time.monotonic()
        for chunk, judged in judge_chunks(
            engine, chain([first], chunks), self._batch, max_new_tokens=longest, temperature=temperature
        ):
            self._seconds, started = self._seconds + time.monotonic() - started, time.monotonic()
            self._tokens += sum(judgement.response_tokens or 0 for judgement in judged)
            yield chunk, with_facts(_table(chunk, recipe.generations, judged), facts)

    def _batch(self, chunk: Chunk) -> Batch:
        asked = [row for row in chunk.rows for _ in range(self._recipe.generations)]
        # Chunks are the same for any number of workers, so samples are too.
        seed = int(np.random.SeedSequence([self._recipe.seed, chunk.number]).generate_state(1)[0])
        return Batch(requests(asked, self._images), seed)

    def tokens_per_second(self) -> float | None:
        """Of what this process generated; None if it generated nothing."""
        return self._tokens / self._seconds if self._seconds else None


def _table(chunk: Chunk, generations: int, judged: Sequence[Judgement]) -> pa.Table:
    asked = [(row, generation) for row in chunk.rows for generation in range(generations)]
    rows = [
        {
            "row": row.row,
            "sample_id": row.sample_id,
            "generation": generation,
            "answer_order": row.answer_order,
            **asdict(judgement),
        }
        for (row, generation), judgement in zip(asked, judged, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=ENTROPIES)


def metrics(table: pa.Table) -> dict[str, Metric]:
    """Figures of an entropies table: rows by status, tokens, and for ok rows the shape of the scores."""
    statuses = Counter(table["status"].to_pylist())
    ok = table.filter(pc.equal(table["status"], STATUS_OK))
    answer = ok["answer_entropy_nats"].to_numpy()
    figures: dict[str, Metric] = {"rows": len(table), "ok": statuses[STATUS_OK]}
    figures |= {f"status.{status}": count for status, count in sorted(statuses.items())}
    figures["tokens"] = pc.sum(table["response_tokens"]).as_py() or 0
    if len(ok):
        figures |= {
            "answer_entropy_nats.mean": float(answer.mean()),
            "sentence_entropy_nats.mean": float(ok["sentence_entropy_nats"].to_numpy().mean()),
            "predicted_1_share": float((ok["predicted"].to_numpy() == 1).mean()),
            "zero_entropy_share": float((answer == 0).mean()),
            "tied_entropy_share": tie_share(answer),
        }
    return figures
