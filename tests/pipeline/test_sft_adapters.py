import re
from pathlib import Path

import pytest

from build_model import random_model
from build_sft import RECIPE, losses, train, zero
from egt_pipeline.adapters import trained_model
from egt_pipeline.contract.errors import StoppedError
from egt_pipeline.contract.recipes import SFTRecipe
from egt_pipeline.contract.training import LoRA
from egt_pipeline.reward_model import load_model

_ADAPTED = SFTRecipe.model_validate({**RECIPE.model_dump(), "freeze_vision": True, "lora": {"rank": 4, "alpha": 8}})


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one process that trained adapters and merged them."""
    return train(tmp_path_factory.mktemp("adapted"), _ADAPTED)[0]


def test_merged_adapters_move_the_layers_that_have_one_and_nothing_else(adapted: Path) -> None:
    told = losses(adapted)
    assert told[-1] < told[0] - 0.2
    trained, before = load_model(adapted / "model", "float32"), load_model(random_model(), "float32")
    changed = {name for name, weight in before.named_parameters() if not weight.equal(trained.get_parameter(name))}
    layers = [name for name, _ in before.named_parameters() if re.search(r"language_model.layers.*_proj.weight", name)]
    assert changed == set(layers)
    assert not (adapted / "adapter").exists()


def test_a_stopped_training_of_adapters_goes_on_with_the_losses_of_the_unbroken_one(
    adapted: Path, tmp_path: Path
) -> None:
    with pytest.raises(StoppedError):
        train(tmp_path, _ADAPTED, stop_after=2)  # asked to while step 3 is under way
    saved = {path.name for path in (tmp_path / "work").rglob("*.safetensors")}
    assert saved == {"adapter_model.safetensors"}, "what is frozen is no part of a checkpoint"
    out, steps = train(tmp_path, _ADAPTED)
    assert steps == [4, 5]
    assert losses(out) == losses(adapted)
    name = "model/model.safetensors"
    assert (out / name).read_bytes() == (adapted / name).read_bytes()


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_adapters_under_zero_have_the_losses_of_one_process_and_are_kept_alone(
    stage: int, adapted: Path, tmp_path: Path
) -> None:
    kept = _ADAPTED.model_copy(update={"lora": LoRA(rank=4, alpha=8, merge=False)})
    out, _ = train(tmp_path, zero(stage, kept), processes=2)
    assert losses(out) == pytest.approx(losses(adapted), abs=1e-4)
    assert {path.name for path in (out / "adapter").iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    assert not (out / "model").exists()
    whole, base = trained_model(out, random_model(), tmp_path), load_model(random_model(), "float32")
    expected = load_model(adapted / "model", "float32")
    for name, weight in load_model(whole, "float32").named_parameters():
        assert weight.allclose(expected.get_parameter(name), atol=1e-4), name
    assert not base.model.language_model.layers[0].mlp.up_proj.weight.allclose(
        expected.model.language_model.layers[0].mlp.up_proj.weight, atol=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_adapters_under_zero_go_on_from_their_checkpoint_with_the_same_losses(stage: int, tmp_path: Path) -> None:
    recipe = zero(stage, _ADAPTED).model_copy(update={"max_steps": 40})
    whole, _ = train(tmp_path / "whole", recipe, processes=2)
    with pytest.raises(StoppedError):
        train(tmp_path / "stopped", recipe, processes=2, stop_after=3)
    out, steps = train(tmp_path / "stopped", recipe, processes=2)
    assert steps[0] > 3
    assert losses(out) == losses(whole)


def test_in_bfloat16_adapters_have_losses_of_float32_to_two_digits(adapted: Path, tmp_path: Path) -> None:
    out, _ = train(tmp_path, _ADAPTED.model_copy(update={"precision": "bfloat16"}))
    assert losses(out) == pytest.approx(losses(adapted), rel=0.02)
    stored = {str(weight.dtype) for weight in load_model(out / "model", "auto").parameters()}
    assert stored == {"torch.float32"}, "of the model that the adapters were merged into"
