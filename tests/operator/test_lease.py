"""Who works: the holder of the lease, and another only once it has not been renewed for its duration."""

import asyncio
import copy
from typing import Any

from egt_operator.cluster_errors import Conflict
from egt_operator.lease import DURATION_SECONDS, RENEW_SECONDS, Lease


class Leases:
    """A cluster with one lease, and a clock that sleeping turns on."""

    def __init__(self) -> None:
        self.body: dict[str, Any] | None = None
        self.time = 0.0
        self.reachable = True
        self.version = 0
        self.requests = 0

    async def lease(self, _namespace: str, _name: str) -> dict[str, Any] | None:
        self._request()
        return copy.deepcopy(self.body)

    async def create_lease(self, lease: dict[str, Any]) -> dict[str, Any]:
        self._request()
        if self.body is not None:
            raise Conflict("exists")
        return self._store(lease)

    async def replace_lease(self, lease: dict[str, Any]) -> dict[str, Any]:
        self._request()
        assert self.body is not None
        if lease["metadata"]["resourceVersion"] != self.body["metadata"]["resourceVersion"]:
            raise Conflict("changed")
        return self._store(lease)

    def _request(self) -> None:
        self.requests += 1
        if not self.reachable:
            raise OSError("no route")

    def _store(self, lease: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.body = copy.deepcopy(lease)
        self.body["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(self.body)

    async def sleep(self, seconds: float) -> None:
        self.time += seconds

    def candidate(self, name: str) -> Lease:
        return Lease(self, "ns", "egt", name, lambda: self.time, self.sleep)  # type: ignore[arg-type]

    @property
    def holder(self) -> str:
        assert self.body is not None
        found: str = self.body["spec"]["holderIdentity"]
        return found


def test_the_first_takes_it_and_the_second_waits_for_its_end() -> None:
    leases = Leases()
    asyncio.run(leases.candidate("first").acquire())
    asyncio.run(leases.candidate("second").acquire())  # nobody renews meanwhile
    assert leases.holder == "second"
    assert leases.time > DURATION_SECONDS


def test_a_released_lease_is_taken_at_once() -> None:
    leases = Leases()
    first = leases.candidate("first")
    asyncio.run(first.acquire())
    asyncio.run(first.release())
    asyncio.run(leases.candidate("second").acquire())
    assert leases.holder == "second"
    assert leases.time == 0


def test_nobody_releases_what_another_holds() -> None:
    leases = Leases()
    first, second = leases.candidate("first"), leases.candidate("second")
    asyncio.run(first.acquire())
    asyncio.run(second.release())
    assert leases.holder == "first"


def test_a_holder_that_cannot_renew_gives_up_before_another_may_begin() -> None:
    leases = Leases()
    first = leases.candidate("first")
    asyncio.run(first.acquire())
    leases.reachable = False
    asyncio.run(first.hold())
    assert RENEW_SECONDS <= leases.time < DURATION_SECONDS


def test_a_request_that_hangs_does_not_keep_a_holder_beyond_its_time() -> None:
    leases = Leases()
    first = leases.candidate("first")
    asyncio.run(first.acquire())

    async def hangs(*_: Any) -> None:
        await asyncio.Event().wait()

    async def nearly_too_long(_seconds: float) -> None:
        leases.time += RENEW_SECONDS - 0.01  # what is left of its time is waited for by a real clock

    leases.lease = leases.replace_lease = hangs  # type: ignore[method-assign, assignment]
    first.sleep = nearly_too_long
    asyncio.run(asyncio.wait_for(first.hold(), timeout=5))


def test_a_renewal_takes_one_request_and_one_that_somebody_else_has_written_three() -> None:
    leases = Leases()
    first = leases.candidate("first")
    asyncio.run(first.acquire())
    before = leases.requests
    assert asyncio.run(first._try())
    assert leases.requests == before + 1
    leases._store({**(leases.body or {}), "metadata": {"labels": {"by": "somebody"}}})
    assert [asyncio.run(first._try()) for _ in range(2)] == [False, True]
    assert leases.requests == before + 4


def test_a_renewed_lease_is_not_taken() -> None:
    leases = Leases()
    first, second = leases.candidate("first"), leases.candidate("second")

    async def both() -> bool:
        await first.acquire()
        for _ in range(20):
            await leases.sleep(2.0)
            await first._try()
            if await second._try():
                return True
        return False

    assert not asyncio.run(both())
    assert leases.holder == "first"
