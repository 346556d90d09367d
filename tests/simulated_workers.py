"""Probe workers on a clock of their own: they take chunks by the real rule, at their own speed, stop and come back.

What takes time is the only thing made up: the length of the responses, how fast a worker is, when it dies.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from egt_pipeline.chunks import Chunk, share


@dataclass(frozen=True)
class Worker:
    """``speed`` in rows of average length a second. Once lost, it is back after ``away_seconds`` with a new process."""

    speed: float = 10.0
    starts_seconds: float = 180.0  # to load a model
    lost_at_seconds: float | None = None
    away_seconds: float = 60.0


def fleet() -> list[Worker]:
    """32 workers: every tenth at 0.6 of the others' speed, two lost for a while."""
    lost = {5: 250.0, 17: 300.0}
    return [Worker(speed=6 if number % 10 == 9 else 10, lost_at_seconds=lost.get(number)) for number in range(32)]


class _Board:
    """What all workers see of each other's work."""

    def __init__(self) -> None:
        self._committed: set[str] = set()
        self._claimed: set[str] = set()

    def committed(self) -> set[str]:
        return self._committed

    def claimed(self) -> set[str]:
        return self._claimed

    def claim(self, name: str) -> bool:
        return _add(self._claimed, name)

    def commit(self, name: str) -> bool:
        return _add(self._committed, name)


def _add(names: set[str], name: str) -> bool:
    first = name not in names
    names.add(name)
    return first


@dataclass(frozen=True)
class Outcome:
    """``makespan_seconds`` until every chunk was committed; ``made`` counts how often each was made whole."""

    makespan_seconds: float
    ideal_seconds: float
    made: Counter[str]


@dataclass(order=True)
class _Event:
    seconds: float
    number: int
    worker: int = field(compare=False)
    life: int = field(compare=False)
    what: str = field(compare=False)
    chunk: Chunk | None = field(compare=False, default=None)


Rule = Callable[[Sequence[Chunk], int, int, _Board], Iterator[Chunk]]
"""Which chunks a worker makes: all of them, its number, how many there are, what is seen of each other."""


class Simulation:
    """One probe of ``rows`` rows in chunks; each worker has ``ahead`` chunks open, taken by ``rule``."""

    def __init__(
        self, workers: Sequence[Worker], rows: int, chunk_rows: int, seed: int, ahead: int = 2, rule: Rule = share
    ) -> None:
        drawn = np.random.default_rng(seed)
        self._workers, self._ahead, self._rule = workers, ahead, rule
        lengths = drawn.lognormal(0, 0.6, rows)
        lengths /= lengths.mean()
        starts = range(0, rows, chunk_rows)
        self._chunks = [Chunk("", number, range(at, min(at + chunk_rows, rows))) for number, at in enumerate(starts)]
        self._cost = [float(lengths[at : at + chunk_rows].sum()) for at in starts]
        self._board = _Board()
        self._made: Counter[str] = Counter()
        self._events: list[_Event] = []
        self._lives = [0] * len(workers)
        self._open: list[list[Chunk]] = [[] for _ in workers]
        self._share: list[Iterator[Chunk]] = [iter(()) for _ in workers]

    def run(self) -> Outcome:
        """Until every chunk is committed."""
        for number, worker in enumerate(self._workers):
            self._at(worker.starts_seconds, number, "start")
            if worker.lost_at_seconds is not None:
                self._at(worker.lost_at_seconds, number, "lost")
        left = len(self._chunks)
        while left:
            event = heapq.heappop(self._events)
            if event.life != self._lives[event.worker]:
                continue
            left -= self._happen(event)
        return Outcome(event.seconds, self._ideal(), self._made)

    def _happen(self, event: _Event) -> bool:
        """True if a chunk was committed for the first time."""
        number, worker = event.worker, self._workers[event.worker]
        if event.what == "lost":
            self._lives[number] += 1
            self._open[number].clear()
            self._at(event.seconds + worker.away_seconds + worker.starts_seconds, number, "start")
            return False
        first = False
        if event.what == "start":
            self._share[number] = self._rule(self._chunks, number, len(self._workers), self._board)
        elif event.chunk is not None:
            self._open[number].remove(event.chunk)
            self._made[event.chunk.name] += 1
            first = self._board.commit(event.chunk.name)
        while len(self._open[number]) < self._ahead and (chunk := next(self._share[number], None)):
            self._open[number].append(chunk)
        if self._open[number]:
            # Responses of all open chunks are generated together; the first one gets what it needs first.
            chunk = self._open[number][0]
            self._at(event.seconds + self._cost[chunk.number] / worker.speed, number, "made", chunk)
        return first

    def _at(self, seconds: float, worker: int, what: str, chunk: Chunk | None = None) -> None:
        heapq.heappush(self._events, _Event(seconds, len(self._events), worker, self._lives[worker], what, chunk))

    def _ideal(self) -> float:
        """When all would end together if work could be cut anywhere and nothing were lost but time away."""
        total = sum(self._cost)
        low, high = 0.0, 1e9
        while high - low > 1e-3:
            middle = (low + high) / 2
            done = sum(worker.speed * _active(worker, middle) for worker in self._workers)
            low, high = (low, middle) if done >= total else (middle, high)
        return high


def _active(worker: Worker, until: float) -> float:
    """Seconds at work until then."""
    first = min(until, worker.lost_at_seconds) if worker.lost_at_seconds is not None else until
    seconds = max(0.0, first - worker.starts_seconds)
    if worker.lost_at_seconds is not None:
        back = worker.lost_at_seconds + worker.away_seconds + worker.starts_seconds
        seconds += max(0.0, until - back)
    return seconds
