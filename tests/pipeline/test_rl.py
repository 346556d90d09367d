"""The rl stage: its own checks, and real runs of OpenRLHF with vLLM rollouts on CPU."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from build_rl import CHANGE, FORCE_OUTLIERS, SHUFFLE, build_rl_inputs, build_speaking_model
from egt_pipeline.adapters import trained_model
from egt_pipeline.context import Context
from egt_pipeline.contract.errors import ArtifactError, EgtError, StoppedError, TaskError
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.recipes import RLRecipe
from egt_pipeline.contract.task import Progress, StoreRef
from egt_pipeline.contract.training import LoRA
from egt_pipeline.prompts import FORBIDDEN_TOKENS
from egt_pipeline.reward_model import load_model
from egt_pipeline.rewards import grade, reward, rule_logic
from egt_pipeline.stages import rl
from egt_pipeline.store import open_store
from event_files import scalars

RECIPE = RLRecipe(
    epochs=2,
    batch_size=4,
    micro_batch_size=2,
    learning_rate=1e-3,
    max_new_tokens=40,
    max_prompt_tokens=100,
    zero_stage=2,
    freeze_vision=False,
    checkpoint_steps=3,
    prompt="plain-v1",
)
KEPT = [f"s{row:02d}" for row in range(12, 2, -1)]  # ten ids in the order of their ranks
PLAN = [
    (epoch, step, position, sample_id)
    for epoch in (1, 2)
    for step, batch in enumerate((KEPT[:4], KEPT[4:8], KEPT[8:]), start=3 * epoch - 2)
    for position, sample_id in enumerate(batch)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_speaking_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def put(code: str) -> None:
        (tmp_path / "change").mkdir()
        (tmp_path / "change" / "sitecustomize.py").write_text(code + CHANGE)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "change"), prepend=os.pathsep)

    return put


def context(folder: Path, attempt: int = 1, **given: object) -> Context:
    work = open_store(StoreRef(uri=f"file://{folder}/store")).work(StageName.RL, "0123456789abcdef")
    return Context(scratch=folder / f"scratch{attempt}", work=work, refs={}, attempt=attempt, **given)  # type: ignore[arg-type]


def order(folder: Path) -> list[tuple[object, ...]]:
    columns = ["epoch", "step", "position", "sample_id"]
    return [tuple(row.values()) for row in pq.read_table(folder / "order.parquet", columns=columns).to_pylist()]


def run(folder: Path, model: Path, recipe: RLRecipe = RECIPE, attempt: int = 1, **given: object) -> Path:
    """One attempt of the stage; its output."""
    out = folder / f"out{attempt}"
    out.mkdir()
    inputs = folder / "inputs"
    paths = (
        {"data": inputs / "data", "model": inputs / "sft", "selection": inputs / "selection"}
        if inputs.exists()
        else build_rl_inputs(inputs, kept=10, dropped=3, model=model)
    )
    result = rl.run(recipe, paths, out, context(folder, attempt, **given))
    (out / "metrics.json").write_text(json.dumps(dict(result.metrics)))
    return out


def test_a_real_run_follows_the_plan_counts_outliers_and_leaves_a_model_that_loads(
    tmp_path: Path, model: Path, change: Callable[[str], None]
) -> None:
    change(FORCE_OUTLIERS)
    seen: list[Progress] = []
    out = run(tmp_path, model, RECIPE.model_copy(update={"advantage_sigma": 0.5}), progress=seen.append)

    assert order(out) == PLAN
    losses = pq.read_table(out / "losses.parquet").to_pylist()
    assert [row["step"] for row in losses] == [1, 2, 3, 4, 5, 6]
    # One of the two samples of each micro-batch was made an outlier, so about half of the tokens are.
    assert all(0.2 < row["clipped_share"] < 0.8 for row in losses)
    assert any(row["filtered_share"] > 0 for row in losses)
    _check_rewards(pq.read_table(out / "rewards.parquet").to_pylist())
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["steps"], metrics["epochs"], metrics["samples"]) == (6, 2, 10)
    assert metrics["filtered_share"] > 0
    assert [progress.done for progress in seen] == [1, 2, 3, 4, 5, 6]
    curve = scalars(out / "tracking", "reward")
    assert (list(curve), list(curve.values())) == (
        [1, 2, 3, 4, 5, 6],
        pytest.approx([row["reward"] for row in losses], rel=1e-6),
    )
    assert context(tmp_path).work.names("checkpoints/") == [
        "checkpoints/processes-1-pods-1/pod-0/attempt-001/step-000006"
    ]
    _check_model(out / "model", model)


def _check_rewards(responses: list[dict[str, object]]) -> None:
    """Every recorded reward follows from the recorded response by the formula."""
    assert [row["sample_id"] for row in responses] == KEPT * 2
    for row in responses:
        text = str(row["response"])
        label = 1 + int(str(row["sample_id"])[1:]) % 2
        graded = grade(text, label, truncated=row["status"] == "truncated")
        logic = rule_logic(graded.reasoning, graded.answer) if graded.accuracy and graded.answer else 0
        assert (row["status"], row["accuracy"], row["logic"]) == (graded.status, graded.accuracy, logic)
        assert row["reward"] == reward(graded.accuracy, logic, graded.format, logic_weight=0.5, format_weight=0.5)
        assert not any(token in text for token in FORBIDDEN_TOKENS)
    assert len({row["reward"] for row in responses}) > 2


def _check_model(trained: Path, start: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(trained)
    assert hasattr(processor, "image_processor")
    before, after = (AutoModelForImageTextToText.from_pretrained(path, dtype="float32") for path in (start, trained))
    changed = [not a.equal(b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert all(weight.isfinite().all() for weight in after.parameters())
    assert any(changed)


def test_nothing_selected_is_an_error_of_the_task(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "config.json").write_text("{}")
    inputs = build_rl_inputs(tmp_path / "in", kept=0, dropped=3, model=tmp_path / "start")
    with pytest.raises(TaskError, match="no sample is left"):
        rl.run(RECIPE, inputs, tmp_path, context(tmp_path))


def test_a_selected_sample_that_prepare_never_saw_is_named(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "config.json").write_text("{}")
    inputs = build_rl_inputs(tmp_path / "in", kept=3, dropped=0, model=tmp_path / "start")
    other = build_rl_inputs(tmp_path / "other", kept=5, dropped=0, model=tmp_path / "start")
    with pytest.raises(ArtifactError, match="'s04'"):
        rl.run(RECIPE, {**inputs, "selection": other["selection"]}, tmp_path, context(tmp_path))


def test_a_model_that_brings_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
    inputs = build_rl_inputs(tmp_path / "in", kept=3, dropped=0, model=tmp_path / "start")
    with pytest.raises(TaskError, match="auto_map"):
        rl.run(RECIPE, inputs, tmp_path, context(tmp_path))


def test_a_batch_that_does_not_divide_over_the_processes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="3 processes"):
        rl.run(RECIPE, {}, tmp_path, context(tmp_path, processes=3))


@pytest.mark.slow
def test_a_run_that_is_shuffled_on_purpose_fails_the_check(
    tmp_path: Path, model: Path, change: Callable[[str], None]
) -> None:
    change(SHUFFLE)
    with pytest.raises(EgtError, match=r"order.parquet: step \d, position \d"):
        run(tmp_path, model)
    assert not (tmp_path / "out1" / "order.parquet").exists()


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LoRA(rank=4)], ids=["all weights", "adapters"])
def test_a_run_stopped_in_the_middle_goes_on_at_the_next_prompt(lora: LoRA | None, tmp_path: Path, model: Path) -> None:
    recipe = RECIPE.model_copy(update={"lora": lora, "freeze_vision": lora is not None})
    done: list[float] = []

    def stop_after_the_second_step() -> bool:
        return len(done) >= 2

    with pytest.raises(StoppedError):
        run(tmp_path, model, recipe, progress=lambda p: done.append(p.done), stopping=stop_after_the_second_step)
    (checkpoint,) = context(tmp_path).work.names("checkpoints/")
    first = int(checkpoint[-6:])
    again: list[float] = []
    out = run(tmp_path, model, recipe, attempt=2, progress=lambda p: again.append(p.done))
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


@pytest.mark.slow
def test_frozen_vision_zero_3_a_reference_model_and_two_processes_keep_the_order(tmp_path: Path, model: Path) -> None:
    recipe = RECIPE.model_copy(
        update={"zero_stage": 3, "freeze_vision": True, "kl_coefficient": 0.01, "micro_batch_size": 1}
    )
    out = run(tmp_path, model, recipe, processes=2)
    assert order(out) == PLAN
    _check_model(out / "model", model)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "processes"), [(2, 1), (3, 2)])
def test_adapters_are_trained_and_rollouts_come_from_the_merged_weights(
    stage: int, processes: int, tmp_path: Path, model: Path
) -> None:
    adapters = {
        "lora": LoRA(rank=4, alpha=32, merge=stage == 2),
        "freeze_vision": True,
        "learning_rate": 1e-2,
        "zero_stage": stage,
        "micro_batch_size": 2 // processes,
    }
    out = run(tmp_path, model, RECIPE.model_copy(update=adapters), processes=processes)
    assert order(out) == PLAN
    whole = trained_model(out, model, tmp_path)
    _check_model(whole, model)
    before, after = load_model(model, "float32"), load_model(whole, "float32")
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
from test_rl import run
run(Path({folder!r}), Path({model!r}))
"""


@pytest.mark.slow
def test_a_killed_stage_leaves_no_process_behind(tmp_path: Path, model: Path) -> None:
    code = _STAGE.format(tests=str(Path(__file__).parent), folder=str(tmp_path), model=str(model))
    path = f"{Path(__file__).parent.parent}"
    stage = subprocess.Popen([sys.executable, "-c", f"import sys; sys.path.insert(0, {path!r})\n{code}"])
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
