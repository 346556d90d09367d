"""What a model's responses say: which answer it prefers and how sure it was of it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from egt_pipeline.chunks import Chunk
from egt_pipeline.contract.errors import ArtifactError
from egt_pipeline.engines.interface import Batch, Engine, Generation, Refused, Request
from egt_pipeline.entropy import sentence_entropy_nats
from egt_pipeline.preferences import PREFERENCES_FILE, STATUS_OK, Images, Preference
from egt_pipeline.prompts import Verdict, parse_verdict

INPUT_ERROR = "input_error"


@dataclass(frozen=True)
class Judgement:
    """One response. Answer, entropies (nats) and probabilities are None unless ``status`` is ok.

    ``status`` is ok, one of ``prompts.VerdictStatus``, merged_token (the answer shares its token with other text),
    nan_logits, or input_error (the row never reached the model); ``reason`` says more.
    """

    status: str
    reason: str
    predicted: int | None = None
    answer_entropy_nats: float | None = None
    sentence_entropy_nats: float | None = None
    p_answer_1: float | None = None
    p_answer_2: float | None = None
    response_tokens: int | None = None
    response: str | None = None
    token_ids: list[int] | None = None


def judge_chunks(
    engine: Engine,
    chunks: Iterator[Chunk],
    batch_of: Callable[[Chunk], Batch],
    *,
    max_new_tokens: int,
    temperature: float,
) -> Iterator[tuple[Chunk, list[Judgement]]]:
    """The judgements of each chunk, in their order; chunks are read ahead as far as the engine has room.

    The engine is closed behind the last one.
    """
    taken, asked = tee(chunks)
    results = engine.generate(map(batch_of, asked), max_new_tokens=max_new_tokens, temperature=temperature)
    # The responses first: they decide how far the engine reads ahead.
    for found, chunk in zip(results, taken, strict=True):
        yield chunk, [judge(result) for result in found]
    engine.close()


def judge(result: Generation | Refused) -> Judgement:
    """The judgement of one response; the answer's token is found by its place in the text."""
    if isinstance(result, Refused):
        return Judgement(INPUT_ERROR, result.reason)
    tokens = len(result.entropies_nats_T)
    if np.isnan(result.entropies_nats_T).any():
        return _unusable("nan_logits", f"logits are NaN at token {tokens - 1}", result)
    verdict = parse_verdict(result.text, truncated=result.truncated)
    if verdict.offset is None:
        return _unusable(verdict.status, verdict.reason, result)
    return _measured(result, verdict, verdict.offset)


def _measured(result: Generation, verdict: Verdict, offset: int) -> Judgement:
    # The last token that starts at or before the digit: an empty one (a special token) may start there too.
    token = int(np.searchsorted(result.offsets_T, offset, side="right")) - 1
    bounds = np.append(result.offsets_T, len(result.text))
    start, end = int(bounds[token]), int(bounds[token + 1])
    if (start, end) != (offset, offset + 1):
        return _unusable("merged_token", f"the answer is part of the token {result.text[start:end]!r}", result)
    p_1, p_2 = result.p_digits_T2[token]
    return Judgement(
        STATUS_OK,
        "",
        predicted=verdict.answer,
        answer_entropy_nats=float(result.entropies_nats_T[token]),
        sentence_entropy_nats=sentence_entropy_nats(result.entropies_nats_T),
        p_answer_1=float(p_1),
        p_answer_2=float(p_2),
        response_tokens=len(result.entropies_nats_T),
        response=result.text,
        token_ids=result.token_ids_T.tolist(),
    )


def _unusable(status: str, reason: str, result: Generation) -> Judgement:
    tokens, ids = len(result.entropies_nats_T), result.token_ids_T.tolist()
    return Judgement(status, reason, response_tokens=tokens, response=result.text, token_ids=ids)


def requests(rows: Sequence[Preference], images: Images) -> list[Request]:
    """What an engine is asked for each row. Raises ArtifactError if a picture is not among ``images``."""
    return [_request(row, images) for row in rows]


def _request(row: Preference, images: Images) -> Request:
    for image in row.images:
        if image not in images:
            raise ArtifactError(
                f"{PREFERENCES_FILE}: row {row.row} has picture {image}, which no images-*.parquet holds"
            )
    return Request(row.question, row.answer_1, row.answer_2, tuple(images[image] for image in row.images))


def refused_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows that prepare found unusable, without their labels: they come out of every stage they went into."""
    columns = ["row", "sample_id", "answer_order", "subset", "group", "reason"]
    table = pq.read_table(folder / PREFERENCES_FILE, columns=columns, filters=[("status", "!=", STATUS_OK)])
    return [{**row, "status": INPUT_ERROR} for row in table.to_pylist()]
