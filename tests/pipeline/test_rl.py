"""The rl stage: its own checks, and one real run of OpenRLHF with vLLM rollouts on CPU."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from build_rl import FORCE_OUTLIERS, QUESTION, build_rl_inputs, picture, put_in_place, speaking_model
from build_rl_run import KEPT, PLAN, RECIPE, check_model, context, order, run
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.task import Progress
from egt_pipeline.prompts import FORBIDDEN_TOKENS, messages
from egt_pipeline.reward_model import load_model, load_processor
from egt_pipeline.rewards import grade, reward, rule_logic
from egt_pipeline.stages import rl
from event_files import scalars


def test_a_real_run_follows_the_plan_counts_outliers_and_leaves_a_model_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_place(FORCE_OUTLIERS, tmp_path, monkeypatch)
    seen: list[Progress] = []
    out = run(tmp_path, speaking_model(), RECIPE.model_copy(update={"advantage_sigma": 0.5}), progress=seen.append)

    assert order(out) == PLAN
    losses = pq.read_table(out / "losses.parquet").to_pylist()
    assert [row["step"] for row in losses] == [1, 2, 3, 4, 5, 6]
    # One of the two samples of each micro-batch was made an outlier, so about half of the tokens are.
    assert all(0.2 < row["clipped_share"] < 0.8 for row in losses)
    assert any(row["filtered_share"] > 0 for row in losses)
    responses = pq.read_table(out / "rewards.parquet").to_pylist()
    _check_rewards(responses)
    first = [_sentence_entropy(speaking_model(), row) for row in responses if row["step"] == 1]
    # OpenRLHF computes in bfloat16, this in float32; after the step it were another model.
    assert losses[0]["entropy_nats"] == pytest.approx(fmean(first), rel=0.03)
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
    check_model(out / "model", speaking_model())


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


def _sentence_entropy(folder: Path, row: Mapping[str, Any]) -> float:
    """The mean entropy in nats over the tokens of a recorded response, its end included, computed anew."""
    processor = load_processor(folder)
    asked = messages("plain-v1", QUESTION, "four", "7", 1)
    prompt = processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    shown = Image.open(io.BytesIO(picture(20 * int(row["sample_id"][1:]))))
    length = len(processor(text=[prompt], images=[shown])["input_ids"][0])
    whole = processor(text=[prompt + row["response"] + "<|im_end|>"], images=[shown], return_tensors="pt")
    with torch.no_grad():
        log_p_TV = load_model(folder, "float32").eval()(**whole).logits[0, length - 1 : -1].log_softmax(-1)
    return float(-(log_p_TV.exp() * log_p_TV).sum(-1).mean())


def test_a_model_that_brings_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}')
    inputs = build_rl_inputs(tmp_path / "in", kept=3, dropped=0, model=tmp_path / "start")
    with pytest.raises(TaskError, match="auto_map"):
        rl.run(RECIPE, inputs, tmp_path, context(tmp_path))


def test_a_batch_that_does_not_divide_over_the_processes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="3 processes"):
        rl.run(RECIPE, {}, tmp_path, context(tmp_path, processes=3))
