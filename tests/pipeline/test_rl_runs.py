"""The rl stage in full: stopped and resumed, killed, over processes, with adapters; each a real run of OpenRLHF."""

import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from build_rl import NO_ENGINE, SHUFFLE, put_in_place, speaking_model
from build_rl_run import PLAN, RECIPE, check_model, context, order, run
from egt_pipeline.adapters import trained_model
from egt_pipeline.contract.errors import EgtError, StoppedError
from egt_pipeline.contract.training import LoRA
from egt_pipeline.reward_model import load_model
from event_files import scalars

pytestmark = pytest.mark.slow


def test_a_run_that_is_shuffled_on_purpose_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_place(SHUFFLE, tmp_path, monkeypatch)
    with pytest.raises(EgtError, match=r"order.parquet: step \d, position \d"):
        run(tmp_path, speaking_model())
    assert not (tmp_path / "out1" / "order.parquet").exists()


def test_an_engine_that_does_not_start_ends_the_run_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_place(NO_ENGINE, tmp_path, monkeypatch)
    began = time.monotonic()
    with pytest.raises(EgtError, match="no kernel for this machine"):
        run(tmp_path, speaking_model())
    assert time.monotonic() - began < 240, "not the 300 s after which torch gives a meeting up"


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)], ids=["all weights", "adapters"])
def test_a_run_stopped_in_the_middle_goes_on_at_the_next_prompt(lora: LoRA | None, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"lora": lora, "freeze_vision": lora is not None})
    done: list[float] = []

    def stop_after_the_second_step() -> bool:
        return len(done) >= 2

    with pytest.raises(StoppedError):
        run(
            tmp_path,
            speaking_model(),
            recipe,
            progress=lambda p: done.append(p.done),
            stopping=stop_after_the_second_step,
        )
    (checkpoint,) = context(tmp_path).work.names("checkpoints/")
    first = int(checkpoint[-6:])
    again: list[float] = []
    out = run(tmp_path, speaking_model(), recipe, attempt=2, progress=lambda p: again.append(p.done))
    assert order(out) == PLAN
    assert 2 <= first < 6
    taken = pq.read_table(out / "order.parquet", columns=["step", "attempt"]).to_pylist()
    assert all(row["attempt"] == (1 if row["step"] <= first else 2) for row in taken)
    records = (tmp_path / "scratch2" / "rl" / "steps.jsonl").read_text().splitlines()
    stopped = (tmp_path / "scratch1" / "rl" / "steps.jsonl").read_text().splitlines()
    assert records[:first] == stopped[:first], "what was trained before the stop is not trained again"
    gaps = pq.read_table(out / "losses.parquet", columns=["rollout_gap"])["rollout_gap"].to_pylist()
    assert all(abs(gap) < 0.01 for gap in gaps), "vLLM goes on with the weights of the checkpoint"
    assert list(scalars(out / "tracking", "reward")) == [1, 2, 3, 4, 5, 6]


def test_frozen_vision_zero_3_a_reference_model_and_two_processes_keep_the_order(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(
        update={"zero_stage": 3, "freeze_vision": True, "kl_coefficient": 0.01, "micro_batch_size": 1}
    )
    out = run(tmp_path, speaking_model(), recipe, processes=2)
    assert order(out) == PLAN
    check_model(out / "model", speaking_model())


@pytest.mark.parametrize(("stage", "processes"), [(2, 1), (3, 2)])
def test_adapters_are_trained_and_rollouts_come_from_the_merged_weights(
    stage: int, processes: int, tmp_path: Path
) -> None:
    adapters = {
        "lora": LoRA(rank=4, alpha=32, merge=stage == 2),
        "freeze_vision": True,
        "learning_rate": 1e-2,
        "zero_stage": stage,
        "micro_batch_size": 2 // processes,
    }
    out = run(tmp_path, speaking_model(), RECIPE.model_copy(update=adapters), processes=processes)
    assert order(out) == PLAN
    whole = trained_model(out, speaking_model(), tmp_path)
    check_model(whole, speaking_model())
    before, after = load_model(speaking_model(), "float32"), load_model(whole, "float32")
    changed = {name for name, weight in before.named_parameters() if not weight.equal(after.get_parameter(name))}
    assert changed
    assert all(re.search(r"language_model\.layers\.\d+\..*_proj\.weight", name) for name in changed)
    # What is left is bfloat16's rounding, 0.001; a vLLM that were never sent a weight would be 0.4 away from step 4 on.
    gaps = pq.read_table(out / "losses.parquet", columns=["rollout_gap"])["rollout_gap"].to_pylist()
    assert all(abs(gap) < 0.01 for gap in gaps), gaps
    if stage == 3:
        assert not (out / "model").exists()
        assert not [path for path in out.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]


_STAGE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from build_rl_run import run
run(Path({folder!r}), Path({model!r}))
"""


def test_a_killed_stage_leaves_no_process_behind(tmp_path: Path) -> None:
    code = _STAGE.format(tests=str(Path(__file__).parent.parent), folder=str(tmp_path), model=str(speaking_model()))
    stage = subprocess.Popen([sys.executable, "-c", code])
    records = tmp_path / "scratch1" / "rl" / "steps.jsonl"
    while not records.exists():
        assert stage.poll() is None
        time.sleep(0.1)
    family = psutil.Process(stage.pid).children(recursive=True)
    stage.kill()
    stage.wait()
    assert len(family) > 5
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
