"""Whether what an RL run's steps say lets it go on. Pure."""

import math
from collections import deque

from egt_pipeline.contract.errors import TaskError, UnavailableError
from egt_pipeline.contract.recipes import RLRecipe
from egt_pipeline.rl_records import StepRecord

_FEWEST_QUESTIONS = 32  # of which a share says something
# Of the newest that count: a judge that fails late is noticed within a few steps of 224, and one step without it is not
# the end.
_NEWEST_QUESTIONS = 1024


class Health:
    """Sees every step of an attempt once, in order."""

    def __init__(self, recipe: RLRecipe, attempt: int) -> None:
        self._recipe, self._attempt = recipe, attempt
        self._steps: deque[tuple[int, int]] = deque()  # questions, and how many of them were not answered

    def check(self, record: StepRecord) -> None:
        """Raises TaskError when the training has left the numbers, UnavailableError when the judge hardly answers."""
        for name, value in (("loss", record.sums["loss"]), ("gradient norm", record.grad_norm)):
            if not math.isfinite(value):
                raise TaskError(f"rl: the {name} of step {record.step} is {value}; lower rl.learningRate")
        if record.attempt == self._attempt:  # what the judge was like in an earlier one says nothing of now
            self._check_judge(record)

    def _check_judge(self, record: StepRecord) -> None:
        judge = self._recipe.judge
        if judge.endpoint is None or self._recipe.logic_weight == 0:
            return
        # Nobody is asked about a wrong answer.
        asked = sum(sample["accuracy"] > 0 for sample in record.samples)
        self._steps.append((asked, sum(int(sample["judge_failed"]) for sample in record.samples)))
        while sum(asked for asked, _ in self._steps) - self._steps[0][0] >= _NEWEST_QUESTIONS:
            self._steps.popleft()
        asked, failed = (sum(column) for column in zip(*self._steps, strict=True))
        if asked >= _FEWEST_QUESTIONS and failed > judge.max_failed_share * asked:
            raise UnavailableError(
                f"rl.judge.endpoint: {judge.endpoint.base_url} left {failed} of the last {asked} questions unanswered "
                f"by step {record.step}, more than maxFailedShare {judge.max_failed_share}"
            )
