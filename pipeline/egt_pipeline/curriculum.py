"""Which sample stands in which optimiser step: the plan of a run, and the proof that it was followed. Pure.

Ten samples in batches of four, two epochs, sorted::

    epoch 1: step 1 [0 1 2 3]  step 2 [4 5 6 7]  step 3 [8 9]      the last batch stays short
    epoch 2: step 4 [0 1 2 3]  step 5 [4 5 6 7]  step 6 [8 9]      and never takes samples of the next epoch
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from egt_pipeline.contract.errors import EgtError
from egt_pipeline.contract.task import Record


class PlannedStep(Record):
    """One optimiser step: the samples it trains on, by rank, in their order. Epochs count from 1."""

    epoch: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Place:
    """Where a sample stood. Steps and epochs count from 1, positions within a step from 0."""

    epoch: int
    step: int
    position: int
    sample_id: str


def plan_steps(
    count: int,
    *,
    order: Literal["sorted", "shuffled"],
    epochs: int,
    batch_size: int,
    max_steps: int | None,
    seed: int,
) -> tuple[PlannedStep, ...]:
    """The steps over ``count`` samples: ascending at each epoch (EGT section 2.4), or a seeded order at each."""
    steps: list[PlannedStep] = []
    for epoch in range(1, epochs + 1):
        if max_steps is not None and len(steps) >= max_steps:
            break
        ranks = np.arange(count)
        if order == "shuffled":
            ranks = np.random.default_rng([seed, epoch]).permutation(count)
        batches = (ranks[start : start + batch_size] for start in range(0, count, batch_size))
        steps += [PlannedStep(epoch=epoch, rows=tuple(batch.tolist())) for batch in batches]
    return tuple(steps[:max_steps])


def planned_places(steps: Sequence[PlannedStep], sample_ids: Sequence[str]) -> list[Place]:
    """Where every sample has to stand; ``sample_ids`` are in the order of their ranks."""
    return [
        Place(step.epoch, number, position, sample_ids[row])
        for number, step in enumerate(steps, start=1)
        for position, row in enumerate(step.rows)
    ]


def check_order(planned: Sequence[Place], seen: Sequence[Place]) -> None:
    """Raise EgtError at the first place where the optimiser saw anything but the plan."""
    for expected, found in zip(planned, seen, strict=False):
        if expected != found:
            raise EgtError(
                f"order.parquet: step {expected.step}, position {expected.position} of epoch {expected.epoch} has to "
                f"hold sample_id {expected.sample_id!r}, but the optimiser saw {found}"
            )
    if len(planned) != len(seen):
        raise EgtError(f"order.parquet: the optimiser saw {len(seen)} samples, the plan has {len(planned)}")
