"""Keys that need a look: each waits once, however often it is asked for, and no two workers have the same one."""

import asyncio
import contextlib
import heapq
from collections import deque
from collections.abc import Callable


class WorkQueue:
    """A queue of keys. A key that comes while a worker has it waits until the worker is done.

    ``clock`` is monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ready: deque[str] = deque()
        self._waiting: set[str] = set()
        self._held: dict[str, bool] = {}  # True: came again meanwhile
        self._later: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """How many keys wait for a worker."""
        return len(self._ready)

    def add(self, key: str, delay_seconds: float = 0.0) -> None:
        """Ask for a look at ``key``; of several delayed asks the earliest counts."""
        if delay_seconds > 0:
            at = self._clock() + delay_seconds
            if at < self._due.get(key, float("inf")):
                self._due[key] = at
                heapq.heappush(self._later, (at, key))
        elif key in self._held:
            self._held[key] = True
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.append(key)
        self._changed.set()

    async def get(self) -> str:
        """The next key; ``done`` gives it back."""
        while True:
            pause = self._move_due()
            if self._ready:
                key = self._ready.popleft()
                self._waiting.discard(key)
                self._held[key] = False
                return key
            self._changed.clear()
            with contextlib.suppress(TimeoutError):  # wait_for of Python 3.11 may swallow a cancellation
                async with asyncio.timeout(pause):
                    await self._changed.wait()

    def done(self, key: str) -> None:
        """The worker has finished with ``key``."""
        if self._held.pop(key):
            self.add(key)

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
