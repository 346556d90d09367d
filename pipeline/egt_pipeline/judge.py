"""Who says whether the reasoning supports the answer (R_logic): rules, an OpenAI-compatible model, or nobody.

The model sees text only: the last lines of the reasoning and the verdict (R1-Reward section 4.3). A judge that fails
counts 0, never more, and the failure is counted; one that refuses its key or its model ends the run.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from openai import AsyncOpenAI, OpenAIError

from egt_pipeline.chat import REFUSED, api_key, refusal
from egt_pipeline.contract.base import Endpoint
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.recipes import LogicJudge
from egt_pipeline.rewards import Answer, Logic, rule_logic

_LAST_LINES = 3  # a conclusion stands at the end (R1-Reward's reward server sends as many)
_RETRIES = 3  # the client waits longer before each
_LONGEST_VERDICT = 8  # tokens; one digit is asked for

_PROMPT = """A model compared two responses and then gave its verdict. Say whether the verdict follows.

End of its comparison:
{reasoning}

Its verdict: Response {answer} is better.

Write 1 if the comparison comes to the same verdict.
Write 0 if it comes to the other one, praises or rejects both alike, or leaves it open.
Write the single digit and nothing else."""


@dataclass(frozen=True)
class Judgement:
    """R_logic, and whether the judge failed to give one."""

    logic: Logic
    failed: bool = False


Judge = Callable[[str, Answer], Awaitable[Judgement]]


def judge_for(recipe: LogicJudge, *, askers: int) -> Judge:
    """The judge of a recipe: called with a reasoning and the answer it led to.

    ``askers`` like it share what may be asked of a service at once. Raises TaskError if its key is unset.
    """
    match recipe.kind:
        case "rule":
            return _by_rule
        case "none":
            return _nobody
    assert recipe.endpoint is not None  # the recipe's own validation
    return EndpointJudge(recipe.endpoint, at_once=max(1, recipe.endpoint.concurrency // askers))


async def _by_rule(reasoning: str, answer: Answer) -> Judgement:
    return Judgement(rule_logic(reasoning, answer))


async def _nobody(_reasoning: str, _answer: Answer) -> Judgement:
    return Judgement(0)


class EndpointJudge:
    """Asks the service once for each different question; at most ``at_once`` requests are under way."""

    def __init__(self, endpoint: Endpoint, *, at_once: int) -> None:
        try:
            key = api_key(endpoint)
        except TaskError as error:
            raise TaskError(f"rl.judge.endpoint.{error}") from None
        self._endpoint = endpoint
        self._client = AsyncOpenAI(
            base_url=endpoint.base_url, api_key=key, timeout=endpoint.timeout_seconds, max_retries=_RETRIES
        )
        self._slots = asyncio.Semaphore(at_once)
        self._answers = False  # it has, at least once
        self._asked: dict[str, asyncio.Task[Judgement]] = {}  # answered, or under way

    async def __call__(self, reasoning: str, answer: Answer) -> Judgement:
        """+1 for "1", -1 for "0"; 0 and failed when the service fails or says anything else.

        Raises TaskError when it refuses the key or the model before it has ever answered: every answer would be 0.
        """
        question = _PROMPT.format(reasoning="\n".join(reasoning.splitlines()[-_LAST_LINES:]), answer=answer)
        key = hashlib.sha256(question.encode()).hexdigest()
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = asyncio.create_task(self._judged(question))
            asked.add_done_callback(partial(self._forget_failure, key))
        return await asyncio.shield(asked)  # one that no longer waits takes nothing from the others

    def _forget_failure(self, key: str, asked: "asyncio.Task[Judgement]") -> None:
        """The next one asks again."""
        if asked.cancelled() or asked.exception() or asked.result().failed:
            del self._asked[key]

    async def _judged(self, question: str) -> Judgement:
        try:
            async with self._slots:
                said = await self._ask(question)
        except REFUSED as error:
            if self._answers:  # a gateway says so too, while what is behind it starts anew
                return Judgement(0, failed=True)
            raise TaskError(f"rl.judge.endpoint: {refusal(self._endpoint, error)}") from None
        except (OpenAIError, AttributeError, TypeError, ValueError, IndexError):  # also a body that is no completion
            return Judgement(0, failed=True)
        self._answers = True
        return Judgement(1 if said == "1" else -1) if said in ("0", "1") else Judgement(0, failed=True)

    async def _ask(self, question: str) -> str:
        completion = await self._client.chat.completions.create(
            model=self._endpoint.model,
            messages=[{"role": "user", "content": question}],
            temperature=0.0,
            max_tokens=_LONGEST_VERDICT,
        )
        return (completion.choices[0].message.content or "").strip() if completion.choices else ""
