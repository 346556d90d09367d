"""Around the rollouts: prompts in the planned order going out, advantages coming back."""

import json
from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any

import torch
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

from egt_pipeline.curriculum import PlannedStep
from egt_pipeline.losses import sigma_filter, within_sigma
from egt_pipeline.rl_run import current_run


class PlannedPrompts:
    """The prompts of the plan, a step at a time, to the end of an epoch: a short last step stays short.

    Stands where OpenRLHF has its shuffled loader. Its state is the number of steps handed out.
    """

    def __init__(self, dataset: Any, steps: tuple[PlannedStep, ...]) -> None:
        self._dataset, self._steps, self._done = dataset, steps, 0

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[tuple[list[Any], ...]]:
        if self._done == len(self._steps):
            return
        epoch = self._steps[self._done].epoch
        while self._done < len(self._steps) and self._steps[self._done].epoch == epoch:
            rows = self._steps[self._done].rows
            self._done += 1
            yield self._prompts(epoch, rows)

    def _prompts(self, epoch: int, rows: tuple[int, ...]) -> tuple[list[Any], ...]:
        sources, prompts, labels, images = self._dataset.collate_fn([self._dataset[row] for row in rows])
        placed = [
            json.dumps({**json.loads(label), "epoch": epoch, "place": place}) for place, label in enumerate(labels)
        ]
        return sources, prompts, placed, images

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"steps": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where a checkpoint was."""
        self._done = state["steps"]


def in_planned_order(samples: Sequence[Any]) -> list[Any]:
    """Rollouts, which arrive as they finish, in the order their prompts were planned in."""
    return sorted(samples, key=lambda sample: int(json.loads(sample.labels[0])["place"]))


def padding(samples: list[Any], processes: int) -> list[Any]:
    """Copies of the last sample without response tokens, so that every process has as many samples."""
    count = -len(samples) % processes
    copies = []
    for _ in range(count):
        empty = copy(samples[-1])
        empty.action_mask = torch.zeros_like(empty.action_mask)
        copies.append(empty)
    return copies


class ExperienceMaker(RemoteExperienceMaker):  # type: ignore[misc]
    """Turns rollouts into advantages."""

    def split_rollout_samples(self, rollout_samples: list[Any]) -> list[Any]:
        """Micro-batches, as many and as large for every process; contiguous, so that the order is kept."""
        processes = current_run().processes
        share = len(rollout_samples) // processes  # the trainer has padded it to a multiple
        for index, sample in enumerate(rollout_samples):
            sample.index = [index]
        size = self.args.rollout.micro_batch_size
        return [
            Experience.concat_experiences(rollout_samples[start : min(start + size, first + share)], self._pad)
            for first in range(0, len(rollout_samples), share)
            for start in range(first, first + share, size)
        ]

    @property
    def _pad(self) -> int:
        pad: int = self.tokenizer.pad_token_id
        return pad

    def compute_advantages_and_returns(self, experiences: list[Any]) -> list[Any]:
        """OpenRLHF's whitened advantages, 0 beyond the recipe's sigma."""
        sigma = current_run().recipe.advantage_sigma
        whitened: list[Any] = super().compute_advantages_and_returns(experiences)
        for experience in whitened:
            outliers = ~within_sigma(experience.advantages, sigma) * experience.action_mask
            experience.info["filtered_tokens"] = outliers.sum(-1).float()
            experience.advantages = sigma_filter(experience.advantages, sigma)
        return whitened
