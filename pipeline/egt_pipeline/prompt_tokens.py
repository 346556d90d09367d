"""Prompts as token ids, pictures expanded as the model's processor does it, without decoding a picture."""

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from egt_pipeline import prompts
from egt_pipeline.contract.base import PromptId
from egt_pipeline.preferences import Images, Preference


def prompt_tokens(prompt: PromptId, processor: Any, rows: Sequence[Preference], images: Images) -> list[list[int]]:
    """The token ids of each row's prompt, the tokens of its pictures included."""
    if not rows:
        return []
    texts = [_chat(prompt, processor, row) for row in rows]
    sizes = _PictureTokens(processor, images)
    found = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [
        _expanded(ids, [sizes[image] for image in row.images], sizes.token)
        for row, ids in zip(rows, found, strict=True)
    ]


def _chat(prompt: PromptId, processor: Any, row: Preference) -> str:
    turns = prompts.messages(prompt, row.question, row.answer_1, row.answer_2, len(row.images))
    text: str = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text


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
