"""What a sweep file may say, and how a mistake in it is told."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from build_manifest import manifest
from build_sweep import sweep, write_sweep
from egt_operator.sweep_file import EGTSweep
from egt_operator.sweep_local import read_sweep
from egt_pipeline.contract.errors import TaskError


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": {"x": {"curate.kep.band": "low"}}}, "arms.x: spec.curate.kep: is no field here; did you mean keep?"),
        ({"arms": {"x": {"curate.keep.band": "lo"}}}, "arms.x: spec.curate.keep.band: 'lo' is not accepted; it must"),
        ({"arms": {"x": {"rl.seed.a": 1}}}, "arms.x.rl.seed.a: rl.seed has no fields inside"),
        ({"arms": {"x": {"curate.baseline": "accuracy"}}}, "arms.x: spec.curate.baseline: accuracy needs probe.gen"),
        ({"arms": {"x": {"curate.keep.topK": 5}}}, "arms.x: spec.curate.keep: exactly one of share, topK, percentile"),
        ({"arms": {"x": {"probe.enabled": False}}}, "arms.x: spec.probe.enabled: is false, but curate needs it"),
        ({"common": {"rl.epoch": 3}}, "common: spec.rl.epoch: is no field here; did you mean epochs?"),
        ({"seeds": {"fields": ["rl.sed"], "values": [1]}}, "seeds.fields: spec.rl.sed: is no field here; did you mean"),
    ],
)
def test_a_field_that_no_run_accepts_is_said_once_with_where_it_stands(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = write_sweep(tmp_path, sweep(**changes))
    with pytest.raises(TaskError) as caught:
        read_sweep(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{path}: {said}"), lines[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arm": {}}, "arm: is no field here; did you mean arms?"),
        ({"arms": {}}, "arms: {} is not accepted"),
        ({"arms": {"Low": {}}}, "arms.Low"),
        ({"arms": {"x": {"rl..seed": 1}}}, "arms.x.rl..seed"),
        ({"arms": {"x" * 34: {}}}, f"arms.{'x' * 34}: its run 'grid-{'x' * 34}-0' has 41 characters; 40 are accepted"),
        ({"arms": {"x": {"rl.seed": 3}}}, "arms.x.rl.seed: stands in seeds.fields too"),
        ({"common": {"rl.seed": 3}}, "common.rl.seed: stands in seeds.fields too"),
        ({"seeds": {"fields": ["rl.seed"], "values": [1, 1]}}, "seeds.values: something is given twice in [1, 1]"),
        ({"seeds": {"fields": ["rl.seed"], "values": []}}, "seeds.values: [] is not accepted"),
        ({"seeds": {"fields": ["rl.seed"], "values": [-1]}}, "seeds.values[0]: -1 is not accepted"),
        ({"tables": [{"name": "T", "rows": {"a": "lo"}}]}, "tables[0].rows.a: 'lo' is no arm; known are low, high"),
        ({"tables": [{"name": "T", "rows": {"a": "low"}}] * 2}, "tables[1].name: 'T' is the name of an earlier table"),
        ({"tables": [{"name": "T", "x": "%", "rows": {"a": "low"}}]}, "tables[0].rows: 'a' is no number"),
        ({"columns": {"loss": "loss"}}, "columns.loss: 'loss' is not accepted"),
        ({"kind": "EGTRun"}, "kind: 'EGTRun' is not an EGTSweep; use: egt plan "),
        ({"kind": "EGTSwep"}, "kind: 'EGTSwep' is not accepted; it must be 'EGTSweep'"),
        ({"metadata": {"name": "grid", "uid": "1"}}, "metadata.uid: is no field here; known are name"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = write_sweep(tmp_path, sweep(**changes))
    with pytest.raises(TaskError) as caught:
        read_sweep(path)
    assert str(caught.value).partition(": ")[2].startswith(said), caught.value


def test_a_run_where_a_sweep_is_expected_is_told_in_one_line_with_its_command(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(manifest()))
    with pytest.raises(TaskError) as caught:
        read_sweep(path)
    assert str(caught.value) == f"{path}: kind: 'EGTRun' is not an EGTSweep; use: egt plan {path}"


def test_the_points_of_a_curve_may_be_written_as_numbers() -> None:
    tables = [{"name": "Fig. 4", "x": "share", "rows": {0: "low", 15: "high"}}]
    assert EGTSweep.model_validate(sweep(tables=tables)).tables[0].rows == {"0": "low", "15": "high"}


def test_a_base_that_is_wrong_or_missing_is_named(tmp_path: Path) -> None:
    path = write_sweep(tmp_path, sweep(), manifest(sft__epochs=0))
    with pytest.raises(TaskError, match=r"base\.yaml:\d+: spec\.sft\.epochs"):
        read_sweep(path)
    (tmp_path / "base.yaml").unlink()
    with pytest.raises(TaskError, match=r"base\.yaml: cannot be read"):
        read_sweep(path)
