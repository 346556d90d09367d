"""What is fine-tuned on: prompts and responses as token ids, and why a row is left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from egt_pipeline import prompts
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.recipes import SFTRecipe
from egt_pipeline.preferences import Images, Preference
from egt_pipeline.prompt_tokens import prompt_tokens

END = "<|im_end|>"  # ends a turn in the chat format of Qwen; a response is trained to write it
USED = "used"
SKIPPED = "skipped"
SAMPLES = pa.schema(
    [
        ("row", pa.int64()),
        ("sample_id", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("response_tokens", pa.int32()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)
_TOKENS = pa.schema(
    [("tokens", pa.list_(pa.int32())), ("prompt_tokens", pa.int32()), ("images", pa.list_(pa.string()))]
)


@dataclass(frozen=True)
class Sample:
    """A prompt and its response as token ids, pictures expanded; the loss counts from ``prompt_tokens`` on."""

    tokens: Sequence[int]
    prompt_tokens: int
    images: tuple[str, ...]


@dataclass(frozen=True)
class Encoded:
    """``samples`` to train on, in the order of the rows, and one record (see ``SAMPLES``) for every row."""

    samples: list[Sample]
    records: list[dict[str, Any]]


def encode(
    recipe: SFTRecipe, processor: Any, rows: Sequence[Preference], responses: Sequence[str | None], images: Images
) -> Encoded:
    """Rows with their responses as samples. Raises TaskError when none is left to train on."""
    tokenizer = processor.tokenizer
    texts = [prompts.normalise_response(response or "") for response in responses]
    prompt_ids = prompt_tokens(recipe.prompt, processor, rows, images)
    response_ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    end = tokenizer.convert_tokens_to_ids(END)
    encoded = Encoded([], [])
    for row, text, prompt, response in zip(rows, texts, prompt_ids, response_ids, strict=True):
        sample = Sample([*prompt, *response, end], len(prompt), row.images)
        reason = _reason(recipe, tokenizer, sample) or _disagreement(row, text)
        if not reason:
            encoded.samples.append(sample)
        named = {"row": row.row, "sample_id": row.sample_id, "status": SKIPPED if reason else USED, "reason": reason}
        encoded.records.append({**named, "prompt_tokens": len(prompt), "response_tokens": len(response) + 1})
    if not encoded.samples:
        reasons = sorted({record["reason"] for record in encoded.records})[:3]
        raise TaskError(f"sft: none of {len(rows)} rows can be trained on: {'; '.join(reasons) or 'there is no row'}")
    return encoded


def _reason(recipe: SFTRecipe, tokenizer: Any, sample: Sample) -> str:
    """Why a sample is left out; empty if it is trained on."""
    response = sample.tokens[sample.prompt_tokens : -1]
    if not response:
        return "no response"
    if special := sorted(set(tokenizer.all_special_ids).intersection(response)):
        return f"the response holds the special token {tokenizer.convert_ids_to_tokens(special[0])}"
    if len(sample.tokens) > recipe.max_length:
        return f"{len(sample.tokens)} tokens, more than maxLength {recipe.max_length}"
    return ""


def _disagreement(row: Preference, response: str) -> str:
    """Why a response does not teach the row's label, as one that came with the data may not; empty if it does."""
    verdict = prompts.parse_verdict(response)
    if verdict.answer is None:
        return f"the response cannot be read: {verdict.reason}"
    return (
        "" if verdict.answer == row.label else f"the response prefers answer {verdict.answer}, the label is {row.label}"
    )


def write_samples(samples: Sequence[Sample], path: Path) -> None:
    """Write ``samples`` for the training processes."""
    columns = {
        "tokens": [sample.tokens for sample in samples],
        "prompt_tokens": [sample.prompt_tokens for sample in samples],
        "images": [list(sample.images) for sample in samples],
    }
    pq.write_table(pa.table(columns, schema=_TOKENS), path)


def read_samples(path: Path) -> list[Sample]:
    """What ``write_samples`` wrote."""
    columns = pq.read_table(path, schema=_TOKENS).to_pydict()
    rows = zip(columns["tokens"], columns["prompt_tokens"], columns["images"], strict=True)
    return [Sample(tokens, prompt, tuple(images)) for tokens, prompt, images in rows]
