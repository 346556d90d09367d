"""Inside the actor: one optimiser step a batch, in the planned order, with pre-clip; and the record of it."""

import json
import time
from contextlib import nullcontext
from typing import Any

import ray
import torch
from openrlhf.models import PolicyLoss
from openrlhf.trainer.ray import ppo_actor
from torch.utils.data import DataLoader

from egt_pipeline.entropy import entropy_nats
from egt_pipeline.losses import is_pre_clipped, pre_clip
from egt_pipeline.openrlhf_entry.lora import whole_weights
from egt_pipeline.rl_run import current_run


class PreClipLoss(PolicyLoss):  # type: ignore[misc]
    """OpenRLHF's policy loss on the pre-clipped ratio; ``counts`` is of the latest micro-batch."""

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


@torch.no_grad()
def entropies(logits_BTV: torch.Tensor) -> torch.Tensor:
    """Entropies in nats of each position, float32 [B, T]; no gradient flows through them."""
    return entropy_nats(logits_BTV.flatten(0, -2)).float().view(logits_BTV.shape[:-1])


class InOrder(DataLoader):  # type: ignore[type-arg]
    """The replay buffer as it was filled, to its last sample: OpenRLHF shuffles it and drops what fills no batch."""

    def __init__(self, dataset: Any, **settings: Any) -> None:
        super().__init__(dataset, **{**settings, "shuffle": False, "drop_last": False})


class ActorTrainer(ppo_actor.ActorPPOTrainer):  # type: ignore[misc]
    """One process of the actor: exactly one optimiser step for each batch of rollouts."""

    actor: Any

    def _init_vllm_sync_group(self, backend: str) -> None:
        """Meet the engines once they run; one that never will is an error here, not a meeting without end."""
        ray.get([engine.__ray_ready__.remote() for engine in self.vllm_engines])
        super()._init_vllm_sync_group(backend)

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
        parts = self.strategy.accumulated_gradient * self.strategy.world_size
        sums["loss"] = float(metrics["policy_loss"]) / parts
        sums["entropy_nats"] = float(metrics["entropy_loss"]) / parts  # averaged as the loss is
        sums["ppo_clipped"] = float(metrics["ppo_clip_ratio"]) * tokens
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        return status

    def broadcast_to_vllm(self) -> None:
        """Send the weights that the step has changed."""
        trained = self.actor
        with whole_weights(trained) if current_run().recipe.lora else nullcontext(trained) as self.actor:
            super().broadcast_to_vllm()
        self.actor = trained

    def _write(self, grad_norm: float) -> None:
        """Append one line to the records, with the samples of all processes in their order."""
        gathered: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, (self._samples, self._sums))
        if torch.distributed.get_rank() != 0:
            return
        sums = {name: sum(share[name] for _, share in gathered) for name in self._sums}
        line = {
            "step": self.actor.model.global_steps,  # DeepSpeed's own count of optimiser steps
            "attempt": current_run().attempt,
            "samples": [sample for samples, _ in gathered for sample in samples],
            "finished": time.time(),
            "grad_norm": grad_norm,
            **sums,
        }
        with current_run().records.open("a") as records:
            records.write(json.dumps(line) + "\n")


def _trained_on(experience: Any) -> list[dict[str, Any]]:
    """The samples of a micro-batch with all that is known of them; padding has no response token and is left out."""
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
