"""What an RL run wrote inside its optimiser steps, as tables and figures. Pure but for reading one file.

    order.parquet     epoch, step, position, sample_id, attempt
    rewards.parquet   step, sample_id, reward, accuracy, logic, format, response_tokens, status, response, judge_failed
    losses.parquet    step, policy_loss, grad_norm, clipped_share, ppo_clip_share, filtered_share, response_length,
                      reward, accuracy, kl, entropy_nats, rollout_gap

Shares are of response tokens. ``entropy_nats`` is the mean over the responses of their sentence entropy (EGT eq. 4),
under the weights before the step, at the temperature of the rollouts. ``rollout_gap`` is the mean log-probability that
vLLM gave its tokens less what the trained model gives them: 0 if both compute alike, and ln of the forbidden tokens'
mass above it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pyarrow as pa

from egt_pipeline.contract.task import Metric
from egt_pipeline.curriculum import Place

_SAMPLE_COLUMNS = pa.schema(
    [
        ("step", pa.int32()),
        ("sample_id", pa.string()),
        ("reward", pa.float64()),
        ("accuracy", pa.float64()),
        ("logic", pa.float64()),
        ("format", pa.float64()),
        ("response_tokens", pa.int32()),
        ("status", pa.string()),
        ("response", pa.string()),
        ("judge_failed", pa.bool_()),
    ]
)
_ORDER_COLUMNS = pa.schema(
    [
        ("epoch", pa.int32()),
        ("step", pa.int32()),
        ("position", pa.int32()),
        ("sample_id", pa.string()),
        ("attempt", pa.int32()),
    ]
)


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step as its actor wrote it; ``sums`` are over response tokens, ``finished`` is a Unix time."""

    step: int
    attempt: int
    finished: float
    samples: Sequence[Mapping[str, Any]]
    grad_norm: float
    sums: Mapping[str, float]

    def mean(self, column: str) -> float:
        """The mean of a column over the samples of the step."""
        return fmean(sample[column] for sample in self.samples)

    def share(self, name: str) -> float:
        """A sum over the step's tokens per token."""
        return self.sums[name] / self.sums["tokens"]


class RecordTail:
    """The steps written to a file, each handed out once, while it grows."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def new(self) -> list[StepRecord]:
        """The steps since the last call; a line that is still being written waits for the next."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as lines:
            lines.seek(self._offset)
            text = lines.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [_record(json.loads(line)) for line in whole.splitlines()]


def _record(line: dict[str, Any]) -> StepRecord:
    fixed = {name: line.pop(name) for name in ("step", "attempt", "finished", "samples", "grad_norm")}
    return StepRecord(**fixed, sums=line)


def seen_places(records: Sequence[StepRecord]) -> list[Place]:
    """Where each sample stood, as the optimiser saw it."""
    return [
        Place(sample["epoch"], record.step, position, sample["sample_id"])
        for record in records
        for position, sample in enumerate(record.samples)
    ]


def order_table(records: Sequence[StepRecord]) -> pa.Table:
    """order.parquet: where each sample stood, and which attempt took the step that counts.

    A step after the last checkpoint is taken again by the next attempt: those done twice are what an attempt has
    reported beyond the last step that stands here as its own.
    """
    rows = [{**vars(place), "attempt": record.attempt} for record in records for place in seen_places([record])]
    return pa.Table.from_pylist(rows, schema=_ORDER_COLUMNS)


def rewards_table(records: Sequence[StepRecord]) -> pa.Table:
    """rewards.parquet: one row a response."""
    rows = [
        {**sample, "step": record.step, "judge_failed": bool(sample["judge_failed"])}
        for record in records
        for sample in record.samples
    ]
    return pa.Table.from_pylist(rows, schema=_SAMPLE_COLUMNS)


def losses_table(records: Sequence[StepRecord]) -> pa.Table:
    """losses.parquet: one row an optimiser step."""
    return pa.Table.from_pylist([{"step": record.step, **figures_of(record)} for record in records])


def figures_of(record: StepRecord) -> dict[str, float]:
    """The figures of one step by name."""
    return {
        "policy_loss": record.sums["loss"],
        "grad_norm": record.grad_norm,
        "clipped_share": record.share("clipped"),
        "ppo_clip_share": record.share("ppo_clipped"),
        "filtered_share": _filtered_share(record),
        "response_length": record.mean("response_tokens"),
        "reward": record.mean("reward"),
        "accuracy": record.mean("accuracy"),
        "kl": record.mean("kl"),
        "entropy_nats": record.sums["entropy_nats"],
        "rollout_gap": record.share("rollout_gap"),
    }


def _filtered_share(record: StepRecord) -> float:
    return sum(float(sample["filtered_tokens"]) for sample in record.samples) / record.sums["tokens"]


def metrics_of(records: Sequence[StepRecord]) -> dict[str, Metric]:
    """Figures for the manifest. First and last are means over a tenth of the steps, at least one."""
    window = max(1, len(records) // 10)
    first, last = records[:window], records[-window:]
    seconds = [after.finished - before.finished for before, after in pairwise(records)]
    samples = [sample for record in records for sample in record.samples]
    return {
        "steps": len(records),
        "epochs": max(int(sample["epoch"]) for sample in samples),
        "samples": len({sample["sample_id"] for sample in samples}),
        "reward_first": fmean(record.mean("reward") for record in first),
        "reward_last": fmean(record.mean("reward") for record in last),
        "accuracy_first": fmean(record.mean("accuracy") for record in first),
        "accuracy_last": fmean(record.mean("accuracy") for record in last),
        "filtered_share": fmean(_filtered_share(record) for record in records),
        "clipped_share": fmean(record.share("clipped") for record in records),
        "judge_failures": sum(int(sample["judge_failed"]) for sample in samples),
        "generated_tokens": sum(int(sample["response_tokens"]) for sample in samples),
        "seconds_per_step": median(seconds) if seconds else None,
    }
