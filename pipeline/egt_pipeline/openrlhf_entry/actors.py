"""OpenRLHF's classes with what StableReinforce and the curriculum change, and nothing else.

Rollouts         RolloutRayActor        our worker extension; image embeddings forgotten after a weight sync
PolicyActor      PolicyModelActor       saves the processor with the model (a plain tokenizer loses the images), or the
                                        adapter alone, which is in the language model only; says in each pod when a
                                        checkpoint is complete
ReferenceActor   ReferenceModelActor    unchanged; being ours, it prepares its process
Trainer          PPOTrainer             follows the plan; saves and stops when asked to
ActorTrainer     ActorPPOTrainer        waits for the engines; one optimiser step a batch, in the planned order, short
                                        batches too; records; whole weights to vLLM where adapters are trained
PreClipLoss      PolicyLoss             pre-clip before exp
ExperienceMaker  RemoteExperienceMaker  sigma filter after whitening; equal shares for all processes
entropies        compute_entropy        by the function that measures the probe's
"""

from importlib import import_module
from typing import Any

import ray
import torch
from openrlhf.models import actor as openrlhf_actor
from openrlhf.trainer import ppo_trainer
from openrlhf.trainer.ray import launcher, ppo_actor, vllm_engine
from openrlhf.utils import get_tokenizer

from egt_pipeline.adapters import targets
from egt_pipeline.contract.errors import StoppedError
from egt_pipeline.deepspeed_checkpoints import allow_their_classes
from egt_pipeline.engines.vllm_environment import PREFILL_TOKENS
from egt_pipeline.openrlhf_entry.experience import ExperienceMaker, PlannedPrompts, in_planned_order, padding
from egt_pipeline.openrlhf_entry.lora import save_adapter
from egt_pipeline.openrlhf_entry.placement import processes_in_pods
from egt_pipeline.openrlhf_entry.training import ActorTrainer, InOrder, PreClipLoss, entropies
from egt_pipeline.orphans import die_with_parent
from egt_pipeline.rl_run import COMPLETE, ROLLOUTS_AT_ONCE, TRACE, current_run, pod_resource


def _behind(actor_class: Any) -> Any:
    """The class that ``ray.remote`` made ``actor_class`` of."""
    return actor_class.__ray_metadata__.modified_class


class PolicyActor(_behind(ppo_actor.PolicyModelActor)):  # type: ignore[misc]
    """The actor of one device."""

    def init_model_from_pretrained(self, strategy: Any, pretrain: str, *rest: Any, **named: Any) -> None:
        """Load model, optimiser and checkpoint."""
        die_with_parent()
        allow_their_classes()
        if lora := current_run().recipe.lora:
            strategy.args.ds.lora.target_modules = targets(lora)  # a pattern; the command line takes names alone
        super().init_model_from_pretrained(strategy, pretrain, *rest, **named)
        self.tokenizer = self.trainer.tokenizer = get_tokenizer(pretrain, None, "left", strategy)

    def save_model(self) -> None:
        """The trained model, or its adapter."""
        if current_run().recipe.lora:
            save_adapter(self.actor, current_run().output)
        else:
            super().save_model()

    def save_checkpoint(self, tag: str, *rest: Any, **named: Any) -> None:
        """Save this process's part; once all have, say so in every pod."""
        super().save_checkpoint(tag, *rest, **named)
        torch.distributed.barrier()
        (current_run().checkpoints / "_actor" / tag / COMPLETE).touch()


class ReferenceActor(_behind(launcher.ReferenceModelActor)):  # type: ignore[misc]
    """The model that the KL penalty compares with."""


class Rollouts(_behind(vllm_engine.RolloutRayActor)):  # type: ignore[misc]
    """One vLLM engine."""

    async def __init__(self, *arguments: Any, **named: Any) -> None:  # type: ignore[misc]  # Ray awaits it
        die_with_parent()
        named |= {
            "worker_extension_cls": "egt_pipeline.openrlhf_entry.weights.WorkerExtension",
            "trust_remote_code": False,
            "max_num_seqs": ROLLOUTS_AT_ONCE,
            "max_num_batched_tokens": PREFILL_TOKENS,
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


class Trainer(_behind(ppo_trainer.PPOTrainer)):  # type: ignore[misc]
    """The controller: rollouts, rewards, one step; again until the plan is done."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        die_with_parent()
        super().__init__(*arguments, **named)
        run = current_run()
        self.prompts_dataloader: Any = PlannedPrompts(self.prompts_dataloader.dataset, run.steps)
        self.samples_generator.prompts_dataloader = self.prompts_dataloader
        self.max_steps = len(run.steps)

    def train_step(self, rollout_samples: list[Any], global_step: int) -> Any:
        """One step on the rollouts in the planned order, padded to equal shares for all processes."""
        ordered = in_planned_order(rollout_samples)
        return super().train_step(ordered + padding(ordered, current_run().processes), global_step)

    def save_logs_and_checkpoints(self, global_step: int, logs_dict: Any = None, client_states: Any = None) -> None:
        """A checkpoint when one is due, or when the run is asked to stop. Raises StoppedError in the latter case."""
        stop = current_run().stop_request.exists()
        if stop:
            self.args.ckpt.save_steps = 1
        super().save_logs_and_checkpoints(global_step, logs_dict, client_states)
        if stop:
            raise StoppedError(f"rl: stopped on request after step {global_step}, with a checkpoint")


def put_in_place() -> None:
    """Have OpenRLHF's command use these actors. Classes inside of an actor are in place once it loads this module."""
    ppo_actor.PolicyModelActor = ray.remote(num_gpus=1)(PolicyActor)
    launcher.ReferenceModelActor = ray.remote(num_gpus=1)(ReferenceActor)
    # The trainer reads the dataset and the request to stop, which the leader alone has.
    # No CPU: an actor that names a resource would take one, and on a machine without GPUs all are promised already.
    ppo_trainer.PPOTrainer = ray.remote(num_cpus=0, resources={pod_resource(0): TRACE})(Trainer)
    vllm_engine.RolloutRayActor = ray.remote(Rollouts)
    # The command imports its own; the package of the same name in ray.util hides the module from a plain import.
    importers: list[Any] = [launcher, vllm_engine, import_module("ray.util.placement_group")]
    for module in importers:
        module.placement_group = processes_in_pods


ppo_actor.ActorPPOTrainer = ActorTrainer
ppo_actor.PolicyLoss = PreClipLoss
ppo_actor.DataLoader = InOrder
openrlhf_actor.compute_entropy = entropies
ppo_trainer.RemoteExperienceMaker = ExperienceMaker
