from pathlib import Path

import pyarrow.parquet as pq
import pytest
import safetensors.torch

from build_model import judge_model
from build_probe import context, model_artifact, row, write_prepared
from egt_pipeline.adapters import adapted, merge, trained_model
from egt_pipeline.contract.errors import ArtifactError
from egt_pipeline.contract.graph import StageName, inputs_of
from egt_pipeline.contract.recipes import CurateRecipe, EvaluateRecipe, PrepareRecipe, ProbeRecipe, RLRecipe, SFTRecipe
from egt_pipeline.contract.training import LoRA
from egt_pipeline.reward_model import load_model
from egt_pipeline.stages import evaluate, probe

_LORA = LoRA(rank=4, alpha=8, merge=False)


def _adapter(base: Path, artifact: Path, seed: int) -> Path:
    """An artifact that holds an adapter of ``base`` alone, with weights as of a training."""
    import torch

    model = adapted(load_model(base, "float32"), _LORA, None)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.05, generator=generator)
    model.save_pretrained(artifact / "adapter")
    return artifact


def _prepared(folder: Path, benchmark: str) -> Path:
    write_prepared(folder / benchmark, [row(number) for number in range(6)])
    (folder / "model.json").write_text(f'{{"source": "{judge_model()}", "revision": null, "files": []}}')
    return folder


def test_merged_weights_are_those_of_the_base_and_the_scaled_product(tmp_path: Path) -> None:
    artifact = _adapter(judge_model(), tmp_path / "sft", seed=1)
    merge(judge_model(), artifact / "adapter", tmp_path / "merged")
    saved = safetensors.torch.load_file(artifact / "adapter" / "adapter_model.safetensors")
    before, after = load_model(judge_model(), "float32"), load_model(tmp_path / "merged", "float32")
    name = "model.language_model.layers.0.mlp.gate_proj"
    product = saved[f"base_model.model.{name}.lora_B.weight"] @ saved[f"base_model.model.{name}.lora_A.weight"]
    expected = before.get_parameter(f"{name}.weight") + 8 / 4 * product
    assert after.get_parameter(f"{name}.weight").allclose(expected, atol=1e-6)
    assert after.lm_head.weight.equal(before.lm_head.weight)


def test_the_probe_reads_a_kept_adapter_as_it_reads_the_merged_model(tmp_path: Path) -> None:
    data = _prepared(tmp_path / "prepare", "rl")
    kept = _adapter(judge_model(), tmp_path / "kept", seed=1)
    merge(judge_model(), kept / "adapter", tmp_path / "merged" / "model")
    recipe = ProbeRecipe(prompt="plain-v1", precision="float32", max_new_tokens=8, chunk_rows=4)
    artifacts = {"kept": kept, "merged": tmp_path / "merged", "base": model_artifact(tmp_path / "base")}
    tables = {}
    for name, artifact in artifacts.items():
        out = tmp_path / f"out-{name}"
        out.mkdir()
        probe.run(recipe, {"data": data, "model": artifact, "base": data}, out, context(tmp_path / name))
        tables[name] = pq.read_table(out / probe.ENTROPIES_FILE)
    assert tables["kept"].equals(tables["merged"])
    assert not tables["kept"].equals(tables["base"])


def test_an_adapter_of_rl_goes_on_what_sft_has_made_of_its_own(tmp_path: Path) -> None:
    data = _prepared(tmp_path / "prepare", "evaluate/heldout")
    sft = _adapter(judge_model(), tmp_path / "sft", seed=1)
    between = trained_model(sft, judge_model(), tmp_path / "between")
    final = _adapter(between, tmp_path / "final", seed=2)
    inputs = {"data": data, "sft": sft, "final": final, "base": data}
    out = tmp_path / "out"
    out.mkdir()
    recipe = EvaluateRecipe(prompt="plain-v1", precision="float32", max_new_tokens=8)
    evaluate.run(recipe, inputs, out, context(tmp_path))
    assert len(pq.read_table(out / evaluate.PREDICTIONS_FILE)) == 12
    merged = {path.name: load_model(path, "float32") for path in (tmp_path / "scratch/worker-0/merged").iterdir()}
    name = "model.language_model.layers.0.mlp.gate_proj.weight"
    weights = [model.get_parameter(name) for model in (load_model(judge_model(), "float32"), *merged.values())]
    assert set(merged) == {"sft", "final"}
    first, last = merged["sft"].get_parameter(name), merged["final"].get_parameter(name)
    assert not first.allclose(weights[0], atol=1e-3)
    assert not last.allclose(first, atol=1e-3)


def test_pickled_adapters_are_not_read(tmp_path: Path) -> None:
    adapter = _adapter(judge_model(), tmp_path, seed=1) / "adapter"
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ArtifactError, match=r"holds no adapter_model\.safetensors"):
        trained_model(tmp_path, judge_model(), tmp_path)


def test_adapters_that_are_no_numbers_are_not_merged(tmp_path: Path) -> None:
    path = _adapter(judge_model(), tmp_path, seed=1) / "adapter" / "adapter_model.safetensors"
    weights = safetensors.torch.load_file(path)
    next(iter(weights.values()))[0, 0] = float("nan")
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="cannot be merged"):
        trained_model(tmp_path, judge_model(), tmp_path)


def test_an_artifact_without_model_or_base_is_an_error_of_the_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"neither model/ nor an adapter/ whose base is known"):
        trained_model(_adapter(judge_model(), tmp_path, seed=1), None, tmp_path)


@pytest.mark.parametrize("stage", [StageName.PROBE, StageName.RL, StageName.EVALUATE])
def test_what_loads_a_kept_adapter_has_its_base_among_its_inputs(stage: StageName) -> None:
    data = {"sft": {"source": "a.jsonl"}, "rl": {"source": "b.jsonl"}}
    recipes = {
        StageName.PREPARE: PrepareRecipe.model_validate({"model": {"source": "/m"}, "data": data}),
        StageName.SFT: SFTRecipe(lora=_LORA),
        StageName.PROBE: ProbeRecipe(),
        StageName.CURATE: CurateRecipe(),
        StageName.RL: RLRecipe(),
    }
    assert inputs_of(stage, recipes)["base"].output == "model"
    merged = {**recipes, StageName.SFT: SFTRecipe(lora=LoRA())}
    assert "base" not in inputs_of(stage, merged)


def test_adapters_beside_a_vision_tower_that_is_trained_are_refused() -> None:
    with pytest.raises(ValueError, match="freezeVision: false is not accepted with lora"):
        SFTRecipe(lora=_LORA, freeze_vision=False)
