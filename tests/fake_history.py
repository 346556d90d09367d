"""Histories of a run against a cluster in memory, in which anything may go wrong: events that never come or come late,
an API server that refuses, answers late or not at all, an operator that dies.
"""

import asyncio
import random
from collections import Counter
from typing import Any

from build_egtrun import SETTINGS, egtrun, operator_of, status_of
from egt_operator.cache import Kind
from egt_operator.children import JOB_LABEL
from egt_operator.controller import Controller
from fake_cluster import FakeCluster
from fake_stages import Ending
from trouble import Crash, Trouble

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
        trouble = Trouble(self.dice)
        self.cluster = FakeCluster(script=self.ending, before=trouble.before, after=trouble.after)
        self.cluster.apply(egtrun(retry={"crash": 5}))

    def ending(self, stage: str, attempt: int) -> Ending:
        return Ending(exit_code=1) if attempt <= self.failures.get(stage, 0) else Ending()

    def check(self) -> None:
        """Every stage was done once, its failed attempts aside, and no two attempts were ever alive at once."""
        attempts = Counter(name.split("-")[1] for name in self.cluster.created)
        assert status_of(self.cluster)["phase"] == "Complete"
        assert attempts == {stage: 1 + self.failures.get(stage, 0) for stage in STAGES}
        assert self.most_alive == 1

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
