"""The shape of a model: what is counted from a config is what transformers builds from it."""

import json
from pathlib import Path

import pytest

from build_model import random_model
from egt_operator.geometry import PUBLISHED, Geometry, geometry_of, read_config
from egt_pipeline.contract.data import ModelSource

SEVEN = "Qwen/Qwen2.5-VL-7B-Instruct"
COMMIT = "0" * 40


def built(geometry: Geometry) -> int:
    """Weights of the model that transformers builds of this shape, without allocating them."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "num_hidden_layers": geometry.layers,
            "hidden_size": geometry.hidden,
            "intermediate_size": geometry.intermediate,
            "num_attention_heads": geometry.heads,
            "num_key_value_heads": geometry.kv_heads,
            "vocab_size": geometry.vocabulary,
            "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
        },
        vision_config={
            "depth": geometry.vision.depth,
            "hidden_size": geometry.vision.hidden,
            "intermediate_size": geometry.vision.intermediate,
            "out_hidden_size": geometry.hidden,
        },
        tie_word_embeddings=geometry.tied,
    )
    with torch.device("meta"):
        return sum(weight.numel() for weight in Qwen2_5_VLForConditionalGeneration(config).parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_weights_of_a_published_shape_are_those_that_transformers_builds(name: str) -> None:
    assert PUBLISHED[name].parameters == built(PUBLISHED[name])


def test_7b_has_the_weights_that_its_files_on_the_hub_hold() -> None:
    assert 2 * PUBLISHED[SEVEN].parameters == 16_584_333_312  # total_size of its safetensors index


def test_a_config_of_a_local_model_is_counted_to_the_last_weight() -> None:
    from safetensors import safe_open

    known = geometry_of(ModelSource(source=str(random_model())))
    with safe_open(random_model() / "model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118  # no mapping
    assert known.geometry is not None
    assert known.geometry.parameters == stored


def test_the_hubs_flat_config_is_read_as_the_nested_one(tmp_path: Path) -> None:
    text = {
        "num_hidden_layers": 28,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    }
    tower = {"hidden_size": 1280, "intermediate_size": 3420, "in_chans": 3}
    assert read_config({**text, "vision_config": tower}) == PUBLISHED[SEVEN]
    assert read_config({"text_config": text, "vision_config": tower}) == PUBLISHED[SEVEN]


def test_a_config_in_the_hubs_cache_wins_over_the_published_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    source = ModelSource(source=f"hf://{SEVEN}", revision=COMMIT)
    assert geometry_of(source).geometry == PUBLISHED[SEVEN]
    folder = tmp_path / "models--Qwen--Qwen2.5-VL-7B-Instruct" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "config.json").write_text((random_model() / "config.json").read_text())
    assert geometry_of(source).geometry == geometry_of(ModelSource(source=str(random_model()))).geometry


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf://somebody/else", "unknown: somebody/else is not in the hub's cache of this machine"),
        ("s3://bucket/model", "unknown: config.json lies in s3://bucket/model"),
        ("/nowhere", "unknown: /nowhere/config.json: No such file or directory"),
    ],
)
def test_what_cannot_be_read_is_unknown_and_says_why(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    revision = COMMIT if source.startswith("hf://") else None
    known = geometry_of(ModelSource(source=source, revision=revision))
    assert known.geometry is None
    assert known.origin.startswith(said)


def test_a_config_of_another_model_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 64}))
    assert "is no config of a Qwen2.5-VL" in geometry_of(ModelSource(source=str(tmp_path))).origin


def test_a_config_with_a_text_where_a_number_belongs_is_named_instead_of_counted(tmp_path: Path) -> None:
    config = json.loads((random_model() / "config.json").read_text())
    config["vision_config"]["depth"] = "two"
    (tmp_path / "config.json").write_text(json.dumps(config))
    known = geometry_of(ModelSource(source=str(tmp_path)))
    assert known.geometry is None
    assert "depth: 'two' is no whole number of at least 1" in known.origin
