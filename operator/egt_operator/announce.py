"""Logs and Events of what changed. Events are posted beside the work: nobody's next stage waits for them."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

from egt_operator.api_status import EGTRunStatus
from egt_operator.cluster import Cluster
from egt_operator.cluster_errors import TROUBLE, Refused, told
from egt_operator.events import happened, render_event
from egt_operator.render import Owner

_WAITING = 10_000  # events, each of a kilobyte; what comes on top of so many only stands in the log
log = logging.getLogger("egt_operator")


class Announcer:
    """Says what happened to runs."""

    def __init__(self, cluster: Cluster, now: Callable[[], datetime]) -> None:
        self._cluster, self._now = cluster, now
        self._waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_WAITING)

    def changed(self, owner: Owner, before: EGTRunStatus | None, after: EGTRunStatus) -> None:
        """Log a change, and have it posted."""
        for found in happened(before, after):
            about = {"run": f"{owner.namespace}/{owner.name}", "stage": found.stage, "attempt": found.attempt}
            log.info("%s: %s", found.reason, found.message, extra={name: of for name, of in about.items() if of})
            if not self._waiting.full():
                self._waiting.put_nowait(render_event(found, owner, self._now()))

    async def post_waiting(self) -> None:
        """Post what waits."""
        while not self._waiting.empty():
            await self._post(self._waiting.get_nowait())

    async def work(self) -> None:
        """Post events as they come; ends only when it is cancelled."""
        while True:
            await self._post(await self._waiting.get())

    async def _post(self, event: dict[str, Any]) -> None:
        try:
            await self._cluster.create_event(event)
        except (*TROUBLE, Refused) as error:
            log.warning("no event %s of %s: %s", event["reason"], event["involvedObject"]["name"], told(error))
