"""What one RL run is told, as one JSON file: recipe, plan and places; and the flags of OpenRLHF made of it.

Every pod of a run writes the file itself, at the same path: what it names lies at the same paths in all of them.
"""

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from egt_pipeline.contract.recipes import RLRecipe
from egt_pipeline.contract.task import Record
from egt_pipeline.contract.training import LoRA
from egt_pipeline.curriculum import PlannedStep
from egt_pipeline.deepspeed_checkpoints import WEIGHTS_ONLY
from egt_pipeline.engines.vllm_environment import VLLM_ENVIRONMENT, VLLM_WITHOUT_GPU
from egt_pipeline.peers import Peers

RUN_FILE_VARIABLE = "EGT_RL_RUN"  # Ray's workers inherit it; OpenRLHF has no argument that reaches all of them
COMPLETE = "complete"  # a file in a checkpoint that every process has written its part of, in each pod
ROLLOUTS_AT_ONCE = 256  # responses that an engine works on; `egt plan` counts a GPU's memory with it
TRACE = 0.001  # of a pod's own resource, which only says where something belongs; 1,000 processes fit
_AGENT = Path(__file__).parent / "openrlhf_entry" / "agent.py"


class RunFile(Record):
    """One RL run as one of its pods is told. ``folder`` takes records, checkpoints and logs.

    ``output`` takes the trained model or adapter, which the leader's first process writes.
    """

    recipe: RLRecipe
    steps: tuple[PlannedStep, ...]
    model: Path
    dataset: Path
    folder: Path
    output: Path
    ray_folder: Path
    processes: int
    peers: Peers
    attempt: int
    max_images: int
    resume: bool
    parent: int  # process id of the stage: nothing of the run outlives it

    @property
    def records(self) -> Path:
        """One JSON line an optimiser step, appended inside of it."""
        return self.folder / "steps.jsonl"

    @property
    def checkpoints(self) -> Path:
        """OpenRLHF's folder of checkpoints; DeepSpeed's lie in ``_actor/global_step<n>``."""
        return self.folder / "checkpoints"

    @property
    def local_processes(self) -> int:
        """How many of the run's processes are in this pod."""
        return self.processes // self.peers.size

    @property
    def stop_request(self) -> Path:
        """Once this file exists, the run saves a checkpoint after the step under way and ends."""
        return self.folder / "stop"

    @property
    def failure(self) -> Path:
        """Message and exit code of a failure that has a meaning of its own."""
        return self.folder / "failure.json"


@lru_cache(maxsize=1)
def current_run() -> RunFile:
    """The run of this process, driver or Ray worker."""
    return RunFile.model_validate_json(Path(os.environ[RUN_FILE_VARIABLE]).read_bytes())


def arguments(run: RunFile, *, cuda: bool) -> list[str]:
    """OpenRLHF's command line. On GPUs every process shares its device between training and rollouts."""
    return [*_method(run.recipe), *_batches(run), *_places(run), *(_gpu(run) if cuda else _cpu(run))]


def _method(recipe: RLRecipe) -> list[str]:
    flags = [
        # R1-Reward section 4.1: critic-free, advantages whitened over the whole batch, gamma 1, one response a prompt.
        "--algo.advantage.estimator=reinforce",
        "--rollout.n_samples_per_prompt=1",
        "--actor.loss_agg_mode=seq-mean-token-mean",
        f"--algo.kl.init_coef={recipe.kl_coefficient}",
        f"--actor.eps_clip={recipe.clip_epsilon}",
        "--actor.entropy_coef=0",  # measured, and no part of the loss
        f"--actor.adam.lr={recipe.learning_rate}",
        "--actor.lr_scheduler=constant_with_warmup",
        f"--actor.lr_warmup_ratio={recipe.warmup_share}",
        f"--rollout.temperature={recipe.temperature}",
        f"--rollout.max_new_tokens={recipe.max_new_tokens}",
        f"--data.max_len={recipe.max_prompt_tokens + recipe.max_new_tokens}",
        f"--ds.zero_stage={recipe.zero_stage}",
        "--ds.param_dtype=bf16",
        f"--train.seed={recipe.seed}",
    ]
    frozen = ["--actor.freeze_visual_encoder"] if recipe.freeze_vision else []
    return [*flags, *frozen, *(_adapters(recipe.lora) if recipe.lora else [])]


def _adapters(lora: LoRA) -> list[str]:
    return [f"--ds.lora.rank={lora.rank}", f"--ds.lora.alpha={lora.alpha}", f"--ds.lora.dropout={lora.dropout}"]


def _batches(run: RunFile) -> list[str]:
    recipe = run.recipe
    return [
        f"--train.num_episodes={max(step.epoch for step in run.steps)}",
        f"--train.batch_size={recipe.batch_size}",
        f"--rollout.batch_size={recipe.batch_size}",
        f"--train.micro_batch_size={recipe.micro_batch_size}",
        f"--rollout.micro_batch_size={recipe.micro_batch_size}",
        f"--ckpt.save_steps={recipe.checkpoint_steps}",
        "--ckpt.max_num=2",  # the newest is being committed while the next is written
    ]


def _places(run: RunFile) -> list[str]:
    flags = [
        f"--actor.model_name_or_path={run.model}",
        f"--data.prompt_dataset={run.dataset}",
        "--data.input_key=prompt",
        "--data.label_key=label",
        "--data.image_key=images",
        f"--data.max_images_per_prompt={run.max_images}",
        "--data.apply_chat_template",
        f"--train.agent_func_path={_AGENT}",
        f"--ckpt.path={run.checkpoints}",
        f"--ckpt.output_dir={run.output}",
        "--vllm.tensor_parallel_size=1",
        "--actor.num_nodes=1",  # OpenRLHF only multiplies the two; where each process runs, placement.py says
        "--ref.num_nodes=1",
        f"--actor.num_gpus_per_node={run.processes}",
        f"--ref.num_gpus_per_node={run.processes}",
    ]
    return [*flags, "--ckpt.load_enable"] if run.resume else flags


def _gpu(run: RunFile) -> list[str]:
    return [
        "--train.colocate_all",
        "--vllm.enable_sleep",
        "--ds.enable_sleep",
        f"--vllm.num_engines={rollout_engines(run, cuda=True)}",
        "--vllm.gpu_memory_utilization=0.5",  # the other half holds the actor while both are awake for the sync
        "--vllm.sync_backend=nccl",
        "--ds.attn_implementation=sdpa",
        "--actor.gradient_checkpointing_enable",
    ]


def _cpu(run: RunFile) -> list[str]:
    return [
        f"--vllm.num_engines={rollout_engines(run, cuda=False)}",
        "--vllm.enforce_eager",
        "--vllm.sync_backend=gloo",
        "--ds.attn_implementation=eager",
    ]


def rollout_engines(run: RunFile, *, cuda: bool) -> int:
    """How many vLLM engines sample the rollouts: one a GPU, or one for all without any."""
    return run.processes if cuda else 1


def logical_devices(run: RunFile) -> int:
    """How many devices a pod without CUDA has to promise Ray: actors, reference models, and one engine of all pods."""
    return run.local_processes * (2 if run.recipe.kl_coefficient > 0 else 1) + run.peers.leads


def in_pods(run: RunFile, bundles: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Ray's ``bundles``, one a process, each bound to its pod; the first ones, which write, are in the leader.

    Ray would place them where it likes, but a pod commits what its own processes wrote and fetches what they read.
    """
    return [{**bundle, pod_resource(place // run.local_processes): TRACE} for place, bundle in enumerate(bundles)]


def pod_resource(rank: int) -> str:
    """The name of a resource that the pod of this rank alone has."""
    return f"pod-{rank}"


def environment(run: RunFile, run_file: Path) -> dict[str, str]:
    """Variables of the run's processes: offline, quiet, one thread each, as there are more processes than cores."""
    return {
        **WEIGHTS_ONLY,
        RUN_FILE_VARIABLE: str(run_file),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(run.folder / "datasets"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",  # the kernel and Kubernetes watch memory; Ray's own watch kills workers
        "RAY_NUM_REDIS_GET_RETRIES": "90",  # every 2 s: as long, and more, other pods wait for the first one's node
        # After a kill its agents would wait a minute for a dead server; one in another pod may be silent for a moment.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5" if run.peers.size == 1 else "60",
        **VLLM_ENVIRONMENT,
        **VLLM_WITHOUT_GPU,
    }
