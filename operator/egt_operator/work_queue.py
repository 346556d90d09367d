"""Keys that need a look: each waits once, however often it is asked for, and no two workers have the same one."""

import asyncio
import contextlib
import heapq
from collections import OrderedDict
from collections.abc import Callable


class WorkQueue:
    """A queue of keys. A key that comes while a worker has it waits until the worker is done; urgent ones go first.

    ``clock`` is monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._urgent: OrderedDict[str, None] = OrderedDict()
        self._ready: OrderedDict[str, None] = OrderedDict()
        self._held: set[str] = set()
        self._again: dict[str, bool] = {}  # came while they were held; True: one of the times urgently
        self._later: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """How many keys wait for a worker."""
        return len(self._urgent) + len(self._ready)

    def add(self, key: str, delay_seconds: float = 0.0, *, urgent: bool = False) -> None:
        """Ask for a look at ``key``; of several delayed asks the earliest counts."""
        if delay_seconds > 0:
            at = self._clock() + delay_seconds
            if at < self._due.get(key, float("inf")):
                self._due[key] = at
                heapq.heappush(self._later, (at, key))
        elif key in self._held:
            self._again[key] = self._again.get(key, False) or urgent
        elif urgent:
            self._ready.pop(key, None)
            self._urgent[key] = None
        elif key not in self._urgent:
            self._ready[key] = None
        self._changed.set()

    async def get(self) -> str:
        """The next key; ``done`` gives it back."""
        while True:
            pause = self._move_due()
            if ready := self._urgent or self._ready:
                key, _ = ready.popitem(last=False)
                self._held.add(key)
                return key
            self._changed.clear()
            with contextlib.suppress(TimeoutError):  # wait_for of Python 3.11 may swallow a cancellation
                async with asyncio.timeout(pause):
                    await self._changed.wait()

    def done(self, key: str) -> None:
        """The worker has finished with ``key``."""
        self._held.remove(key)
        if key in self._again:
            self.add(key, urgent=self._again.pop(key))

    def _move_due(self) -> float | None:
        """Moves what is due to the waiting keys; seconds until the next is."""
        while self._later:
            at, key = self._later[0]
            if self._due.get(key) != at:
                heapq.heappop(self._later)  # replaced by an earlier ask, or forgotten
                continue
            if at > self._clock():
                return at - self._clock()
            heapq.heappop(self._later)
            del self._due[key]
            self.add(key)
        return None
