"""Progress out of the logs of pods, read beside the work: a node that does not answer keeps no run waiting."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from egt_operator.cluster import Cluster
from egt_operator.cluster_errors import TROUBLE, Refused, told
from egt_operator.progress import last_progress
from egt_pipeline.contract.task import Progress

log = logging.getLogger("egt_operator")


@dataclass
class Heard:
    """What the log of a job has said. ``at`` is when it was read last, ``asked`` when somebody last asked for it."""

    namespace: str
    job: str
    progress: Progress | None = None
    at: datetime | None = None
    asked: float = float("-inf")
    waits: bool = False
    unreadable: bool = False


class LogReader:
    """Reads the first rank's log of jobs when asked to; ``news`` is told the key of a run whose log was read."""

    def __init__(
        self, cluster: Cluster, now: Callable[[], datetime], clock: Callable[[], float], news: Callable[[str], None]
    ) -> None:
        self._cluster, self._now, self._clock, self._news = cluster, now, clock, news
        self._heard: dict[str, Heard] = {}
        self._waiting: asyncio.Queue[str] = asyncio.Queue()

    def of(self, key: str, namespace: str, job: str) -> Heard:
        """What the job at work for the run has said so far."""
        found = self._heard.get(key)
        if found is None or found.job != job:
            found = self._heard[key] = Heard(namespace, job)
        return found

    def ask(self, key: str, every_seconds: float) -> None:
        """Have the log read, if that is as long ago as that."""
        heard = self._heard[key]
        if not heard.waits and self._clock() - heard.asked >= every_seconds:
            heard.waits, heard.asked = True, self._clock()
            self._waiting.put_nowait(key)

    def forget(self, key: str) -> None:
        """Nothing of the run is at work."""
        self._heard.pop(key, None)

    async def read_waiting(self) -> None:
        """Read what waits."""
        while not self._waiting.empty():
            await self._read(self._waiting.get_nowait())

    async def work(self) -> None:
        """Read as it is asked for; ends only when it is cancelled."""
        while True:
            await self._read(await self._waiting.get())

    async def _read(self, key: str) -> None:
        heard = self._heard.get(key)
        if heard is None:
            return
        heard.waits = False
        try:
            text = await self._cluster.log_end(heard.namespace, f"{heard.job}-master-0")
        except (*TROUBLE, Refused) as error:
            if not heard.unreadable:  # a node that does not answer is asked again and again, and said once
                log.warning("%s: no log of %s: %s", key, heard.job, told(error), extra={"run": key})
            heard.unreadable = True
            return
        heard.unreadable = False
        heard.progress, heard.at = last_progress(text) or heard.progress, self._now()
        self._news(key)
