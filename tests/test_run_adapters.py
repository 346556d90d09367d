"""A small run whose fine-tuning keeps its adapter: the chain brings the base to whoever loads it."""

import json
from pathlib import Path

import pytest

from small_run import digits_place


@pytest.mark.slow
def test_probe_and_evaluation_get_the_base_of_a_kept_adapter(tmp_path: Path) -> None:
    with digits_place(tmp_path, sizes={"sft": 100, "rl": 20, "heldout": 20}) as place:
        manifest = place.edited(
            "kept",
            sft={"lora": {"rank": 4, "merge": False}, "freezeVision": True, "maxSteps": 2, "zeroStage": 0},
            curate={"enabled": False},
            rl={"enabled": False},
        )
        done = place.egt("local", "run", str(manifest), "-o", "json")
        stages = {stage["name"]: stage for stage in json.loads(done.stdout.splitlines()[-1])["stages"]}
        assert {stage["phase"] for stage in stages.values()} == {"Succeeded"}
        artifacts = {name: Path(stage["artifact"].removeprefix("file://")) for name, stage in stages.items()}
        assert not (artifacts["sft"] / "model").exists()
        assert (artifacts["sft"] / "adapter" / "adapter_model.safetensors").stat().st_size < 100_000
        assert list((artifacts["sft"] / "tracking").iterdir())
        for name in ("probe", "evaluate"):
            inputs = json.loads((artifacts[name] / "manifest.json").read_text())["inputs"]
            assert (inputs["base"]["stage"], inputs["base"]["output"]) == ("prepare", "model")
        assert place.egt("verify", str(manifest)).returncode == 0
