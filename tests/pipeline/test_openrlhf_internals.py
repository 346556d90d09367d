"""Every internal of OpenRLHF, DeepSpeed and vLLM that the entry leans on, by name: a moved one is a plain message.

In a process of its own, as loading the entry changes torch.cuda where there is no GPU.
"""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

# (module, attribute path, what the entry needs it for)
LEANED_ON = [
    ("openrlhf.trainer.ppo_trainer", "PPOTrainer.__ray_metadata__.modified_class", "Trainer subclasses it"),
    ("openrlhf.trainer.ppo_trainer", "RemoteExperienceMaker", "replaced by ExperienceMaker"),
    ("openrlhf.trainer.ppo_trainer", "BasePPOTrainer.train_step", "overridden: planned order, padding"),
    ("openrlhf.trainer.ppo_trainer", "BasePPOTrainer.save_logs_and_checkpoints", "overridden: stop on request"),
    ("openrlhf.trainer.ray.ppo_actor", "PolicyModelActor.__ray_metadata__.modified_class", "PolicyActor subclasses it"),
    ("openrlhf.trainer.ray.ppo_actor", "ActorPPOTrainer.ppo_train", "overridden: one step a batch, records"),
    ("openrlhf.trainer.ray.ppo_actor", "ActorPPOTrainer.training_step", "overridden: boundary, records"),
    ("openrlhf.trainer.ray.ppo_actor", "ActorPPOTrainer._init_vllm_sync_group", "overridden: engines must run by then"),
    (
        "openrlhf.trainer.ray.ppo_actor",
        "PolicyModelActor.__ray_metadata__.modified_class.save_checkpoint",
        "overridden: complete in each pod",
    ),
    ("openrlhf.trainer.ray.launcher", "placement_group", "replaced: each process in its pod"),
    ("openrlhf.trainer.ray.vllm_engine", "placement_group", "replaced: the engine in the leader's pod"),
    ("ray.util.placement_group", "placement_group", "replaced: the command imports it when it is run"),
    ("ray._private.ray_constants", "GCS_PORT_ENVIRONMENT_VARIABLE", "the port that other pods join at"),
    ("ray.scripts.scripts", "start", "run in the other pods, with --block"),
    (
        "openrlhf.trainer.ray.ppo_actor",
        "ActorPPOTrainer.broadcast_to_vllm",
        "overridden: adapters are merged on the way",
    ),
    ("openrlhf.trainer.ray.ppo_actor", "deepspeed.zero.GatheredParameters", "where each adapter is merged"),
    ("openrlhf.trainer.ray.ppo_actor", "PolicyLoss", "replaced by PreClipLoss"),
    ("openrlhf.trainer.ray.ppo_actor", "DataLoader", "replaced by InOrder"),
    ("openrlhf.models.actor", "compute_entropy", "replaced by entropies"),
    ("openrlhf.trainer.ray.launcher", "ReferenceModelActor.__ray_metadata__.modified_class", "ReferenceActor"),
    ("openrlhf.trainer.ray.vllm_engine", "RolloutRayActor.__ray_metadata__.modified_class", "Rollouts subclasses it"),
    ("openrlhf.trainer.ppo_utils.experience_maker", "RemoteExperienceMaker.split_rollout_samples", "equal shares"),
    (
        "openrlhf.trainer.ppo_utils.experience_maker",
        "RemoteExperienceMaker.compute_advantages_and_returns",
        "the sigma filter follows it",
    ),
    ("openrlhf.trainer.ppo_utils.experience", "Experience.concat_experiences", "micro-batches of rollouts"),
    ("openrlhf.utils.agent", "SingleTurnAgentExecutor.execute", "AgentExecutor subclasses it"),
    ("openrlhf.utils.deepspeed.deepspeed", "init_device_mesh", "replaced where there is no CUDA"),
    ("openrlhf.utils.deepspeed.deepspeed", "DeepspeedStrategy.get_ds_train_config", "torch's Adam on CPU"),
    ("openrlhf.utils.distributed_util", "stateless_init_process_group", "gloo on CPU"),
    ("deepspeed.comm.torch", "build_shm_op", "not compiled on CPU"),
    ("deepspeed.runtime.engine", "DeepSpeedEngine.set_gradient_accumulation_boundary", "a short batch is one step"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.reset_mm_cache", "image embeddings after a weight sync"),
    ("vllm.v1.engine.async_llm", "AsyncLLM.reset_encoder_cache", "image embeddings after a weight sync"),
    ("vllm.v1.worker.gpu_model_runner", "GPUModelRunner.reload_weights", "the weight sync on CPU"),
]
_LOOK = """
import importlib, json, sys
import egt_pipeline.openrlhf_entry  # prepares the process
def there(module, path):
    found = importlib.import_module(module)
    for name in path.split("."):
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True
wanted = json.loads(sys.stdin.read())
answers = [there(module, path) for module, path in wanted]
from transformers.utils import is_flash_attn_2_available
print(json.dumps({"there": answers, "flash": is_flash_attn_2_available(), "left": "flash_attn" in sys.modules}))
"""


@pytest.fixture(scope="module")
def looked_up() -> dict[str, object]:
    wanted = json.dumps([(module, path) for module, path, _ in LEANED_ON])
    found = subprocess.run(
        [sys.executable, "-c", _LOOK], input=wanted, capture_output=True, text=True, check=False, timeout=300
    )
    assert found.returncode == 0, found.stderr[-2000:]
    answer: dict[str, object] = json.loads(found.stdout.splitlines()[-1])
    return answer


def test_every_internal_we_lean_on_is_where_it_was(looked_up: dict[str, list[bool]]) -> None:
    moved = [
        f"{module}.{path} is gone ({why}); see pipeline/egt_pipeline/openrlhf_entry"
        for (module, path, why), there in zip(LEANED_ON, looked_up["there"], strict=True)
        if not there
    ]
    assert not moved, "\n".join(moved)


def test_the_stand_in_for_flash_attention_does_not_stay(looked_up: dict[str, bool]) -> None:
    assert not looked_up["flash"]
    assert not looked_up["left"]


def test_the_pinned_version_is_the_one_that_was_read() -> None:
    assert version("openrlhf") == "0.11.2", "read the new sources before the pin moves: the entry leans on internals"
