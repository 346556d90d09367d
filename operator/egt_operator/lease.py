"""One replica works at a time: whoever holds the Lease, as client-go's leader election has it.

The client library's own election cannot create its Lease in version 37.0 (it passes a bool where its types want text).
Clocks of other machines are never compared: a lease counts as expired when it has not changed for its duration by this
process's own clock.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from egt_operator.cluster import Cluster
from egt_operator.cluster_errors import TROUBLE, Conflict, told

# As client-go's defaults: a holder that cannot renew for ten seconds gives up before another may begin.
DURATION_SECONDS, RENEW_SECONDS, RETRY_SECONDS = 15.0, 10.0, 2.0
log = logging.getLogger("egt_operator")


@dataclass
class Lease:
    """A candidate for the lease ``namespace/name``. ``clock`` is monotonic seconds."""

    cluster: Cluster
    namespace: str
    name: str
    identity: str
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    def __post_init__(self) -> None:
        self._seen: tuple[str, float] = "", self.clock()
        self._held: dict[str, Any] | None = None  # as it was written last: renewing it takes one request, not two

    async def acquire(self) -> None:
        """Returns once this process holds the lease."""
        stands_by = False
        while not await self._try():
            if not stands_by:
                log.info("stands by for the lease %s/%s, as %s", self.namespace, self.name, self.identity)
            stands_by = True
            await self.sleep(RETRY_SECONDS)

    async def hold(self) -> None:
        """Renews the lease; returns once it is lost."""
        renewed = self.clock()
        while self.clock() - renewed < RENEW_SECONDS:
            await self.sleep(RETRY_SECONDS)
            began = self.clock()
            with contextlib.suppress(TimeoutError):  # a request may hang for longer than the lease lasts
                async with asyncio.timeout(max(RENEW_SECONDS - (began - renewed), 0.0)):
                    if await self._try():
                        renewed = began
        log.error("the lease %s/%s is lost", self.namespace, self.name)

    async def release(self) -> None:
        """Give the lease back, so that another need not wait for its end."""
        lease = await self.cluster.lease(self.namespace, self.name)
        if lease is not None and lease["spec"].get("holderIdentity") == self.identity:
            await self.cluster.replace_lease({**lease, "spec": {**lease["spec"], "holderIdentity": ""}})

    async def _try(self) -> bool:
        """True if the lease was taken or renewed."""
        lease, self._held = self._held, None
        try:
            lease = lease or await self.cluster.lease(self.namespace, self.name)
            if lease is None:
                self._held = await self.cluster.create_lease(self._body())
            elif self._is_free(lease):
                self._held = await self.cluster.replace_lease(self._body(lease))
        except Conflict:
            return False  # another was faster, or has written it since
        except TROUBLE as error:
            log.warning("lease %s/%s: %s", self.namespace, self.name, told(error))
        return self._held is not None

    def _is_free(self, lease: dict[str, Any]) -> bool:
        holder = lease["spec"].get("holderIdentity")
        if holder in ("", None, self.identity):
            return True
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = version, self.clock()
        lasts: float = lease["spec"].get("leaseDurationSeconds", DURATION_SECONDS)
        return self.clock() - self._seen[1] > lasts

    def _body(self, lease: dict[str, Any] | None = None) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": self.identity, "leaseDurationSeconds": int(DURATION_SECONDS), "renewTime": now}
        old = lease["spec"] if lease else {}
        if old.get("holderIdentity") != self.identity:
            spec |= {"acquireTime": now, "leaseTransitions": old.get("leaseTransitions", 0) + 1}
        metadata = lease["metadata"] if lease else {"name": self.name, "namespace": self.namespace}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": {**old, **spec}}
