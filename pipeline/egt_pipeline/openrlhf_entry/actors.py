"""OpenRLHF's classes with what StableReinforce and the curriculum change, and nothing else.

    Rollouts         RolloutRayActor        our worker extension; image embeddings forgotten after a weight sync
    PolicyActor      PolicyModelActor       saves the processor with the model (a plain tokenizer loses the images)
    ReferenceActor   ReferenceModelActor    unchanged; being ours, it prepares its process
    ActorTrainer     ActorPPOTrainer        one optimiser step a batch, in the planned order, short batches too; records
    PreClipLoss      PolicyLoss             pre-clip before exp
    ExperienceMaker  RemoteExperienceMaker  sigma filter after whitening; equal shares for all processes
    Trainer          PPOTrainer             follows the plan; saves and stops when asked to
"""

import json
import time
from collections.abc import Iterator
from copy import copy
from typing import Any

import ray
import torch
from openrlhf.models import PolicyLoss
from openrlhf.trainer import ppo_trainer
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from openrlhf.trainer.ray import launcher, ppo_actor, vllm_engine
from openrlhf.utils import get_tokenizer
from torch.utils.data import DataLoader

from egt_pipeline.contract.errors import StoppedError
from egt_pipeline.curriculum import PlannedStep
from egt_pipeline.losses import is_pre_clipped, pre_clip, sigma_filter, within_sigma
from egt_pipeline.openrlhf_entry.machine import die_with_parent
from egt_pipeline.rl_run import current_run


def _behind(actor_class: Any) -> Any:
    """The class that ``ray.remote`` made ``actor_class`` of."""
    return actor_class.__ray_metadata__.modified_class


class PreClipLoss(PolicyLoss):  # type: ignore[misc]
    """OpenRLHF's policy loss on the pre-clipped ratio; counts what it clips until ``taken``."""

    def forward(
        self, log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, **rest: Any
    ) -> Any:
        """What OpenRLHF's loss returns."""
        bound = current_run().recipe.pre_clip
        log_ratio = log_probs - old_log_probs
        mask = rest["action_mask"]
        rollout = rest.get("rollout_log_probs")
        self.counts = {
            "tokens": mask.sum(),
            "clipped": (is_pre_clipped(log_ratio, bound) * mask).sum(),
            "rollout_gap": ((rollout - old_log_probs) * mask).sum() if rollout is not None else torch.zeros(()),
        }
        return super().forward(old_log_probs + pre_clip(log_ratio, bound), old_log_probs, advantages, **rest)


class InOrder(DataLoader):  # type: ignore[type-arg]
    """The replay buffer as it was filled, to its last sample: OpenRLHF shuffles it and drops what fills no batch."""

    def __init__(self, dataset: Any, **settings: Any) -> None:
        super().__init__(dataset, **{**settings, "shuffle": False, "drop_last": False})


class ActorTrainer(ppo_actor.ActorPPOTrainer):  # type: ignore[misc]
    """One process of the actor: exactly one optimiser step for each batch of rollouts."""

    def ppo_train(self, kl_ctl: float) -> dict[str, Any]:
        """OpenRLHF's metrics. What the step trained on has been appended to the run's records."""
        self._samples: list[dict[str, Any]] = []
        self._sums: dict[str, float] = {}
        self._micro_batches = -(-len(self.replay_buffer) // self.micro_train_batch_size)
        status: dict[str, Any] = super().ppo_train(kl_ctl)
        self._write(float(status["actor_grad_norm"]))
        return status

    def training_step(self, experience: Any, kl_ctl: float, step: int, loss_batch_info: Any = None) -> dict[str, Any]:
        """One micro-batch. The last one is the boundary at which DeepSpeed steps, however many there are."""
        self.actor.model.set_gradient_accumulation_boundary(step + 1 == self._micro_batches)
        status: dict[str, Any] = super().training_step(experience, kl_ctl, step, loss_batch_info)
        self._samples += _trained_on(experience)
        metrics, tokens = status["metrics"], status["num_action_tokens"]
        sums = {name: float(value) for name, value in self.actor_loss_fn.counts.items()}
        # DeepSpeed divides each micro-batch's loss by this count; the sum of the parts is the loss of the step.
        sums["loss"] = float(metrics["policy_loss"]) / self.strategy.accumulated_gradient / self.strategy.world_size
        sums["ppo_clipped"] = float(metrics["ppo_clip_ratio"]) * tokens
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        return status

    def _write(self, grad_norm: float) -> None:
        """Append one line to the records, with the samples of all processes in their order."""
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, (self._samples, self._sums))
        if torch.distributed.get_rank() != 0:
            return
        sums = {name: sum(share[name] for _, share in gathered) for name in self._sums}
        line = {
            "step": self.actor.model.global_steps,  # DeepSpeed's own count of optimiser steps
            "samples": [sample for samples, _ in gathered for sample in samples],
            "finished": time.time(),
            "grad_norm": grad_norm,
            **sums,
        }
        with current_run().records.open("a") as records:
            records.write(json.dumps(line) + "\n")


def _trained_on(experience: Any) -> list[dict[str, Any]]:
    """The samples of a micro-batch with all that is known of them; padding, which has no response token, is left out."""
    info = experience.info
    columns = ("reward", "accuracy", "logic", "format", "judge_failed", "filtered_tokens", "kl")
    tokens = experience.action_mask.sum(-1).tolist()
    return [
        {
            **json.loads(label),
            **{name: float(info[name][place]) for name in columns},
            "response_tokens": int(tokens[place]),
        }
        for place, label in enumerate(experience.labels)
        if tokens[place] > 0
    ]


class PolicyActor(_behind(ppo_actor.PolicyModelActor)):  # type: ignore[misc]
    """The actor of one device."""

    def init_model_from_pretrained(self, strategy: Any, pretrain: str, *rest: Any, **named: Any) -> None:
        """Load model, optimiser and checkpoint."""
        die_with_parent()
        super().init_model_from_pretrained(strategy, pretrain, *rest, **named)
        self.tokenizer = self.trainer.tokenizer = get_tokenizer(pretrain, None, "left", strategy)


class ReferenceActor(_behind(launcher.ReferenceModelActor)):  # type: ignore[misc]
    """The model that the KL penalty compares with."""


class Rollouts(_behind(vllm_engine.RolloutRayActor)):  # type: ignore[misc]
    """One vLLM engine."""

    async def __init__(self, *arguments: Any, **named: Any) -> None:
        die_with_parent()
        named |= {
            "worker_extension_cls": "egt_pipeline.openrlhf_entry.weights.WorkerExtension",
            "trust_remote_code": False,
            "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled from, as the actor computes
        }
        await super().__init__(*arguments, **named)

    async def update_weight(self, name: str, dtype: Any, shape: Any, empty_cache: bool = False) -> Any:
        """Pass one tensor on; after the last one nothing computed from old weights is left."""
        result = await super().update_weight(name, dtype, shape, empty_cache)
        if empty_cache:
            await self._forget_images()
        return result

    async def update_weight_cuda_ipc(
        self, name: str, dtype: Any, shape: Any, ipc_handles: Any, empty_cache: bool = False
    ) -> Any:
        """As ``update_weight``, between processes that share a GPU."""
        result = await super().update_weight_cuda_ipc(name, dtype, shape, ipc_handles, empty_cache)
        if empty_cache:
            await self._forget_images()
        return result

    async def _forget_images(self) -> None:
        """vLLM keys image embeddings by the picture alone, so they outlive the weights they were computed with."""
        await self.llm.reset_mm_cache()
        await self.llm.reset_encoder_cache()


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


class Trainer(_behind(ppo_trainer.PPOTrainer)):  # type: ignore[misc]
    """The controller: rollouts, rewards, one step; again until the plan is done."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        die_with_parent()
        super().__init__(*arguments, **named)
        run = current_run()
        self.prompts_dataloader = PlannedPrompts(self.prompts_dataloader.dataset, run.steps)
        self.samples_generator.prompts_dataloader = self.prompts_dataloader
        self.max_steps = len(run.steps)

    def train_step(self, rollout_samples: list[Any], global_step: int) -> Any:
        """One step on rollouts that arrive as they finish, put back into the planned order and padded."""
        ordered = sorted(rollout_samples, key=lambda sample: json.loads(sample.labels[0])["place"])
        return super().train_step(ordered + _padding(ordered, current_run().processes), global_step)

    def save_logs_and_checkpoints(self, global_step: int, logs_dict: Any = None, client_states: Any = None) -> None:
        """A checkpoint when one is due, or when the run is asked to stop. Raises StoppedError in the latter case."""
        stop = current_run().stop_request.exists()
        if stop:
            self.args.ckpt.save_steps = 1
        super().save_logs_and_checkpoints(global_step, logs_dict, client_states)
        if stop:
            raise StoppedError(f"rl: stopped on request after step {global_step}, with a checkpoint")


def _padding(samples: list[Any], processes: int) -> list[Any]:
    """Copies of the last sample without response tokens, so that every process has as many samples."""
    count = -len(samples) % processes
    padding = []
    for _ in range(count):
        empty = copy(samples[-1])
        empty.action_mask = torch.zeros_like(empty.action_mask)
        padding.append(empty)
    return padding


def put_in_place() -> None:
    """Have OpenRLHF's command use these classes; the ones inside a Ray actor are put in place as it loads this module."""
    ppo_actor.PolicyModelActor = ray.remote(num_gpus=1)(PolicyActor)
    launcher.ReferenceModelActor = ray.remote(num_gpus=1)(ReferenceActor)
    ppo_trainer.PPOTrainer = ray.remote(Trainer)
    vllm_engine.RolloutRayActor = ray.remote(Rollouts)


ppo_actor.ActorPPOTrainer = ActorTrainer
ppo_actor.PolicyLoss = PreClipLoss
ppo_actor.DataLoader = InOrder
ppo_trainer.RemoteExperienceMaker = ExperienceMaker
