"""Requests as the tensors of one left-padded batch; those that cannot be encoded are told apart first."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from egt_pipeline import prompts
from egt_pipeline.contract.base import PromptId
from egt_pipeline.engines.interface import Refused, Request

# What Pillow and the image processors raise for pictures that are damaged, too large or of an impossible shape.
BAD_IMAGE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Encoded:
    """A batch: ``inputs`` for the model, made of the requests at ``places``; None when all were refused."""

    inputs: Any | None
    places: list[int]
    refused: dict[int, Refused]


def encode(processor: Any, prompt: PromptId, requests: Sequence[Request]) -> Encoded:
    """The requests that can be encoded as one batch, and for each of the others the reason."""
    pictures: dict[int, list[Image.Image]] = {}
    refused: dict[int, Refused] = {}
    for place, request in enumerate(requests):
        try:
            pictures[place] = [decode_image(image) for image in request.images]
        except BAD_IMAGE as error:
            refused[place] = Refused(f"image: {error}")
    try:
        inputs = _batch(processor, prompt, requests, pictures)
    except BAD_IMAGE:
        # The processor does not say which picture it refuses; asked one by one it does.
        for place, images in list(pictures.items()):
            try:
                _batch(processor, prompt, requests, {place: images})
            except BAD_IMAGE as error:
                refused[place] = Refused(f"processor: {error}")
                del pictures[place]
        inputs = _batch(processor, prompt, requests, pictures)
    return Encoded(inputs, list(pictures), refused)


def decode_image(data: bytes) -> Image.Image:
    """The picture in ``data``; raises one of ``BAD_IMAGE`` if it is damaged."""
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def _batch(
    processor: Any, prompt: PromptId, requests: Sequence[Request], pictures: dict[int, list[Image.Image]]
) -> Any | None:
    if not pictures:
        return None
    texts = [prompt_text(processor, prompt, requests[place]) for place in pictures]
    images = [image for found in pictures.values() for image in found]
    return processor(text=texts, images=images or None, padding=True, padding_side="left", return_tensors="pt")


def prompt_text(processor: Any, prompt: PromptId, request: Request) -> str:
    """The whole prompt, with a place for each picture."""
    turns = prompts.messages(prompt, request.question, request.answer_1, request.answer_2, len(request.images))
    text: str = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text
