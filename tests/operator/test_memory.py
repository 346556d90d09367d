"""Formulas of memory against what the real code allocated: seen/memory-peaks.jsonl, by memory_peaks.py and
generation_peaks.py.

Recorded, as measuring takes minutes; the slow test measures again. Activations of training are within 5 % of what was
seen. Where two things that are added up peak at different moments (what ZeRO-3 gathers and gradients under way), a
formula may say up to 30 % more, which small models show at their worst; it never says 10 % less.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from egt_operator import generation_memory, memory
from egt_operator.generation_memory import Prompts
from egt_operator.geometry import PUBLISHED, Geometry, read_config
from egt_operator.memory import MicroBatch, Sharding, Training
from egt_pipeline.contract.training import LoRA

ROOT = Path(__file__).parents[2]
SEEN = [json.loads(line) for line in (Path(__file__).parent / "seen" / "memory-peaks.jsonl").read_text().splitlines()]

SCRIPTS = {
    "memory_peaks.py": ("sft", "rl", "adapters", "vision", "zero"),
    "generation_peaks.py": ("generation", "probe", "rollouts"),
}


def seen(*kinds: str) -> list[Any]:
    cases = [case for case in SEEN if case["kind"] in kinds]
    return [pytest.param(case, id=f"{case['kind']}-{place}") for place, case in enumerate(cases)]


def geometry_of(case: dict[str, Any]) -> Geometry:
    return read_config(case["config"])


def test_each_formula_has_at_least_three_peaks_one_of_them_of_the_true_7b() -> None:
    counts = {kind: sum(case["kind"] == kind for case in SEEN) for kinds in SCRIPTS.values() for kind in kinds}
    assert min(counts.values()) >= 3
    seven = PUBLISHED["Qwen/Qwen2.5-VL-7B-Instruct"]
    for kind in ("sft", "rl"):
        assert any(
            geometry_of(case).layer_parameters == seven.layer_parameters for case in SEEN if case["kind"] == kind
        )


@pytest.mark.parametrize("case", seen("sft", "rl"))
def test_activations_of_a_training_are_within_5_percent_of_what_was_seen(case: dict[str, Any]) -> None:
    each = {"sft": memory.SFT_LOGIT_BYTES, "rl": memory.RL_LOGIT_BYTES}[case["kind"]]
    batch = MicroBatch(case["samples"], case["length"], case["logits"], each)
    said = memory.training_activations(
        geometry_of(case), batch, case["b"], checkpointing=case["checkpointing"], vision_trains=False, reduced=True
    )
    assert said == pytest.approx(case["peak"], rel=0.05)


@pytest.mark.parametrize("case", seen("adapters"))
def test_activations_with_adapters_are_within_10_percent_of_what_was_seen(case: dict[str, Any]) -> None:
    geometry = geometry_of(case)
    more = memory.adapters_kept(geometry, case["rank"], case["adapter_bytes"])
    batch = MicroBatch(1, case["length"], case["logits"], memory.SFT_LOGIT_BYTES, adapters=more)
    said = memory.training_activations(geometry, batch, 2, checkpointing=True, vision_trains=False, reduced=False)
    assert said == pytest.approx(case["peak"], rel=0.1)


@pytest.mark.parametrize("case", seen("adapters"))
def test_adapters_have_as_many_weights_as_peft_gives_them(case: dict[str, Any]) -> None:
    assert geometry_of(case).adapter_parameters(case["rank"], LoRA().targets) == case["trained"]


@pytest.mark.parametrize("case", seen("vision"))
def test_the_vision_tower_is_within_10_percent_of_what_was_seen(case: dict[str, Any]) -> None:
    geometry = geometry_of(case)
    each = (
        memory.vision_trained(geometry, 2, checkpointing=True) if case["trains"] else memory.vision_frozen(geometry, 2)
    )
    assert each * case["patches"] == pytest.approx(case["peak"], rel=0.1)


@pytest.mark.parametrize("case", seen("zero"))
def test_what_deepspeed_holds_between_steps_is_within_10_percent(case: dict[str, Any]) -> None:
    geometry, sharding = geometry_of(case), Sharding(case["stage"], case["ranks"], bucket=0)
    trained = geometry.language_parameters
    weights = 2 * geometry.parameters // (case["ranks"] if case["stage"] == 3 else 1)
    # ZeRO-2 frees gradients after the step, ZeRO-3 keeps their buffer.
    gradients = memory.gradients(trained, sharding, 2) if case["stage"] == 3 else 0
    assert weights + gradients + memory.optimiser(trained, sharding) == pytest.approx(case["held"], rel=0.1)


@pytest.mark.parametrize("case", seen("zero"))
def test_the_peak_of_a_step_under_deepspeed_is_never_understated_by_more_than_10_percent(case: dict[str, Any]) -> None:
    geometry = geometry_of(case)
    batch = MicroBatch(samples=1, length=32, logits=32, logit_bytes=4)  # the loss of that measurement is a mean
    said = memory.training(
        Training(
            geometry,
            Sharding(case["stage"], case["ranks"], case["bucket"]),
            batch,
            trainable=geometry.language_parameters,
            b=2,
            held=2,
            checkpointing=False,
            vision_trains=False,
        )
    ).total
    assert 0.9 * case["peak"] <= said <= 1.3 * case["peak"]


@pytest.mark.parametrize("case", seen("generation"))
def test_the_transformers_engine_is_never_understated_by_more_than_10_percent(case: dict[str, Any]) -> None:
    prompts = Prompts(case["samples"], case["prompt"], case["new"], case["patches"])
    said = generation_memory.generation(geometry_of(case), prompts, 2)
    assert 0.9 * case["peak"] <= said.kv_cache + said.activations <= 1.3 * case["peak"]


@pytest.mark.parametrize("case", seen("probe", "rollouts"))
def test_a_step_of_vllm_is_within_10_percent_of_what_was_seen(case: dict[str, Any]) -> None:
    geometry, samples = geometry_of(case), case["samples"]
    if case["kind"] == "rollouts":
        logits = generation_memory.rollout_logits(geometry, samples, 2)
    else:
        logits = generation_memory.probe_logits(geometry, samples, sampled=case["temperature"] > 0, casts_head=True)
    said = generation_memory.vllm_activations(geometry, case["tokens"], case["patches"] // 4, logits, 2)
    assert said == pytest.approx(case["peak"], rel=0.1)


def test_weights_gradients_and_adam_without_deepspeed_are_4_4_and_8_bytes_a_weight() -> None:
    geometry, batch = PUBLISHED["Qwen/Qwen2.5-VL-3B-Instruct"], MicroBatch(1, 32, 32, memory.SFT_LOGIT_BYTES)
    found = memory.training(
        Training(
            geometry,
            Sharding(0, 1, bucket=0),
            batch,
            trainable=geometry.parameters,
            b=4,
            held=4,
            checkpointing=True,
            vision_trains=True,
        )
    )
    assert (found.weights, found.gradients, found.optimiser) == tuple(n * geometry.parameters for n in (4, 4, 8))


def test_the_cache_of_7b_takes_57344_bytes_a_token() -> None:
    assert (
        generation_memory.kv_cache(PUBLISHED["Qwen/Qwen2.5-VL-7B-Instruct"], 1, 2) == 57_344
    )  # 28 layers x 2 x 4 heads x 128 x 2


@pytest.mark.slow
@pytest.mark.parametrize(("script", "kind"), [(script, kind) for script, kinds in SCRIPTS.items() for kind in kinds])
def test_measured_again_peaks_are_what_was_recorded(script: str, kind: str) -> None:
    command = [sys.executable, "-W", "ignore", str(ROOT / "tests" / script), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    recorded = [case for case in SEEN if case["kind"] == kind]
    for now, then in zip(found, recorded, strict=True):
        assert {**now, "peak": 0, "held": 0} == {**then, "peak": 0, "held": 0}
        assert now["peak"] == pytest.approx(then["peak"], rel=0.02)
