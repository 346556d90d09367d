"""Steps that let a run go on, and steps that do not."""

import math
from typing import Any

import pytest

from egt_pipeline.contract.base import Endpoint
from egt_pipeline.contract.errors import TaskError, UnavailableError
from egt_pipeline.contract.recipes import LogicJudge, RLRecipe
from egt_pipeline.rl_health import Health
from egt_pipeline.rl_records import StepRecord

JUDGED = RLRecipe(judge=LogicJudge(kind="endpoint", endpoint=Endpoint(model="judge"), max_failed_share=0.25))


def step(
    *, failed: int = 0, right: int = 40, attempt: int = 1, loss: float = 0.1, grad_norm: float = 1.0
) -> StepRecord:
    samples: list[dict[str, Any]] = [{"accuracy": 1.0, "judge_failed": float(place < failed)} for place in range(right)]
    wrong = {"accuracy": 0.0, "judge_failed": 0.0}
    return StepRecord(1, attempt, 0.0, [*samples, *[wrong] * 100], grad_norm, {"loss": loss})


@pytest.mark.parametrize(("name", "value"), [("loss", math.nan), ("loss", math.inf), ("grad_norm", math.nan)])
def test_a_training_that_has_left_the_numbers_ends(name: str, value: float) -> None:
    with pytest.raises(TaskError, match=rf"step 1 is {value}; lower rl\.learningRate"):
        Health(RLRecipe(), attempt=1).check(step(**{name: value}))  # type: ignore[arg-type]


def test_a_judge_that_fails_more_than_its_share_ends_the_attempt() -> None:
    with pytest.raises(UnavailableError, match=r"left 11 of the last 40 questions unanswered .* maxFailedShare 0\.25"):
        Health(JUDGED, attempt=1).check(step(failed=11))


def test_a_judge_that_fails_within_its_share_does_not() -> None:
    Health(JUDGED, attempt=1).check(step(failed=10))


def test_a_few_questions_say_nothing_of_a_judge() -> None:
    Health(JUDGED, attempt=1).check(step(failed=4, right=4))


def test_questions_of_all_steps_count() -> None:
    health = Health(JUDGED, attempt=1)
    health.check(step(failed=0))
    health.check(step(failed=20))
    with pytest.raises(UnavailableError, match="left 40 of the last 120"):
        health.check(step(failed=20))


def test_a_judge_that_fails_after_thousands_of_answers_is_noticed_as_soon() -> None:
    health = Health(JUDGED, attempt=1)
    for _ in range(10):
        health.check(step(right=1000))
    with pytest.raises(UnavailableError, match="left 1000 of the last 2000"):
        health.check(step(failed=1000, right=1000))


def test_what_the_judge_failed_in_an_earlier_attempt_does_not_count() -> None:
    Health(JUDGED, attempt=2).check(step(failed=40, attempt=1))
