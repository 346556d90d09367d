"""The plan of an RL run, and the check that the optimiser followed it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egt_pipeline.contract.errors import EgtError
from egt_pipeline.curriculum import Place, PlannedStep, check_order, plan_steps, planned_places

SORTED = {"order": "sorted", "epochs": 2, "batch_size": 4, "max_steps": None, "seed": 0}


def plan(count: int, **changed: object) -> tuple[PlannedStep, ...]:
    return plan_steps(count, **{**SORTED, **changed})  # type: ignore[arg-type]


def test_each_epoch_ascends_and_its_last_batch_stays_short() -> None:
    assert [(step.epoch, step.rows) for step in plan(10)] == [
        (1, (0, 1, 2, 3)), (1, (4, 5, 6, 7)), (1, (8, 9)),
        (2, (0, 1, 2, 3)), (2, (4, 5, 6, 7)), (2, (8, 9)),
    ]  # fmt: skip


def test_a_limit_on_steps_cuts_within_an_epoch() -> None:
    assert [step.epoch for step in plan(10, epochs=20, max_steps=5)] == [1, 1, 1, 2, 2]


@given(st.integers(1, 50), st.integers(1, 12), st.integers(1, 4), st.sampled_from(["sorted", "shuffled"]))
def test_every_epoch_holds_every_sample_once(count: int, batch_size: int, epochs: int, order: str) -> None:
    steps = plan(count, batch_size=batch_size, epochs=epochs, order=order)
    for epoch in range(1, epochs + 1):
        batches = [step.rows for step in steps if step.epoch == epoch]
        assert sorted(row for rows in batches for row in rows) == list(range(count))
        assert all(len(rows) == batch_size for rows in batches[:-1])


def test_shuffling_differs_from_epoch_to_epoch_and_repeats_with_the_seed() -> None:
    first, second = plan(40, order="shuffled", batch_size=40)
    assert first.rows != second.rows != tuple(range(40))
    assert plan(40, order="shuffled", batch_size=40) == (first, second)
    assert plan(40, order="shuffled", batch_size=40, seed=1) != (first, second)


def places() -> list[Place]:
    return planned_places(plan(10), [f"s{row}" for row in range(10)])


def test_the_plan_itself_passes_the_check() -> None:
    assert places()[-1] == Place(epoch=2, step=6, position=1, sample_id="s9")
    check_order(places(), places())


def test_two_samples_exchanged_within_a_step_fail_the_check() -> None:
    seen = places()
    seen[4] = replace(seen[4], sample_id="s5")
    seen[5] = replace(seen[5], sample_id="s4")
    with pytest.raises(EgtError, match=r"step 2, position 0 of epoch 1 has to hold sample_id 's4'"):
        check_order(places(), seen)


def test_a_dropped_last_batch_fails_the_check() -> None:
    seen = [place for place in places() if place.step != 3]
    with pytest.raises(EgtError, match="step 3"):
        check_order(places(), seen)


@pytest.mark.parametrize("change", [lambda p: p[:-1], lambda p: [*p, p[-1]]])
def test_a_sample_too_few_or_too_many_at_the_end_fails_the_check(change: object) -> None:
    with pytest.raises(EgtError, match="the plan has 20"):
        check_order(places(), change(places()))  # type: ignore[operator]
