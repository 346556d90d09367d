"""Which samples a step trains on, who holds which of them, and the tensors they become."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from egt_pipeline.contract.recipes import SFTRecipe
from egt_pipeline.preferences import Images
from egt_pipeline.sft_samples import Sample

_NO_LOSS = -100  # the label that cross-entropy passes over
_CACHE_BYTES = 2**30  # of encoded pictures a process keeps; the others are encoded again whenever they are due


@dataclass(frozen=True)
class Order:
    """Which of ``samples`` samples each step trains on: seeded permutations, one after the other, cut into batches.

    It does not depend on how many processes share a batch. Only the last batch may be smaller.
    """

    samples: int
    batch_size: int
    draws: int
    seed: int

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return -(-self.draws // self.batch_size)

    def batch(self, step: int) -> list[int]:
        """The numbers of the samples of a step, counted from 0."""
        places = range(step * self.batch_size, min((step + 1) * self.batch_size, self.draws))
        return [int(_permutation(self.seed, at // self.samples, self.samples)[at % self.samples]) for at in places]


def plan_order(recipe: SFTRecipe, samples: int) -> Order:
    """The order a recipe asks for."""
    draws = recipe.max_steps * recipe.batch_size if recipe.max_steps else recipe.epochs * samples
    return Order(samples, min(recipe.batch_size, draws), draws, recipe.seed)


@lru_cache(maxsize=2)  # a batch reaches over two epochs at most, unless there are fewer samples than it holds
def _permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)


@dataclass(frozen=True)
class Shares:
    """How a batch is divided: by length, longest first, into micro-batches that processes take in turn.

    So what is padded together, and what processes do at the same time, is of similar length, and a batch that does not
    fit into memory fails at once. ``lengths`` are of all samples, in tokens.
    """

    order: Order
    processes: int
    micro_batch: int
    lengths: Sequence[int]

    @property
    def share(self) -> int:
        """Samples of a whole batch that one process takes."""
        return -(-self.order.batch_size // self.processes)

    @property
    def accumulation(self) -> int:
        """Micro-batches of one step; the same for every process and step, as their collectives must match."""
        return -(-self.share // self.micro_batch)

    def micro_batches(self, step: int, rank: int) -> list[list[int]]:
        """Sample numbers of each micro-batch. ``~n`` stands for sample n without loss, where samples run out."""
        batch = sorted(self.order.batch(step), key=lambda number: -self.lengths[number])
        batch += [~batch[-1]] * (self.share * self.processes - len(batch))  # the shortest
        turns = []
        for at in range(0, self.share, self.micro_batch):
            size = min(self.micro_batch, self.share - at)
            first = at * self.processes + rank * size
            turns.append(batch[first : first + size])
        return turns


@dataclass(frozen=True)
class RankBatches:
    """The micro-batches of one process over the whole training, as a batch sampler."""

    shares: Shares
    rank: int

    def __len__(self) -> int:
        return self.shares.order.steps * self.shares.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.shares.order.steps):
            yield from self.shares.micro_batches(step, self.rank)


class Numbers(torch.utils.data.Dataset[int]):
    """A dataset whose n-th entry is n: the collator looks the samples up."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> int:
        return number


class Collator:
    """Turns sample numbers into the model's inputs: B samples padded to length L on the right.

    ``labels_BK`` holds the tokens at the K positions ``logits_to_keep``, which start one before the first response,
    so that the n-th logit predicts the n+1st label and no logits of prompts are computed. Padding on the right needs
    no attention mask: no token looks at what follows it.
    """

    def __init__(self, samples: Sequence[Sample], processor: Any, images: Images) -> None:
        tokenizer = processor.tokenizer
        self._samples, self._pixels = samples, _Pixels(processor.image_processor, images)
        self._pad: int = tokenizer.pad_token_id
        self._image: int = tokenizer.convert_tokens_to_ids("<|image_pad|>")

    def __call__(self, numbers: list[int]) -> dict[str, Tensor | bool]:
        """The batch of the samples with these numbers; see ``Shares.micro_batches`` for negative ones."""
        samples = [self._samples[max(number, ~number)] for number in numbers]
        length = max(len(sample.tokens) for sample in samples)
        tokens = torch.full((len(samples), length), self._pad)
        labels = torch.full((len(samples), length), _NO_LOSS)
        for row, (number, sample) in enumerate(zip(numbers, samples, strict=True)):
            ids = torch.tensor(sample.tokens)
            tokens[row, : len(ids)] = ids
            if number >= 0:
                labels[row, sample.prompt_tokens : len(ids)] = ids[sample.prompt_tokens :]
        first = min(sample.prompt_tokens for sample in samples) - 1
        batch: dict[str, Tensor | bool] = {
            "input_ids": tokens,
            "mm_token_type_ids": (tokens == self._image).int(),
            "logits_to_keep": torch.arange(first, length),
            "labels": labels[:, first:],
            "use_cache": False,
        }
        return {**batch, **self._pixels([image for sample in samples for image in sample.images])}


class _Pixels:
    """Pictures as the vision tower takes them; those encoded first stay in memory, up to ``_CACHE_BYTES``."""

    def __init__(self, image_processor: Any, images: Images) -> None:
        self._processor, self._images = image_processor, images
        self._cache: dict[str, tuple[Tensor, Tensor]] = {}
        self._bytes = 0

    def __call__(self, image_ids: list[str]) -> dict[str, Tensor]:
        if not image_ids:
            return {}
        new = [image for image in dict.fromkeys(image_ids) if image not in self._cache]
        encoded = dict(zip(new, self._encode(new), strict=True)) if new else {}
        parts = [encoded.get(image) or self._cache[image] for image in image_ids]
        for image, (pixels, grid) in encoded.items():
            size = pixels.numel() * pixels.element_size()
            if self._bytes + size <= _CACHE_BYTES:
                self._cache[image] = pixels, grid
                self._bytes += size
        return {
            "pixel_values": torch.cat([pixels for pixels, _ in parts]),
            "image_grid_thw": torch.stack([grid for _, grid in parts]),
        }

    def _encode(self, image_ids: list[str]) -> list[tuple[Tensor, Tensor]]:
        pictures = [_decode(self._images[image]) for image in image_ids]
        found = self._processor(images=pictures, return_tensors="pt")
        grids = found["image_grid_thw"]
        # Copies: a view would keep the pictures of the whole call alive.
        patches = [part.clone() for part in found["pixel_values"].split(grids.prod(-1).tolist())]
        return list(zip(patches, grids, strict=True))


def _decode(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")
