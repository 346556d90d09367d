"""``egt plan`` as its user types it: what is printed, and the exit code."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from build_manifest import manifest
from build_model import random_model
from small_run import EGT

# Nobody has keys, and nobody is asked for them over the network.
OFFLINE = {"AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nowhere", "COLUMNS": "100"}


def plan(folder: Path, *arguments: str, **changes: Any) -> subprocess.CompletedProcess[str]:
    """``egt plan`` on the smallest manifest, whose sources exist unless they are changed."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(manifest(**{"model__source": str(random_model()), **changes})))
    for name in ("sft", "rl", "heldout"):
        (folder / f"{name}.jsonl").touch()
    return egt(folder, "plan", str(path), *arguments)


def egt(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | OFFLINE
    command = [EGT, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["plan"], ["plan", "run.yaml", "-o", "yaml"], ["sweep", "plan", "a", "--x"]])
def test_a_command_that_is_not_understood_is_a_user_error_and_no_plan(tmp_path: Path, arguments: list[str]) -> None:
    done = egt(tmp_path, *arguments)
    assert done.returncode == 64
    assert "Usage: egt" in done.stderr


def test_a_source_that_does_not_exist_is_a_user_error_after_the_tables(tmp_path: Path) -> None:
    done = plan(tmp_path, data__rl__source="absent.jsonl")
    assert done.returncode == 64
    assert "GiB a process at the peak" in done.stdout
    assert "prepare will fail: spec.data.rl.source: absent.jsonl does not exist" in done.stderr
    assert "huggingface" not in done.stderr


def test_a_model_that_prepare_would_refuse_is_refused_before(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = plan(tmp_path, model__source="empty")
    assert done.returncode == 64
    assert "prepare will fail: spec.model.source: empty has no config.json" in done.stderr


def test_more_samples_to_keep_than_there_are_rows_fail_before_anything_is_trained(tmp_path: Path) -> None:
    done = plan(tmp_path, curate__keep={"topK": 11}, data__rl__maxRows=10)
    assert done.returncode == 64
    assert "curate will fail: spec.curate.keep.topK: 11 samples are asked for, but data.rl has 10" in done.stderr


def test_a_model_that_is_named_as_the_hub_names_it_is_told_how_to_say_so(tmp_path: Path) -> None:
    done = plan(tmp_path, model__source="Qwen/Qwen2.5-VL-3B-Instruct")
    assert "spec.model.source: Qwen/Qwen2.5-VL-3B-Instruct does not exist" in done.stderr
    assert done.stderr.endswith("; on huggingface.co it is hf://Qwen/Qwen2.5-VL-3B-Instruct\n")


def test_what_does_not_fit_is_refused_as_a_user_error_after_the_tables(tmp_path: Path) -> None:
    done = plan(tmp_path, scheduling__gpuMemory="1Gi")
    assert done.returncode == 64
    assert "never ran" in done.stdout
    assert "too much" in done.stdout
    assert "sft: training needs " in done.stderr
    assert "a GPU has 1.0 GiB; no setting of sft makes it fit" in done.stderr


def test_json_is_the_forecast_with_needs_beside_it(tmp_path: Path) -> None:
    done = plan(tmp_path, "-o", "json", scheduling__gpuMemory="1Gi")
    lines = {line["name"]: line for line in json.loads(done.stdout)}
    assert lines["sft"].keys() >= {"name", "action", "digest", "reason", "gpus", "memory", "gpu_hours", "refused"}
    assert lines["sft"]["memory"][0]["total"] > 2 * 2**30
    assert lines["sft"]["memory"][0]["formulas"]["optimiser"] == "12*T/N"
    assert lines["sft"]["memory"][0]["symbols"]["N"] == 1
    assert lines["sft"]["refused"].startswith("sft: training needs")
    assert lines["curate"]["refused"] is None
    assert done.returncode == 64


def test_without_a_word_of_gpus_nothing_is_refused(tmp_path: Path) -> None:
    done = plan(tmp_path)
    assert done.returncode == 2
    assert "GiB a process at the peak" in done.stdout
    assert "no GPU is named (scheduling.gpuMemory)" in done.stdout


def test_a_store_that_cannot_be_reached_still_leaves_the_estimate(tmp_path: Path) -> None:
    done = plan(tmp_path, store__uri="s3://bucket/runs", scheduling__gpuMemory="80Gi", data__rl__maxRows=100)
    assert done.returncode not in (0, 2)
    assert "GPU-hours" in done.stdout
    assert "credentials" in done.stderr


def test_json_of_a_store_that_cannot_be_reached_says_so_of_each_stage(tmp_path: Path) -> None:
    done = plan(tmp_path, "-o", "json", store__uri="s3://bucket/runs", scheduling__gpuMemory="80Gi")
    lines = {line["name"]: line for line in json.loads(done.stdout)}
    assert (done.returncode, lines["sft"]["action"]) == (64, "unknown")
    assert "credentials" in lines["prepare"]["reason"]
    assert lines["sft"]["memory"]
