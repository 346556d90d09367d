"""What ``egt plan`` says a run needs, what it refuses, and what it says would help."""

import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from build_manifest import manifest
from egt_operator.api import EGTRun
from egt_operator.estimate import Estimate, estimate
from egt_operator.fit import GIB, Refusal, refusals, settings_that_fit
from egt_operator.geometry import PUBLISHED, Known
from egt_operator.gpus import PRODUCTS, offer_of
from egt_operator.manifest_file import load_run
from egt_operator.plan_view import print_estimate
from egt_operator.stage_cost import Between
from egt_pipeline.contract.graph import StageName
from egt_pipeline.curriculum import PlannedStep

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
    assert set(refused(EGTRun.model_validate(smaller))) == {"rl"}


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


@pytest.mark.parametrize("changes", [{}, {"sft__resources": {"gpu": 0}, "scheduling__gpuMemory": None}])
def test_nothing_is_refused_where_no_limit_is_known(changes: dict[str, Any]) -> None:
    assert refused(run_of(**changes)) == {}


def test_a_stage_without_gpus_is_not_refused_beside_others_that_have_some() -> None:
    assert "sft" not in refused(run_of(scheduling__gpuMemory="24Gi", sft__resources={"gpu": 0}))


def test_a_model_of_unknown_shape_leaves_memory_unknown_and_refuses_nothing() -> None:
    run = run_of(scheduling__gpuMemory="24Gi")
    found = estimate(run, Known(None, "unknown: nowhere"), {})
    assert all(stage.phases == () and stage.gpu_hours is None for stage in found.stages.values())
    assert refusals(run.spec, found) == []
    assert "unknown: nowhere" in shown(found)


def test_the_smallest_of_the_products_that_nodes_are_chosen_by_is_what_counts() -> None:
    wanted = [{"key": "nvidia.com/gpu.product", "values": ["NVIDIA-H200", "NVIDIA-A100-SXM4-40GB"]}]
    offer = offer_of(run_of(scheduling__nodeAffinity=wanted).spec.scheduling)
    assert offer.memory == 40 * GIB
    assert offer.speeds == (PRODUCTS["NVIDIA-H200"], PRODUCTS["NVIDIA-A100-SXM4-40GB"])
    given = run_of(scheduling__nodeAffinity=wanted, scheduling__gpuMemory="35Gi").spec.scheduling
    assert offer_of(given).memory == 35 * GIB
    unheard_of = [{"key": "nvidia.com/gpu.product", "values": ["NVIDIA-H200", "NVIDIA-X1"]}]
    offer = offer_of(run_of(scheduling__nodeAffinity=unheard_of).spec.scheduling)
    assert offer.memory == 140 * GIB  # it may land there, whatever the other holds
    assert "NVIDIA-X1" in offer.origin


def test_a_product_that_nobody_knows_is_named_and_still_a_gpu() -> None:
    offer = offer_of(run_of(scheduling__nodeSelector={"nvidia.com/gpu.product": "NVIDIA-X1"}).spec.scheduling)
    assert (offer.memory, offer.named) == (None, True)
    assert "what NVIDIA-X1 holds is not known" in offer.origin


def test_generations_of_the_paper_are_counted_from_its_rows() -> None:
    found = estimate(load_run(PAPER), SEVEN, {}).stages
    assert found[StageName.DISTILL].generations == Between(100_000, 300_000)
    assert found[StageName.PROBE].generations == Between(17_000, 17_000)
    assert found[StageName.RL].generations == Between(50_000, 50_000)  # 2,500 x 20 epochs
    assert found[StageName.EVALUATE].generations == Between(2 * 6_128, 2 * 6_128)


def test_rows_that_prepare_has_counted_win_over_max_rows() -> None:
    prepared = {"sft.ok": 90, "rl.ok": 80, "evaluate/heldout.ok": 7}
    found = estimate(run_of(data__rl__maxRows=1000, curate__keep={"share": 0.5}), SEVEN, prepared)
    assert (found.rows.sft, found.rows.rl, found.rows.evaluate) == (90, 80, 7)
    assert found.stages[StageName.RL].generations == Between(800, 800)  # 40 kept x 20 epochs


def test_max_steps_ends_rl_within_an_epoch() -> None:
    changes = {"curate__keep": {"topK": 500}, "rl__batchSize": 200, "rl__maxSteps": 5}
    found = estimate(run_of(**changes), SEVEN, {"rl.ok": 1000})
    assert found.stages[StageName.RL].generations == Between(900, 900)  # 200 200 100, 200 200


def test_hours_of_fine_tuning_are_8_operations_a_weight_and_token_at_the_pace_of_the_gpu() -> None:
    wanted = [{"key": "nvidia.com/gpu.product", "values": ["NVIDIA-H20"]}]
    run = run_of(scheduling__nodeAffinity=wanted, data__sft__maxRows=100_000, sft__maxLength=8192)
    hours = estimate(run, SEVEN, {}).stages[StageName.SFT].gpu_hours
    assert hours is not None
    layers = 28 * 233_057_792  # weights that every token passes
    plain = 100_000 * 2048 * 8 * layers / (148e12 * 0.5) / 3600
    assert plain < hours.low < 1.5 * plain  # attention, head and the frozen tower come on top
    assert hours.high > 4 * hours.low  # twice as long samples at half the pace


def test_a_probe_by_vllm_takes_less_time_than_by_transformers() -> None:
    def hours(engine: str) -> float:
        run = run_of(scheduling__gpuMemory="80Gi", data__rl__maxRows=17_000, probe__engine=engine)
        found = estimate(run, SEVEN, {}).stages[StageName.PROBE].gpu_hours
        assert found is not None
        return found.high

    assert hours("vllm") < hours("transformers")


def test_the_cache_of_rollouts_is_what_weights_and_prefill_leave_of_half_a_gpu() -> None:
    run = run_of(scheduling__gpuMemory="80Gi")
    rollouts = estimate(run, SEVEN, {}).stages[StageName.RL].phases[1].memory
    actor = 2 * SEVEN.geometry.parameters  # type: ignore[union-attr]  # one process holds all of it, as vLLM does
    assert rollouts.kv_cache + rollouts.activations + rollouts.weights - actor == 40 * GIB


def test_constants_of_the_stages_are_the_pipelines_own() -> None:
    from egt_operator import stage_memory
    from egt_pipeline import sft_train
    from egt_pipeline.contract.recipes import RLRecipe
    from egt_pipeline.peers import ALONE
    from egt_pipeline.rl_run import RunFile, arguments

    assert sft_train._BUCKET_ELEMENTS == stage_memory.SFT_BUCKET
    places = dict.fromkeys(("model", "dataset", "folder", "output", "ray_folder"), Path("/run"))
    numbers = {"processes": 2, "peers": ALONE, "attempt": 1, "max_images": 1, "resume": False, "parent": 1}
    flags = arguments(
        RunFile(recipe=RLRecipe(), steps=(PlannedStep(epoch=1, rows=(0,)),), **places, **numbers), cuda=True
    )
    assert f"--vllm.gpu_memory_utilization={stage_memory.ROLLOUT_SHARE}" in flags
    assert "--actor.gradient_checkpointing_enable" in flags
    assert not any("bucket" in flag or "adam_offload" in flag for flag in flags)  # DeepSpeed's default, on the GPU


def shown(found: Estimate) -> str:
    console = Console(width=100, force_terminal=False)
    with console.capture() as capture:
        print_estimate(console, found)
    return capture.get()


def test_the_tables_fit_100_columns_and_cut_no_word() -> None:
    text = shown(estimate(load_run(PAPER), SEVEN, {}))
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    for word in ("optimiser", "activations", "KV cache", "rl rollouts", "100,000 - 300,000", "fits"):
        assert word in text
