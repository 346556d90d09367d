"""What is seen of a run when it is looked at: what the watches brought, and what has to be asked for."""

import logging
from collections.abc import Callable
from datetime import datetime

from egt_operator.api import EGTRun
from egt_operator.api_status import StageStatus
from egt_operator.attempt_times import FIRST_SECONDS
from egt_operator.cache import Cache
from egt_operator.cluster import Cluster
from egt_operator.cluster_errors import TROUBLE, Refused, told
from egt_operator.decide import TERMINAL, World
from egt_operator.known_run import KnownRun
from egt_operator.progress import last_progress
from egt_operator.settings import Settings
from egt_pipeline.contract.task import Progress

log = logging.getLogger("egt_operator")


class Witness:
    """Sees runs. ``now`` is the time of day, ``clock`` monotonic seconds."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        cache: Cache,
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        self._cluster, self._settings, self._cache = cluster, settings, cache
        self._now, self._clock = now, clock
        self._read: dict[str, tuple[str, float]] = {}  # whose log was read last, and when

    async def world(self, key: str, known: KnownRun, run: EGTRun) -> World:
        """What is seen of the run. Raises what the API server answers."""
        active = next((s for s in (run.status.stages if run.status else ()) if s.phase == "Running"), None)
        if active is not None and active.job is not None:
            await self._hear_last_words(key, known.owner.namespace, active.job)
        return World(
            now=self._now(),
            generation=known.generation,
            owner=known.owner,
            jobs=self._cache.jobs(key),
            pods=self._cache.pods(key),
            progress=await self._progress(key, known, run, active),
            refusals=await self._refusals(known.owner.namespace, run, active),
        )

    async def _hear_last_words(self, key: str, namespace: str, name: str) -> None:
        """A job's end may be heard before that of its pods, which come by another watch, and say how it ended."""
        job = self._cache.jobs(key).get(name)
        if job is None or job.outcome is None:
            return
        pods = [pod for pod in self._cache.pods(key) if pod.owner_uid == job.uid]
        if pods and not any(pod.alive for pod in pods):
            return
        for body in await self._cluster.pods(namespace, name):
            self._cache.keep("pod", body)

    async def _progress(self, key: str, known: KnownRun, run: EGTRun, active: StageStatus | None) -> Progress | None:
        """The progress of a running stage, read from its log when it is time to, and before it is called hung."""
        if active is None or active.running_since is None or active.job is None:
            self._read.pop(key, None)
            return None
        job, last = self._read.get(key, ("", 0.0))
        silent = (self._now() - (active.progressed or active.running_since)).total_seconds()
        if silent < run.spec.hang_deadline_seconds:
            if job == active.job and self._clock() - last < self._settings.progress_seconds:
                return None
            if job != active.job and (self._now() - active.running_since).total_seconds() < FIRST_SECONDS:
                return None
        self._read[key] = active.job, self._clock()
        try:
            return last_progress(await self._cluster.log_end(known.owner.namespace, f"{active.job}-master-0"))
        except (*TROUBLE, Refused) as error:  # a node that does not answer must not keep the run from being looked at
            log.info("%s: no log of %s: %s", key, active.job, told(error), extra={"run": key})
            return None

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
