"""Histories in which anything may go wrong: events that never come or come late, an API server that refuses, answers
late or not at all, an operator that dies. What must hold holds in all of them.
"""

import asyncio
import random
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from kubernetes.aio.client.exceptions import ApiException

from build_egtrun import SETTINGS, egtrun, operator_of, status_of
from egt_operator.cache import Kind
from egt_operator.children import JOB_LABEL
from egt_operator.controller import Controller
from fake_cluster import Crash, Ending, FakeCluster

STAGES = ["prepare", "distill", "sft", "probe", "curate", "rl", "evaluate"]
STEP_SECONDS = 2.0
LIMIT_STEPS = 6 * 3600  # twelve hours; a run without trouble takes three minutes


class History:
    """One run from its creation to its end; what goes wrong when follows from ``seed``."""

    def __init__(self, seed: int, *, failures: bool) -> None:
        self.dice = random.Random(seed)
        self.late: list[tuple[Kind, Any, bool]] = []
        self.most_alive = 0
        ends = {stage: self.dice.randrange(3) * self.dice.randrange(2) for stage in STAGES} if failures else {}
        self.failures = {stage: count for stage, count in ends.items() if count}
        self.cluster = FakeCluster(script=self.ending, before=self.before, after=self.after)
        self.cluster.apply(egtrun(retry={"crash": 5}))

    def ending(self, stage: str, attempt: int) -> Ending:
        return Ending(exit_code=1) if attempt <= self.failures.get(stage, 0) else Ending()

    def before(self, _call: int) -> None:
        luck = self.dice.random()
        if luck < 0.06:
            raise ApiException(status=self.dice.choice([429, 500, 503]), reason="trouble")
        if luck < 0.08:
            raise TimeoutError("the request never arrived")
        if luck < 0.10:
            raise Crash

    def after(self, _call: int) -> None:
        luck = self.dice.random()
        if luck < 0.05:
            raise TimeoutError("carried out, and the answer was lost")
        if luck < 0.07:
            raise Crash

    def hear(self, kind: Kind, body: Any, gone: bool) -> None:
        luck = self.dice.random()
        if luck < 0.3:
            if luck > 0.15:
                self.late.append((kind, body, gone))
            return
        self.controller.heard(kind, body, gone=gone)

    async def play(self) -> None:
        await self.operator_starts()
        refreshed = self.cluster.seconds()
        for _ in range(LIMIT_STEPS):
            if status_of(self.cluster).get("phase") in ("Complete", "Failed"):
                return
            try:
                if self.cluster.seconds() - refreshed >= SETTINGS.resync_seconds:
                    refreshed = self.cluster.seconds()
                    await self.controller.refresh()
                await self.look_at_all_that_is_due()
            except Crash:
                await self.operator_starts()
            self.cluster.advance(STEP_SECONDS)
            alive = [pod for pod in self.cluster.objects("pod") if pod["status"]["phase"] in ("Pending", "Running")]
            self.most_alive = max(self.most_alive, len({pod["metadata"]["labels"][JOB_LABEL] for pod in alive}))
            self.dice.shuffle(self.late)
            while self.late and self.dice.random() < 0.5:
                kind, body, gone = self.late.pop()
                self.controller.heard(kind, body, gone=gone)
        raise AssertionError(f"never ended: {status_of(self.cluster)}")

    async def operator_starts(self) -> None:
        self.controller: Controller = operator_of(self.cluster)
        self.cluster.heard, self.late = self.hear, []
        await self.controller.refresh()

    async def look_at_all_that_is_due(self) -> None:
        while (key := await self.next_key()) is not None:
            try:
                await self.controller.look(key)
            finally:
                self.controller.queue.done(key)

    async def next_key(self) -> str | None:
        waiting = asyncio.ensure_future(self.controller.queue.get())
        await asyncio.sleep(0)
        if waiting.done():
            return waiting.result()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return None


@pytest.mark.parametrize("seed", range(60))
def test_whatever_goes_wrong_around_it_a_run_completes_with_every_stage_done_once(seed: int) -> None:
    history = History(seed, failures=False)
    asyncio.run(history.play())
    assert history.cluster.created == [f"digits-{stage}-a1" for stage in STAGES]
    assert status_of(history.cluster)["phase"] == "Complete"


@pytest.mark.parametrize("seed", range(60))
def test_whatever_goes_wrong_around_it_each_failed_attempt_is_followed_by_one(seed: int) -> None:
    history = History(seed, failures=True)
    asyncio.run(history.play())
    assert status_of(history.cluster)["phase"] == "Complete"
    attempts = Counter(name.split("-")[1] for name in history.cluster.created)
    assert attempts == {stage: 1 + history.failures.get(stage, 0) for stage in STAGES}
    assert history.most_alive == 1


def test_a_run_that_nothing_goes_wrong_around_is_done_without_a_resync() -> None:
    history = History(0, failures=False)
    history.cluster.before = history.cluster.after = lambda _call: None
    history.hear = lambda kind, body, gone: history.controller.heard(kind, body, gone=gone)  # type: ignore[method-assign]
    began = history.cluster.now
    asyncio.run(history.play())
    assert history.cluster.now - began < timedelta(seconds=SETTINGS.resync_seconds)
