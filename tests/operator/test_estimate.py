"""What ``egt plan`` says a run needs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from build_manifest import manifest
from egt_operator.api import EGTRun
from egt_operator.estimate import Estimate, estimate
from egt_operator.fit import GIB, refusals
from egt_operator.geometry import PUBLISHED, Known
from egt_operator.gpus import PRODUCTS, offer_of
from egt_operator.manifest_file import load_run
from egt_operator.plan_view import print_estimate
from egt_operator.stage_cost import Between, kept_of
from egt_pipeline.contract.graph import StageName
from egt_pipeline.curation import amount

PAPER = Path(__file__).parents[2] / "crds" / "examples" / "paper.yaml"
SEVEN = Known(PUBLISHED["Qwen/Qwen2.5-VL-7B-Instruct"], "published shape")


def run_of(**changes: Any) -> EGTRun:
    return EGTRun.model_validate(manifest(**changes))


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


@pytest.mark.parametrize(
    "keep", [{"share": 0.29}, {"share": 0.15}, {"percentile": 29}, {"percentile": 12.5}, {"topK": 7}]
)
@pytest.mark.parametrize("rows", [41, 97, 100])
def test_as_many_samples_are_counted_as_curation_keeps(keep: dict[str, Any], rows: int) -> None:
    spec = run_of(curate__keep=keep).spec
    kept, _ = amount(spec.curate.keep, np.arange(rows) / rows)
    assert kept_of(spec, rows) == kept


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


def shown(found: Estimate) -> str:
    console = Console(width=100, force_terminal=False)
    with console.capture() as capture:
        print_estimate(console, found)
    return capture.get()


def test_the_tables_fit_100_columns_and_cut_no_word() -> None:
    text = shown(estimate(load_run(PAPER), SEVEN, {}))
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    for word in (
        "optimiser",
        "activations",
        "KV cache",
        "rl rollouts",
        "100,000 - 300,000",
        "fits",
        "12*T/N",
        "T weights that",
    ):
        assert word in text
