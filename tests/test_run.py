"""One small run of the whole method, as its user would start it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from build_sweep import sweep
from small_run import STAGES, Place, digits_place, free_port


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, dict[str, Any]]]:
    with digits_place(tmp_path_factory.mktemp("small")) as place:
        done = place.egt("local", "run", str(place.manifest), "-o", "json")
        yield place, json.loads(done.stdout.splitlines()[-1])


def test_every_stage_is_published(small_run: tuple[Place, dict[str, Any]]) -> None:
    _, outcome = small_run
    assert outcome["phase"] == "Complete"
    assert [stage["name"] for stage in outcome["stages"]] == STAGES
    assert {stage["phase"] for stage in outcome["stages"]} == {"Succeeded"}


def test_a_rerun_of_an_unchanged_manifest_starts_nothing(small_run: tuple[Place, dict[str, Any]]) -> None:
    place, _ = small_run
    assert place.egt("plan", str(place.manifest)).returncode == 0
    logs = sorted((place.folder / "store" / "local" / "small" / "logs").iterdir())
    again = json.loads(place.egt("local", "run", str(place.manifest), "-o", "json").stdout.splitlines()[-1])
    assert {stage["attempt"] for stage in again["stages"]} == {0}
    assert sorted((place.folder / "store" / "local" / "small" / "logs").iterdir()) == logs


def test_plan_says_beforehand_that_a_changed_curation_reruns_three_stages(
    small_run: tuple[Place, dict[str, Any]],
) -> None:
    place, _ = small_run
    edited = place.edited("other-curation", curate={"keep": {"share": 0.2}})
    lines = {line["name"]: line for line in place.plan(edited)}
    assert [name for name, line in lines.items() if line["action"] == "run"] == ["curate", "rl", "evaluate"]
    assert lines["curate"]["reason"] == "keep.share: 0.3 -> 0.2"
    assert place.egt("plan", str(edited), check=False).returncode == 2


def test_every_row_that_came_in_comes_out_of_every_stage(small_run: tuple[Place, dict[str, Any]]) -> None:
    place, _ = small_run
    lines_of = {name: len((place.folder / "data" / f"{name}.jsonl").read_text().splitlines()) for name in ("sft", "rl")}
    assert pq.read_metadata(place.artifact("prepare") / "sft" / "preferences.parquet").num_rows == lines_of["sft"]
    assert pq.read_metadata(place.artifact("distill") / "trajectories.parquet").num_rows == lines_of["sft"]
    assert pq.read_metadata(place.artifact("probe") / "entropies.parquet").num_rows == lines_of["rl"]
    assert pq.read_metadata(place.artifact("curate") / "selection.parquet").num_rows == lines_of["rl"]


def test_rl_saw_the_kept_samples_in_ascending_order(small_run: tuple[Place, dict[str, Any]]) -> None:
    place, _ = small_run
    selection = pq.read_table(place.artifact("curate") / "selection.parquet").to_pylist()
    kept = sorted((row for row in selection if row["decision"] == "kept"), key=lambda row: row["rank"])
    order = pq.read_table(place.artifact("rl") / "order.parquet").to_pylist()
    seen = [row["sample_id"] for row in sorted(order, key=lambda row: (row["epoch"], row["step"], row["position"]))]
    assert seen == [row["sample_id"] for row in kept]
    assert len(seen) % 8 != 0, "the last batch is a partial one, or this test shows less than it says"


def test_both_models_were_scored_on_every_held_out_row(small_run: tuple[Place, dict[str, Any]]) -> None:
    place, _ = small_run
    rows = pq.read_table(place.artifact("evaluate") / "predictions.parquet").to_pylist()
    held_out = len((place.folder / "data" / "heldout.jsonl").read_text().splitlines())
    assert [sum(row["model"] == model for row in rows) for model in ("sft", "final")] == [held_out, held_out]


def test_verify_finds_nothing_wrong_and_then_one_flipped_bit(
    small_run: tuple[Place, dict[str, Any]], tmp_path: Path
) -> None:
    place, _ = small_run
    assert place.egt("verify", str(place.manifest)).returncode == 0
    copy = tmp_path / "store"
    shutil.copytree(place.folder / "store", copy)
    target = copy / "artifacts" / "probe" / place.artifact("probe").name / "entropies.parquet"
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.chmod(0o644)
    target.write_bytes(data)
    found = place.egt("verify", str(place.manifest), "--store", str(copy), "--withdraw", check=False)
    assert found.returncode == 1
    assert "entropies.parquet" in found.stdout
    again = place.egt("verify", str(place.manifest), "--store", str(copy), "--withdraw", check=False)
    assert "withdrawn" not in again.stderr, "what was made of a damaged input is as good as before"


def test_the_report_is_one_file_that_asks_nobody_else(small_run: tuple[Place, dict[str, Any]]) -> None:
    place, _ = small_run
    place.egt("report", str(place.manifest), "--truth", "data/truth.parquet", "--out", "report.html")
    page = (place.folder / "report.html").read_text()
    assert "entropies not informative yet" in page, "120 steps of SFT calibrate nothing, and the page has to say so"
    for outside in ('src="http', 'href="http', "@import", "<script src"):
        assert outside not in page


def test_a_source_that_does_not_exist_is_said_by_plan(small_run: tuple[Place, dict[str, Any]]) -> None:
    place, _ = small_run
    edited = place.edited("no-source", data={"sft": {"source": "data/sftt.jsonl"}})
    assert "spec.data.sft.source" in place.egt("plan", str(edited), check=False).stderr


def test_truth_that_is_none_is_an_error_in_one_line(small_run: tuple[Place, dict[str, Any]]) -> None:
    place, _ = small_run
    for truth in ("nosuch.parquet", "data/sft.jsonl"):
        failed = place.egt("report", str(place.manifest), "--truth", truth, check=False)
        assert failed.returncode == 64
        assert truth in failed.stderr


def test_a_missing_teacher_is_an_error_that_can_be_retried(small_run: tuple[Place, dict[str, Any]]) -> None:
    place, _ = small_run
    teacher = {"model": "other", "baseUrl": f"http://127.0.0.1:{free_port()}/v1"}
    edited = place.edited("no-teacher", distill={"teacher": teacher})
    failed = place.egt("local", "run", str(edited), check=False)
    assert failed.returncode == 69
    assert "distill" in failed.stderr


def test_a_sweep_goes_past_a_failure_and_compares_the_rest(small_run: tuple[Place, dict[str, Any]]) -> None:
    place, outcome = small_run
    broken = {"curate.keep": {"topK": 100_000}}
    arms = {"same": {}, "broken": broken, "after": {**broken, "rl.order": "shuffled"}, "sft": {"rl.enabled": False}}
    seeds = {"fields": ["rl.seed"], "values": [0]}  # 0 is the small run's own
    (place.folder / "grid.yaml").write_text(json.dumps(sweep(base="small.yaml", arms=arms, seeds=seeds)))
    planned = place.egt("sweep", "plan", "grid.yaml", "-o", "json", check=False)
    to_run = {line["arm"]: line["to_run"] for line in json.loads(planned.stdout)["runs"]}
    assert planned.returncode == 64
    assert planned.stderr.count("curate will fail: spec.curate.keep.topK: 100000 samples are asked for") == 1
    later = ["rl", "evaluate"]
    assert to_run == {"same": [], "broken": ["curate", *later], "after": later, "sft": ["evaluate"]}

    ran = place.egt("sweep", "run", "grid.yaml", "-o", "json", check=False)
    ends = {line["arm"]: line for line in json.loads(ran.stdout.splitlines()[-1])["runs"]}
    assert ran.returncode == 1
    phases = {"same": "Complete", "broken": "Failed", "after": "Blocked", "sft": "Complete"}
    assert {arm: line["phase"] for arm, line in ends.items()} == phases
    assert "keep.topK: 100000 samples are asked for" in ends["broken"]["message"]
    assert "failed in grid-broken-0" in ends["after"]["message"]

    found = json.loads(place.egt("sweep", "table", "grid.yaml", "-o", "json").stdout)
    rows = {row["arm"]: row["found"].get("overall") for row in found["comparisons"][0]["rows"]}
    scores = outcome["stages"][-1]["metrics"]
    assert (rows["same"]["mean"], rows["sft"]["mean"]) == (scores["final.accuracy"], scores["sft.accuracy"])
    assert (rows["broken"], rows["after"]) == (None, None)
    assert sum(one["accuracy"]["count"] for one in found["by_entropy"][0]["bins"]) <= 120
    assert "2 of 4 runs are evaluated" in (place.folder / "grid.html").read_text()
