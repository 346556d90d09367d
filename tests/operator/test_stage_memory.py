"""The memory of each stage, from its recipe, against what the pipeline does."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from build_manifest import manifest
from egt_operator import memory
from egt_operator.api import EGTRun
from egt_operator.estimate import estimate
from egt_operator.fit import GIB
from egt_operator.geometry import PUBLISHED, Known
from egt_operator.stage_memory import sft_batch
from egt_pipeline.contract.graph import StageName
from egt_pipeline.curriculum import PlannedStep
from egt_pipeline.sft_batches import Collator
from egt_pipeline.sft_samples import Sample

PAPER = Path(__file__).parents[2] / "crds" / "examples" / "paper.yaml"
SEVEN = Known(PUBLISHED["Qwen/Qwen2.5-VL-7B-Instruct"], "published shape")


def run_of(**changes: Any) -> EGTRun:
    return EGTRun.model_validate(manifest(**changes))


def test_weights_of_adapters_are_counted_as_peft_makes_them() -> None:
    import json

    from build_model import random_model
    from egt_operator.geometry import read_config
    from egt_operator.stage_memory import trainable_of
    from egt_pipeline.adapters import adapted
    from egt_pipeline.reward_model import load_model

    spec = run_of(sft__lora={"rank": 3, "targets": ["k_proj", "o_proj", "down_proj"]}).spec
    geometry = read_config(json.loads((random_model() / "config.json").read_text()))
    assert spec.sft.lora is not None
    model = adapted(load_model(random_model(), "float32"), spec.sft.lora, None)
    made = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert trainable_of(geometry, spec.sft) == made


def test_weights_with_adapters_take_the_bytes_that_the_model_to_train_has() -> None:
    import json

    from build_model import random_model
    from egt_operator.geometry import read_config
    from egt_operator.stage_memory import Room, phases_of
    from egt_pipeline.adapters import adapted
    from egt_pipeline.reward_model import load_model

    spec = run_of(sft__lora={"rank": 64}, sft__zeroStage=0).spec
    geometry = read_config(json.loads((random_model() / "config.json").read_text()))
    assert spec.sft.lora is not None
    model = adapted(load_model(random_model(), "bfloat16"), spec.sft.lora, None)
    (training,) = phases_of(spec, StageName.SFT, geometry, Room(on_gpu=False))
    assert training.memory.weights == sum(weight.nbytes for weight in model.parameters())


def test_the_cache_of_rollouts_is_what_weights_and_prefill_leave_of_half_a_gpu() -> None:
    run = run_of(scheduling__gpuMemory="80Gi")
    rollouts = estimate(run, SEVEN, {}).stages[StageName.RL].phases[1].memory
    actor = 2 * SEVEN.geometry.parameters  # type: ignore[union-attr]  # one process holds all of it, as vLLM does
    assert rollouts.kv_cache + rollouts.activations + rollouts.weights - actor == 40 * GIB


def test_constants_of_the_stages_are_the_pipelines_own() -> None:
    from egt_operator import generation_memory, stage_memory
    from egt_pipeline import sft_train
    from egt_pipeline.contract.recipes import RLRecipe
    from egt_pipeline.engines import sampling
    from egt_pipeline.engines.vllm_environment import PREFILL_TOKENS
    from egt_pipeline.peers import ALONE
    from egt_pipeline.rl_run import ROLLOUTS_AT_ONCE, RunFile, arguments

    assert sft_train._BUCKET_ELEMENTS == stage_memory.SFT_BUCKET
    assert sampling._BLOCK_ROWS == generation_memory._CHOSEN_AT_ONCE
    assert (ROLLOUTS_AT_ONCE, PREFILL_TOKENS) == (stage_memory.ROLLOUTS_AT_ONCE, stage_memory.VLLM_PREFILL_TOKENS)
    places = dict.fromkeys(("model", "dataset", "folder", "output", "ray_folder"), Path("/run"))
    numbers = {"processes": 2, "peers": ALONE, "attempt": 1, "max_images": 1, "resume": False, "parent": 1}
    flags = arguments(
        RunFile(recipe=RLRecipe(), steps=(PlannedStep(epoch=1, rows=(0,)),), **places, **numbers), cuda=True
    )
    assert f"--vllm.gpu_memory_utilization={stage_memory.ROLLOUT_SHARE}" in flags
    assert "--actor.gradient_checkpointing_enable" in flags
    assert not any("bucket" in flag or "adam_offload" in flag for flag in flags)  # DeepSpeed's default, on the GPU


@pytest.mark.parametrize(
    ("micro_batch", "samples"),
    [
        (2, [(6000, 8192), (500, 4596)]),  # of each the teacher's 4,096 tokens or less, yet 7,693 positions
        (1, [(100, 8192)]),  # the teacher's 4,096 tokens were as many as 8,092 of the student's
    ],
)
def test_no_micro_batch_of_sft_has_more_logits_than_are_counted(
    micro_batch: int, samples: list[tuple[int, int]]
) -> None:
    run = run_of(
        scheduling__gpuMemory="80Gi",
        sft__maxLength=8192,
        sft__microBatchSize=micro_batch,
        distill__maxTokens=4096,
    )
    tokenizer = SimpleNamespace(pad_token_id=0, convert_tokens_to_ids=lambda _: 1)
    processor = SimpleNamespace(tokenizer=tokenizer, image_processor=None)
    made = Collator([Sample([2] * length, prompt, ()) for prompt, length in samples], processor, {})
    labels = made(list(range(len(samples))))["labels"]
    assert isinstance(labels, Tensor)
    (training,) = estimate(run, SEVEN, {}).stages[StageName.SFT].phases
    vocabulary = SEVEN.geometry.vocabulary  # type: ignore[union-attr]
    assert training.memory.activations > memory.SFT_LOGIT_BYTES * labels.numel() * vocabulary


def test_prompts_of_sft_may_be_pictures_up_to_max_length_whatever_rl_accepts() -> None:
    geometry = SEVEN.geometry
    assert geometry is not None
    spec = run_of(sft__maxLength=8192, sft__microBatchSize=2, rl__maxPromptTokens=1024).spec
    assert sft_batch(spec, geometry).patches == 2 * 4 * 8192
