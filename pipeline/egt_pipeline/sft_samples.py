"""What is fine-tuned on: prompts and responses as token ids, and why a row is left out."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from egt_pipeline import prompts
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.recipes import SFTRecipe
from egt_pipeline.preferences import Images, Preference

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
    prompt_ids = tokenizer([_chat(recipe, processor, row) for row in rows], add_special_tokens=False)["input_ids"]
    response_ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    sizes = _PictureTokens(processor, images)
    end = tokenizer.convert_tokens_to_ids(END)
    encoded = Encoded([], [])
    for row, text, prompt, response in zip(rows, texts, prompt_ids, response_ids, strict=True):
        expanded = _expanded(prompt, [sizes[image] for image in row.images], sizes.token)
        sample = Sample([*expanded, *response, end], len(expanded), row.images)
        reason = _reason(recipe, tokenizer, sample) or _disagreement(row, text)
        if not reason:
            encoded.samples.append(sample)
        named = {"row": row.row, "sample_id": row.sample_id, "status": SKIPPED if reason else USED, "reason": reason}
        encoded.records.append({**named, "prompt_tokens": len(expanded), "response_tokens": len(response) + 1})
    if not encoded.samples:
        reasons = sorted({record["reason"] for record in encoded.records})[:3]
        raise TaskError(f"sft: none of {len(rows)} rows can be trained on: {'; '.join(reasons) or 'there is no row'}")
    return encoded


def _chat(recipe: SFTRecipe, processor: Any, row: Preference) -> str:
    turns = prompts.messages(recipe.prompt, row.question, row.answer_1, row.answer_2, len(row.images))
    text: str = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text


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


class _PictureTokens:
    """How many tokens each picture takes, from the size in its header alone."""

    def __init__(self, processor: Any, images: Images) -> None:
        self._processor, self._images = processor.image_processor, images
        self._by_size: dict[tuple[int, int], int] = {}
        self.token: int = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def __getitem__(self, image_id: str) -> int:
        with Image.open(io.BytesIO(self._images[image_id])) as image:
            size = image.size
        if size not in self._by_size:
            patches = self._processor.get_number_of_image_patches(size[1], size[0])
            self._by_size[size] = patches // self._processor.merge_size**2
        return self._by_size[size]


def _expanded(prompt: list[int], counts: list[int], image_token: int) -> list[int]:
    """The prompt with the n-th image token repeated ``counts[n]`` times."""
    remaining = iter(counts)
    expanded: list[int] = []
    for token in prompt:
        expanded += [token] * (next(remaining) if token == image_token else 1)
    return expanded


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
