"""The demo's claims about entropy, from a run of its own; and the control that accuracy comes from the pictures."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from egt_pipeline.metrics import auc
from small_run import Place, digits_place

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The demo without rl: its own manifest, its own sizes."""
    demo = yaml.safe_load((ROOT / "crds" / "examples" / "digits.yaml").read_text())["spec"]
    stages = {name: demo[name] for name in ("sft", "probe", "curate", "evaluate")}
    sizes = {"sft": 8000, "rl": 2000, "heldout": 1000}
    with digits_place(tmp_path_factory.mktemp("science"), sizes=sizes, **stages, rl={"enabled": False}) as place:
        place.egt("local", "run", str(place.manifest))
        yield place


def metrics_of(place: Place, manifest: Path, stage: str) -> dict[str, Any]:
    outcome = json.loads(place.egt("local", "run", str(manifest), "-o", "json").stdout.splitlines()[-1])
    found: dict[str, Any] = {stage["name"]: stage["metrics"] for stage in outcome["stages"]}[stage]
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_entropy_of_the_answer_finds_the_noise_it_can_see(trained: Place) -> None:
    rows = pq.read_table(trained.artifact("probe") / "entropies.parquet").to_pylist()
    truth = {row["sample_id"]: row for row in pq.read_table(trained.folder / "data/truth.parquet").to_pylist()}
    entropy = np.array([row["answer_entropy_nats"] for row in rows])
    kind = np.array([truth[row["sample_id"]]["kind"] for row in rows])
    clean = kind == "clean"

    def found(*kinds: str) -> float:
        noise = np.isin(kind, kinds)
        return auc(entropy[clean | noise], noise[clean | noise])

    assert found("both_right", "both_wrong") >= 0.85
    assert found("style_biased") >= 0.75
    assert found("ambiguous_flip") >= 0.65
    assert 0.4 <= found("uniform_flip") <= 0.6


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_clear_pictures_are_judged_right_and_shuffled_ones_by_chance(trained: Place) -> None:
    seen = metrics_of(trained, trained.manifest, "evaluate")
    assert seen["sft.accuracy.subset.clear"] >= 0.95
    held_out = trained.folder / "data" / "heldout.jsonl"
    rows = [json.loads(line) for line in held_out.read_text().splitlines()]
    pictures = [row["images"] for row in rows]
    random.Random(0).shuffle(pictures)
    shuffled = held_out.with_name("shuffled.jsonl")
    lines = (json.dumps({**row, "images": images}) for row, images in zip(rows, pictures, strict=True))
    shuffled.write_text("\n".join(lines))
    run = yaml.safe_load(trained.manifest.read_text())
    run["spec"]["data"]["evaluate"][0]["source"] = "data/shuffled.jsonl"
    path = trained.folder / "shuffled.yaml"
    path.write_text(yaml.safe_dump(run))
    # Of ten digits, a wrong picture supports one claim or the other equally often.
    assert abs(metrics_of(trained, path, "evaluate")["sft.accuracy"] - 0.5) <= 0.06


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_permuted_labels_leave_entropies_and_selection_as_they_are(trained: Place) -> None:
    source = trained.folder / "data" / "rl.jsonl"
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    labels = [row["label"] for row in rows]
    random.Random(0).shuffle(labels)
    permuted = source.with_name("permuted.jsonl")
    lines = (json.dumps({**row, "label": label}) for row, label in zip(rows, labels, strict=True))
    permuted.write_text("\n".join(lines))
    run = yaml.safe_load(trained.manifest.read_text())
    run["spec"]["data"]["rl"]["source"] = "data/permuted.jsonl"
    path = trained.folder / "permuted.yaml"
    path.write_text(yaml.safe_dump(run))
    trained.egt("local", "run", str(path))
    # Not even a new artifact: labels are no part of what probe and curate are named by.
    before, after = ({line["name"]: line["digest"] for line in trained.plan(file)} for file in (trained.manifest, path))
    assert before["prepare"] != after["prepare"]
    assert [after[stage] for stage in ("probe", "curate")] == [before[stage] for stage in ("probe", "curate")]
