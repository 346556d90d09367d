"""Records of optimiser steps, read while they are written, and the tables and figures made of them."""

import json
from pathlib import Path

import pytest

from egt_pipeline.curriculum import Place
from egt_pipeline.rl_records import RecordTail, losses_table, metrics_of, order_table, rewards_table, seen_places


def sample(sample_id: str, reward: float, tokens: int, **more: object) -> dict[str, object]:
    return {
        "sample_id": sample_id, "label": 1, "epoch": 1, "place": 0, "response": "text", "status": "ok",
        "reward": reward, "accuracy": float(reward >= 1), "logic": 0.0, "format": 1.0, "judge_failed": 0.0,
        "filtered_tokens": 0.0, "kl": 0.0, "response_tokens": tokens, **more,
    }  # fmt: skip


def line(step: int, samples: list[dict[str, object]], **sums: float) -> str:
    defaults = {
        "tokens": 10.0,
        "clipped": 0.0,
        "rollout_gap": 0.0,
        "loss": 0.1,
        "ppo_clipped": 0.0,
        "entropy_nats": 0.5,
    }
    fixed = {"step": step, "attempt": 1, "finished": 100.0 + 2.0 * step, "grad_norm": 0.5, "samples": samples}
    return json.dumps({**fixed, **defaults, **sums}) + "\n"


def test_each_step_is_handed_out_once_and_a_half_written_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    tail = RecordTail(path)
    assert tail.new() == []
    text = line(2, [sample("b", 0.5, 6)])
    path.write_text(line(1, [sample("a", 1.5, 4)]) + text[:20])
    assert [record.step for record in tail.new()] == [1]
    assert tail.new() == []
    with path.open("a") as more:
        more.write(text[20:])
    assert [record.step for record in tail.new()] == [2]


def test_tables_hold_what_the_steps_recorded(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text(
        line(1, [sample("a", 1.5, 4, filtered_tokens=4.0), sample("b", 0.5, 6, judge_failed=1.0)], clipped=5.0)
        + line(2, [sample("c", 2.0, 10)], ppo_clipped=1.0)
    )
    records = RecordTail(path).new()
    assert seen_places(records) == [Place(1, 1, 0, "a"), Place(1, 1, 1, "b"), Place(1, 2, 0, "c")]
    assert order_table(records).column("sample_id").to_pylist() == ["a", "b", "c"]
    assert order_table(records).column("attempt").to_pylist() == [1, 1, 1]
    losses = losses_table(records).to_pylist()
    assert [row["clipped_share"] for row in losses] == [0.5, 0.0]
    assert [row["filtered_share"] for row in losses] == [0.4, 0.0]
    assert [row["ppo_clip_share"] for row in losses] == [0.0, 0.1]
    assert [row["response_length"] for row in losses] == [5.0, 10.0]
    rewards = rewards_table(records)
    assert rewards.column("step").to_pylist() == [1, 1, 2]
    assert rewards.column("judge_failed").to_pylist() == [False, True, False]


def test_figures_compare_the_first_tenth_of_the_steps_with_the_last(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(line(step, [sample(f"s{step}", 0.1 * step, 10)]) for step in range(1, 21)))
    metrics = metrics_of(RecordTail(path).new())
    assert metrics["reward_first"] == pytest.approx(0.15)
    assert metrics["reward_last"] == pytest.approx(1.95)
    assert (metrics["steps"], metrics["samples"], metrics["generated_tokens"]) == (20, 20, 200)
    assert metrics["seconds_per_step"] == 2.0
