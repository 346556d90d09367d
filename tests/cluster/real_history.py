"""Histories of runs on a real API server: the operator dies at a call, or what lies between the two goes wrong.

The operator is the real Controller with its real client. Its ears are ours: one watch for all histories, of which each
may drop, delay and repeat what it is told. That a run comes to its end is heard by an ear that is always well.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from kubernetes.aio.client.api_client import ApiClient

from build_egtrun import egtrun
from cluster import Cluster as WholeCluster
from egt_operator.cache import Kind, run_key
from egt_operator.cluster import Cluster
from egt_operator.cluster_errors import TROUBLE
from egt_operator.controller import Controller
from egt_operator.rate import Bucket
from egt_operator.settings import Settings
from egt_operator.telemetry import Telemetry
from node_api import NodeApi
from node_script import Ending
from simulated_stages import SimulatedStages
from team_runs import JOBS, PODS, RUNS, client_of
from trouble import Crash, KilledAt, Trouble

WATCHED: dict[Kind, str] = {"run": RUNS, "job": JOBS, "pod": PODS}
SETTINGS = Settings(image="egt-pipeline:test", backoff_seconds=0.5, progress_seconds=60, resync_seconds=4)
AT_ONCE = 12
PATIENCE_SECONDS = 900.0  # a run without trouble takes ten, one of twelve in trouble two minutes and more


class Disturbance(Protocol):
    """What happens around calls: both may raise."""

    def before(self, call: int) -> None: ...

    def after(self, call: int) -> None: ...


class Line(Cluster):
    """The API server as one life of the operator reaches it; a dead operator reaches nothing."""

    def __init__(self, client: ApiClient, history: "History") -> None:
        super().__init__(client, Bucket(1e6, 10**6))
        self._history, self.dead = history, False

    async def pages(self, kind: Kind, namespaces: Sequence[str]) -> AsyncIterator[tuple[list[Any], int]]:
        """Of all that is there, what belongs to the history."""
        async for bodies, version in super().pages(kind, namespaces):
            yield [body for body in bodies if run_key(kind, body) == self._history.key], version

    async def _text(self, *arguments: Any, **named: Any) -> str:
        if self.dead:
            raise Crash
        call, self._history.calls = self._history.calls, self._history.calls + 1
        try:
            self._history.disturbance.before(call)
            answer = await super()._text(*arguments, **named)
            self._history.disturbance.after(call)
        except Crash:
            self.dead = True
            raise
        return answer


class History:
    """One run from its creation to its end. ``dice`` disturb what its operator hears, None lets it hear all."""

    def __init__(self, name: str, disturbance: Disturbance, dice: random.Random | None = None) -> None:
        self.name, self.key = name, f"team/{name}"
        self.disturbance, self._dice = disturbance, dice
        self.calls = self.lives = 0
        self.jobs: dict[str, set[str]] = defaultdict(set)
        self.most_alive = 0
        self.status: dict[str, Any] = {}
        self._alive: dict[str, str] = {}
        self._controller: Controller | None = None
        self._ended = asyncio.Event()

    def hear(self, kind: Kind, body: Any, *, gone: bool) -> None:
        """Something happened in the cluster."""
        if kind == "run":
            self.status = body.get("status") or {}
            if self.status.get("phase") in ("Complete", "Failed"):
                self._ended.set()
        elif kind == "job":
            self.jobs[body["metadata"]["name"]].add(body["metadata"]["uid"])
        else:
            self._count(body, gone=gone)
        for delay in self._echoes():
            asyncio.get_running_loop().call_later(delay, self._tell, kind, body, gone)

    def _count(self, pod: Any, *, gone: bool) -> None:
        uid, ended = pod["metadata"]["uid"], (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        if gone or ended:
            self._alive.pop(uid, None)
        else:
            self._alive[uid] = pod["metadata"]["ownerReferences"][0]["name"]
        self.most_alive = max(self.most_alive, len(set(self._alive.values())))

    def _echoes(self) -> Iterator[float]:
        """After how many seconds the operator hears of something: never, at once, late, twice."""
        luck = self._dice.random() if self._dice else 1.0
        if luck >= 0.15:
            yield 0.0 if self._dice is None or luck >= 0.3 else self._dice.uniform(0.0, 2.0)
        if self._dice and luck >= 0.9:
            yield self._dice.uniform(0.0, 2.0)

    def _tell(self, kind: Kind, body: Any, gone: bool) -> None:
        if self._controller is not None:
            self._controller.heard(kind, body, gone=gone)

    async def play(self, client: ApiClient) -> None:
        """Life after life, until the run has ended. Raises TimeoutError if it never does."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not self._ended.is_set():
                    await self._live(client)
        except TimeoutError:
            raise TimeoutError(f"{self.name}: after {self.lives} lives and {self.calls} calls: {self.status}") from None

    async def _live(self, client: ApiClient) -> None:
        """One life of the operator."""
        self.lives += 1
        line = Line(client, self)
        controller = Controller(line, SETTINGS, Telemetry(), lambda: datetime.now(UTC), time.monotonic)
        self._controller = controller
        with contextlib.suppress(Crash, *TROUBLE):  # a process that cannot begin ends, and is started again
            await controller.refresh()
            work = [controller.work(), controller.announcer.work(), controller.logs.work(), controller.resync()]
            work.append(self._ended.wait())
            tasks = [asyncio.ensure_future(one) for one in work]
            done, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            line.dead = True
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            for task in done:
                task.result()

    def check(self, failures: dict[str, int]) -> None:
        """Complete; every job was made once, one for each stage and each of its failed attempts; no two at once."""
        attempts = Counter(name.removeprefix(f"{self.name}-").rpartition("-a")[0] for name in self.jobs)
        stages = [stage["name"] for stage in self.status["stages"]]
        assert self.status["phase"] == "Complete", self.status
        assert attempts == {stage: 1 + failures.get(stage, 0) for stage in stages}, (self.name, attempts)
        assert all(len(uids) == 1 for uids in self.jobs.values()), (self.name, self.jobs)
        assert self.most_alive == 1, (self.name, self.most_alive)


async def play(cluster: WholeCluster, histories: Sequence[History]) -> None:
    """All histories, some at once, each to its end; what has ended is deleted, as every new life lists all there is."""
    api, gate = NodeApi(cluster.kubeconfig, cluster.plane.folder), asyncio.Semaphore(AT_ONCE)
    ears = {history.key: history for history in histories}

    def ear(kind: Kind) -> Any:
        def see(event: str, body: Any) -> None:
            history = ears.get(run_key(kind, body) or "") if event != "LISTED" else None
            if history is not None:
                history.hear(kind, body, gone=event == "DELETED")

        return see

    async def one(client: ApiClient, history: History) -> None:
        async with gate:
            body = egtrun(store={"uri": f"s3://bucket/{history.name}"}, retry={"crash": 5})
            body["metadata"]["name"] = history.name
            await api.call("POST", RUNS, body)
            await history.play(client)
            await asyncio.sleep(1.0)  # the last events of the run
            await api.call("DELETE", f"{RUNS}/{history.name}")

    watches = [asyncio.create_task(api.watch(path, ear(kind))) for kind, path in WATCHED.items()]
    async with client_of(cluster) as client:
        await asyncio.gather(*(one(client, history) for history in histories))
    for watch in watches:
        watch.cancel()
    await asyncio.gather(*watches, return_exceptions=True)
    await api.session.close()
    await asyncio.sleep(0.25)  # aiohttp closes TLS connections a moment after its session


def killed_anywhere(cluster: WholeCluster) -> list[History]:
    """Histories in which the operator is killed before or after each call of a whole run; checked."""
    whole = History("whole", KilledAt(-1, "before"))
    asyncio.run(play(cluster, [whole]))
    points = [(moment, number) for number in range(whole.calls) for moment in ("before", "after")]
    histories = [History(f"killed-{moment}-{number}", KilledAt(number, moment)) for moment, number in points]
    asyncio.run(play(cluster, histories))
    for history in (whole, *histories):
        history.check({})
    return histories


def in_trouble(cluster: WholeCluster, stages: SimulatedStages, count: int) -> list[History]:
    """So many histories in which anything may go wrong, and stages fail too in every second of them; checked."""
    histories, failures = [], {}
    for seed in range(count):
        dice, name = random.Random(seed), f"seed-{seed}"
        failures[name] = {stage: dice.randrange(3) * (seed % 2) for stage in ("prepare", "sft", "rl")}
        for stage, ends in failures[name].items():
            stages.endings[name] |= {(stage, attempt + 1): Ending(0.2, 1) for attempt in range(ends)}
        histories.append(History(name, Trouble(dice), dice))
    asyncio.run(play(cluster, histories))
    for history in histories:
        history.check(failures[history.name])
    return histories
