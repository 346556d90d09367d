"""What is seen of a run when it is looked at: what the watches brought, and what has to be asked for."""

from collections.abc import Callable
from datetime import datetime

from egt_operator.api import EGTRun
from egt_operator.api_status import TERMINAL, StageStatus
from egt_operator.attempt import without_pods
from egt_operator.attempt_times import FIRST_SECONDS
from egt_operator.cache import Cache
from egt_operator.cluster import Cluster
from egt_operator.decide import World
from egt_operator.known_run import KnownRun
from egt_operator.log_reader import Heard, LogReader
from egt_operator.settings import Settings
from egt_operator.unmade import UnmadePods

_HANG_SECONDS = 5.0  # between reads of the log of a stage that seems to hang


class Witness:
    """Sees runs. ``now`` is the time of day."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        cache: Cache,
        now: Callable[[], datetime],
        *,
        logs: LogReader,
        unmade: UnmadePods,
    ) -> None:
        self._cluster, self._settings, self._cache, self._now, self._logs = cluster, settings, cache, now, logs
        self._unmade = unmade

    async def world(self, key: str, known: KnownRun, run: EGTRun) -> World:
        """What is seen of the run. Raises what the API server answers."""
        active = next((s for s in (run.status.stages if run.status else ()) if s.phase == "Running"), None)
        if active is not None and active.job is not None:
            await self._hear_last_words(key, known.owner.namespace, active.job)
        heard = self._heard(key, known, run, active)
        return World(
            now=self._now(),
            generation=known.generation,
            owner=known.owner,
            jobs=self._cache.jobs(key),
            pods=self._cache.pods(key),
            progress=heard.progress if heard else None,
            heard=heard.at if heard else None,
            refusals=await self._refusals(known.owner.namespace, run, active),
            unmade=await self._why_no_pods(key, known.owner.namespace, run, active),
        )

    async def _hear_last_words(self, key: str, namespace: str, name: str) -> None:
        """A job's end may be heard before that of its pods, which come by another watch, and say how it ended."""
        job = self._cache.jobs(key).get(name)
        if job is None or job.outcome is None:
            return
        pods = self._cache.pods_of(key, job)
        if pods and not any(pod.alive for pod in pods):
            return
        self._cache.keep_pods_of(key, job, await self._cluster.pods(namespace, name))

    async def _why_no_pods(self, key: str, namespace: str, run: EGTRun, active: StageStatus | None) -> str:
        """Why the job at work is still without all its pods, which is no part of its status; empty if it is not."""
        job = self._cache.jobs(key).get(active.job or "") if active is not None else None
        if active is None or job is None:
            return ""
        pods = self._cache.pods_of(key, job)
        if not without_pods(run, active, job, pods, self._now()):
            return ""
        return await self._unmade.why(namespace, job)

    def _heard(self, key: str, known: KnownRun, run: EGTRun, active: StageStatus | None) -> Heard | None:
        """What the log of a running stage has said; it is read when it is time to, and when the stage seems to hang."""
        if active is None or active.running_since is None or active.job is None:
            self._logs.forget(key)
            return None
        heard = self._logs.of(key, known.owner.namespace, active.job)
        now = self._now()
        silent = (now - (active.progressed or active.running_since)).total_seconds()
        if heard.at is None and (now - active.running_since).total_seconds() < FIRST_SECONDS:
            return heard
        at_the_end = silent >= run.spec.hang_deadline_seconds
        self._logs.ask(key, _HANG_SECONDS if at_the_end else self._settings.progress_seconds)
        return heard

    async def _refusals(self, namespace: str, run: EGTRun, active: StageStatus | None) -> list[tuple[str, str]]:
        """Why no stage of the run can start."""
        scheduling, found = run.spec.scheduling, []
        if active is not None or (run.status is not None and run.status.phase in TERMINAL):
            return []
        queue, labels = scheduling.queue, scheduling.node_selector
        if queue is not None and not await self._cluster.has_queue(namespace, queue):
            said = f"spec.scheduling.queue: there is no LocalQueue {queue!r} in namespace {namespace}"
            found.append(("QueueMissing", said))
        if labels and self._settings.check_node_pools and not await self._cluster.has_nodes(labels):
            found.append(("NodePoolMissing", f"spec.scheduling.nodeSelector: no node has the labels {labels}"))
        return found
