"""What ``egt plan`` refuses, and what it says would help."""

import re
from pathlib import Path
from typing import Any

import pytest

from build_manifest import manifest
from egt_operator.api import EGTRun
from egt_operator.estimate import estimate
from egt_operator.fit import GIB, Refusal, refusals, settings_that_fit
from egt_operator.geometry import PUBLISHED, Known
from egt_operator.manifest_file import load_run
from egt_pipeline.contract.graph import StageName

PAPER = Path(__file__).parents[2] / "crds" / "examples" / "paper.yaml"
SEVEN = Known(PUBLISHED["Qwen/Qwen2.5-VL-7B-Instruct"], "published shape")


def run_of(**changes: Any) -> EGTRun:
    return EGTRun.model_validate(manifest(**changes))


def refused(run: EGTRun) -> dict[str, Refusal]:
    return {str(one.phase.stage): one for one in refusals(run.spec, estimate(run, SEVEN, {}))}


def test_the_papers_run_fits_8_gpus_of_80_gib_and_not_of_40() -> None:
    run = load_run(PAPER)
    found = estimate(run, SEVEN, {})
    assert found.offer.memory == 80 * GIB
    assert [found.stages[stage].gpus for stage in (StageName.SFT, StageName.PROBE, StageName.RL)] == [8, 8, 8]
    assert refused(run) == {}
    smaller = run.model_dump(mode="json")
    smaller["spec"]["scheduling"]["gpu_memory"] = "40Gi"
    assert set(refused(EGTRun.model_validate(smaller))) == {"sft", "rl"}


@pytest.mark.parametrize(("gigabytes", "size"), [(24, "3B"), (80, "7B")])
def test_the_profiles_for_one_gpu_fit_it_and_without_adapters_they_do_not(gigabytes: int, size: str) -> None:
    run = load_run(PAPER.with_name(f"one-gpu-{gigabytes}gb.yaml"))
    known = Known(PUBLISHED[f"Qwen/Qwen2.5-VL-{size}-Instruct"], "published shape")
    assert refusals(run.spec, estimate(run, known, {})) == []
    everything = run.model_dump(mode="json")
    for stage in ("sft", "rl"):
        everything["spec"][stage]["lora"] = None
    whole = EGTRun.model_validate(everything)
    assert {one.phase.stage for one in refusals(whole.spec, estimate(whole, known, {}))} == {"sft", "rl"}


def test_full_fine_tuning_of_7b_under_zero_2_on_one_gpu_of_24_gib_is_refused() -> None:
    said = str(refused(run_of(scheduling__gpuMemory="24Gi", sft__zeroStage=2, sft__microBatchSize=1))["sft"])
    needs = float(
        re.findall(r"sft: training needs ([0-9.]+) GiB a GPU, and a GPU has 24\.0 GiB; it fits with", said)[0]
    )
    assert needs > 16 * SEVEN.geometry.language_parameters / GIB  # type: ignore[union-attr]  # the states alone


def test_rl_of_7b_on_two_gpus_of_40_gib_is_refused() -> None:
    said = str(refused(run_of(scheduling__gpuMemory="40Gi", rl__processes=2, rl__microBatchSize=1))["rl"])
    assert said.startswith("rl: training needs ")
    assert said.endswith("and a GPU has 40.0 GiB; it fits with rl.processes: 8")


@pytest.mark.parametrize(
    ("memory", "stage", "changes"),
    [
        ("80Gi", StageName.SFT, {}),
        ("80Gi", StageName.RL, {}),
        ("24Gi", StageName.SFT, {"sft__zeroStage": 2}),
        ("40Gi", StageName.RL, {"rl__zeroStage": 2}),
        ("24Gi", StageName.PROBE, {"probe__engine": "transformers"}),
        ("24Gi", StageName.EVALUATE, {"evaluate__engine": "transformers"}),
    ],
)
def test_the_settings_that_are_named_do_make_it_fit(memory: str, stage: StageName, changes: dict[str, Any]) -> None:
    run = run_of(scheduling__gpuMemory=memory, **changes)
    settings = refused(run)[stage].settings
    assert settings
    document = run.model_dump(mode="json")
    document["spec"][str(stage)] |= settings
    assert stage not in refused(EGTRun.model_validate(document))


@pytest.mark.parametrize("gib", [24, 80])
def test_the_profiles_for_one_gpu_fit_it(gib: int) -> None:
    run = load_run(PAPER.with_name(f"one-gpu-{gib}gb.yaml"))
    found = estimate(run, Known(PUBLISHED[run.spec.model.source.removeprefix("hf://")], "published shape"), {})
    assert found.offer.memory == gib * GIB
    assert [stage.gpus for stage in found.stages.values() if stage.phases] == [1, 1, 1, 1]
    assert refusals(run.spec, found) == []


def test_adapters_are_named_where_no_number_of_gpus_can_share_a_batch() -> None:
    three = Known(PUBLISHED["Qwen/Qwen2.5-VL-3B-Instruct"], "published shape")
    run = run_of(scheduling__gpuMemory="24Gi", sft__microBatchSize=1, sft__batchSize=1, sft__maxLength=4096)
    (one,) = [one for one in refusals(run.spec, estimate(run, three, {})) if one.phase.stage == "sft"]
    assert str(one).endswith("it fits with sft.lora: {rank: 16}")


def test_what_no_setting_makes_fit_says_so() -> None:
    said = str(refused(run_of(scheduling__gpuMemory="24Gi"))["rl"])
    assert said.endswith("no setting of rl makes it fit: take larger GPUs or a smaller model")


def test_one_change_is_named_before_two_and_a_small_one_before_a_large_one() -> None:
    run = run_of(scheduling__gpuMemory="40Gi", probe__batchSize=64, probe__engine="transformers")
    assert SEVEN.geometry is not None
    assert settings_that_fit(run.spec, StageName.PROBE, SEVEN.geometry, 40 * GIB) == {"batch_size": 16}


def test_a_stage_that_is_published_already_is_not_refused() -> None:
    run = run_of(scheduling__gpuMemory="24Gi")
    assert refusals(run.spec, estimate(run, SEVEN, {}).only({StageName.CURATE})) == []


def test_activations_that_are_kept_need_not_be() -> None:
    found = refused(
        run_of(scheduling__gpuMemory="80Gi", sft__processes=8, sft__microBatchSize=2, sft__gradientCheckpointing=False)
    )["sft"]
    assert str(found).endswith("it fits with sft.gradientCheckpointing: true")


def test_that_vllm_takes_a_share_of_a_gpu_is_said() -> None:
    found = refused(run_of(scheduling__gpuMemory="16Gi"))["probe"]
    assert "GiB a GPU (vLLM takes 92% of one), and a GPU has 16.0 GiB" in str(found)


@pytest.mark.parametrize("changes", [{}, {"sft__resources": {"gpu": 0}, "scheduling__gpuMemory": None}])
def test_nothing_is_refused_where_no_limit_is_known(changes: dict[str, Any]) -> None:
    assert refused(run_of(**changes)) == {}


def test_a_stage_without_gpus_is_not_refused_beside_others_that_have_some() -> None:
    assert "sft" not in refused(run_of(scheduling__gpuMemory="24Gi", sft__resources={"gpu": 0}))


@pytest.mark.parametrize(
    ("gib", "now", "said"),
    [
        (20, {}, "sft.processes: 16 and sft.pods: 2"),
        (16, {}, "sft.processes: 32 and sft.pods: 4"),
        (18, {"sft__processes": 8, "sft__pods": 4}, "sft.processes: 16"),
        (16, {"sft__processes": 16, "sft__batchSize": 64}, "sft.processes: 32 and sft.pods: 2"),
    ],
)
def test_more_gpus_than_a_pod_may_have_are_named_with_the_pods_they_are_in(
    gib: int, now: dict[str, Any], said: str
) -> None:
    run = run_of(scheduling__gpuMemory=f"{gib}Gi", sft__microBatchSize=1, sft__maxLength=2048, **now)
    assert str(refused(run)["sft"]).endswith(f"it fits with {said}")
