"""The verbs of ``egt sweep`` that start nothing."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from build_manifest import manifest
from build_sweep import sweep, write_sweep
from egt_operator.manifest_file import load_run
from egt_operator.sweep_cli import sweep_app
from egt_pipeline.contract.errors import TaskError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A sweep whose sources do not exist yet."""
    base = manifest(store={"uri": str(tmp_path / "store")}, data__rl__source=str(tmp_path / "absent.jsonl"))
    return write_sweep(tmp_path, sweep(), base)


def test_manifests_are_runs_of_their_own_in_folders_to_apply_in_turn(tmp_path: Path) -> None:
    base = manifest(store={"uri": "s3://bucket/prefix"}, data__rl__source="s3://bucket/rl.jsonl")
    file = write_sweep(tmp_path, sweep(), base)
    said = CliRunner().invoke(
        sweep_app, ["manifests", str(file), "--out", str(tmp_path / "out")], catch_exceptions=False
    )
    paths = sorted(path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.yaml"))
    assert [str(path) for path in paths] == [
        "1/grid-low-0.yaml",
        "2/grid-high-0.yaml",
        "2/grid-high-1.yaml",
        "2/grid-low-1.yaml",
    ]
    assert load_run(tmp_path / "out" / paths[1]).spec.curate.keep.band == "high"
    assert said.stdout.count("kubectl apply") == 2
    assert "data.sft.source: " in said.stderr, "what pods cannot see is noted"
    assert "data.rl.source" not in said.stderr


def test_manifests_whose_store_is_on_this_machine_are_of_no_use_to_a_cluster(file: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"grid-low-0: store.uri: .*store' is on this machine"):
        CliRunner().invoke(sweep_app, ["manifests", str(file), "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert not (tmp_path / "out").exists()


def test_manifests_are_not_laid_over_those_of_another_sweep(file: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.yaml").touch()
    with pytest.raises(TaskError, match=r"--out: .*out is not empty"):
        CliRunner().invoke(sweep_app, ["manifests", str(file), "--out", str(tmp_path / "out")], catch_exceptions=False)


def test_plan_counts_what_is_shared_before_anything_has_run_and_says_what_is_missing(file: Path) -> None:
    said = CliRunner().invoke(sweep_app, ["plan", str(file), "-o", "json"], catch_exceptions=False)
    found = json.loads(said.stdout)
    assert said.exit_code == 64, "as of egt plan: a source that does not exist is its user's to mend"
    assert {one["stage"]: one["to_run"] for one in found["stages"]} == {
        "prepare": 1, "distill": 1, "sft": 1, "probe": 1, "curate": 2, "rl": 4, "evaluate": 4,
    }  # fmt: skip
    assert [len(line["to_run"]) for line in found["runs"]] == [7, 3, 2, 2]
    assert said.stderr.count("spec.data.rl.source") == 1


def test_plan_refuses_what_does_not_fit_once_with_the_runs_it_is_said_of(file: Path, tmp_path: Path) -> None:
    base = yaml.safe_load((tmp_path / "base.yaml").read_text())
    base["spec"]["model"] = {"source": "hf://Qwen/Qwen2.5-VL-7B-Instruct", "revision": "0" * 40}
    base["spec"]["scheduling"] = {"gpuMemory": "24Gi"}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    with pytest.raises(TaskError, match=r"(?m)^grid-low-0: sft: training needs .* GiB a GPU, and a GPU has 24.0 GiB"):
        CliRunner().invoke(sweep_app, ["plan", str(file)], catch_exceptions=False)
    said = CliRunner().invoke(sweep_app, ["plan", str(file), "-o", "json"])
    runs = json.loads(said.stdout)["runs"]
    assert [any(one.startswith("sft: ") for one in run["refused"]) for run in runs] == [True, False, False, False]
    assert all(any(one.startswith("rl: ") for one in run["refused"]) for run in runs)


def test_a_table_of_nothing_is_refused_with_what_to_do(file: Path) -> None:
    with pytest.raises(TaskError, match=r"no run of this sweep is evaluated yet; start it with `egt sweep run"):
        CliRunner().invoke(sweep_app, ["table", str(file)], catch_exceptions=False)


def test_a_store_that_cannot_be_asked_still_leaves_what_would_run_and_its_hours(tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise TaskError("store.uri: no credentials")

    rows = {f"data__{name}__maxRows": 100 for name in ("sft", "rl")}
    held_out = [{"name": "heldout", "source": "s3://bucket/heldout.jsonl", "maxRows": 10}]
    base = manifest(
        store={"uri": "s3://bucket/prefix"},
        model__source="hf://Qwen/Qwen2.5-VL-7B-Instruct",
        model__revision="0" * 40,
        scheduling__gpuMemory="80Gi",
        data__evaluate=held_out,
        **rows,
    )
    file = write_sweep(tmp_path, sweep(), base)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("egt_operator.sweep_plan.open_members", refuse)
        said = CliRunner().invoke(sweep_app, ["plan", str(file), "-o", "json"])
        shown = CliRunner().invoke(sweep_app, ["plan", str(file)])
    assert isinstance(said.exception, TaskError)
    stages = {one["stage"]: one for one in json.loads(said.stdout)["stages"]}
    assert (stages["sft"]["to_run"], stages["rl"]["to_run"]) == (1, 4)
    assert stages["rl"]["gpu_hours"]["high"] > stages["sft"]["gpu_hours"]["high"] > 0
    assert stages["curate"]["gpu_hours"] is None
    assert "unknown" in shown.stdout
    assert "GPU-hours" in shown.stdout
