"""From what was seen to what is done: a keyed queue, bounded workers, and one reconcile for every cause.

events (kopf) ──► cache, queue ──► worker: decide (pure) ──► status, then deletions, then the next job
resync, deadlines ──► queue        conflict: look again at once; any other trouble: look again later
"""

import asyncio
import logging
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from egt_operator.announce import Announcer
from egt_operator.api import MANAGER, EGTRun
from egt_operator.api_status import TERMINAL, EGTRunStatus, StageStatus
from egt_operator.cache import KINDS, Cache, Kind
from egt_operator.children import has_ended
from egt_operator.cluster import Cluster
from egt_operator.cluster_errors import TROUBLE, Conflict, Refused, told
from egt_operator.decide import Decision, World, decide, forbidden, refused
from egt_operator.known_run import KnownRun
from egt_operator.log_reader import LogReader
from egt_operator.outcome import links_of
from egt_operator.render import render
from egt_operator.settings import Settings
from egt_operator.status import as_merge_patch, invalid
from egt_operator.task import task_of
from egt_operator.telemetry import Telemetry
from egt_operator.unmade import UnmadePods
from egt_operator.witness import Witness
from egt_operator.work_queue import WorkQueue

_RETRY_SECONDS, _RETRY_LIMIT_SECONDS = 0.5, 60.0  # of a look that met trouble
_PAGE_SECONDS = 0.25  # between pages of a resync, which answer nobody's question; one takes the API server 50 ms
_FORBIDDEN = 403
log = logging.getLogger("egt_operator")


class Controller:
    """Keeps every run of a cluster going. ``now`` is the time of day, ``clock`` monotonic seconds."""

    def __init__(
        self,
        cluster: Cluster,
        settings: Settings,
        telemetry: Telemetry,
        now: Callable[[], datetime],
        clock: Callable[[], float],
    ) -> None:
        self._cluster, self._settings, self._telemetry = cluster, settings, telemetry
        self._now, self._clock = now, clock
        self.cache, self.queue, self.announcer = Cache(), WorkQueue(clock), Announcer(cluster, now)
        self.logs = LogReader(cluster, now, clock, self.queue.add)
        self._witness = Witness(cluster, settings, self.cache, now, logs=self.logs, unmade=UnmadePods(cluster, clock))
        self._troubles: dict[str, int] = {}
        self._unheard: dict[str, int] = {}  # what a list has shown and no watch has brought yet: uid, version
        self.stale = False
        """True while the watches miss what happens."""

    def heard(self, kind: Kind, body: Mapping[str, Any], *, gone: bool) -> None:
        """A watch says that something happened to a run, a job or a pod; where a pod has ended, GPUs wait."""
        uid, version = body["metadata"]["uid"], int(body["metadata"]["resourceVersion"])
        if self._unheard.get(uid, sys.maxsize) <= version or gone:
            self._unheard.pop(uid, None)
        key = self.cache.keep(kind, body, gone=gone)
        if key is not None:
            self.queue.add(key, urgent=kind == "pod" and has_ended(body))

    async def work(self) -> None:
        """One worker; ends only when it is cancelled."""
        while True:
            key = await self.queue.get()
            began = self._clock()
            result = "error"
            try:
                result = await self.look(key)
            finally:
                self._telemetry.reconcile_seconds.labels(result).observe(self._clock() - began)
                self._telemetry.queue_depth.set(len(self.queue))
                self.queue.done(key)

    async def refresh(self, over_seconds: float = 0.0) -> None:
        """Compare what is known with what is there, and ask for a look at every run, in so many seconds.

        The first time, that is how everything becomes known before anything is done. Later it finds what a watch that
        hangs has missed: what a list shows, and no watch has brought when the next list is made.
        """
        self.stale = bool(self._unheard)
        self._telemetry.missed_events.inc(len(self._unheard))
        self._unheard = {}
        for kind in KINDS:
            listed, oldest = set[str](), sys.maxsize
            async for bodies, version in self._cluster.pages(kind, self._settings.namespaces):
                for body in bodies:
                    listed.add(body["metadata"]["uid"])
                    if (key := self.cache.keep(kind, body)) is not None:
                        self.queue.add(key)
                        self._unheard[body["metadata"]["uid"]] = int(body["metadata"]["resourceVersion"])
                oldest = min(oldest, version)
                await asyncio.sleep(_PAGE_SECONDS * (over_seconds > 0))
            for key in self.cache.drop_unlisted(kind, listed, oldest):
                self.queue.add(key)
        runs = self.cache.every_run()
        for place, key in enumerate(runs):
            self.queue.add(key, over_seconds * place / len(runs))

    async def begin(self) -> None:
        """The first refresh; trouble, as of an API server that has just started, is waited out."""
        while True:
            try:
                await self.refresh()
                return
            except TROUBLE as error:
                log.warning("first look at the cluster: %s; tries again", told(error))
            await asyncio.sleep(_RETRY_SECONDS)

    async def resync(self) -> None:
        """Refresh again and again; ends only when it is cancelled."""
        while True:
            await asyncio.sleep(self._settings.resync_seconds)
            try:
                await self.refresh(over_seconds=self._settings.resync_seconds)  # news waits for none of these looks
            except (*TROUBLE, Refused) as error:
                log.warning("resync: %s; tries again", told(error))

    async def look(self, key: str) -> str:
        """One look at a run; in one word how it ended."""
        try:
            await self.reconcile(key)
        except Conflict:
            await self._look_closely(key)
            self.queue.add(key, urgent=True)
            return "conflict"
        except Refused as error:
            log.error("%s: the API server refuses: %s", key, error, extra={"run": key})
            self._again_later(key)
            return "refused"
        except TROUBLE as error:
            log.warning("%s: %s; looks again later", key, told(error), extra={"run": key})
            self._again_later(key)
            return "trouble"
        except Exception:
            log.exception("%s: a bug; looks again later", key, extra={"run": key})
            self._again_later(key)
            return "bug"
        self._troubles.pop(key, None)
        return "done"

    def _again_later(self, key: str) -> None:
        count = self._troubles.get(key, 0)
        self._troubles[key] = count + 1
        self.queue.add(key, min(_RETRY_SECONDS * 2.0 ** min(count, 20), _RETRY_LIMIT_SECONDS))

    async def _look_closely(self, key: str) -> None:
        """Replace what is known of a run and of the job at work by what is there."""
        namespace, name = key.split("/")
        try:
            body = await self._cluster.run(namespace, name)
            if body is None:
                self.cache.forget_run(key)
                return
            self.cache.keep("run", body)
            for stage in (body.get("status") or {}).get("stages") or ():
                if stage["phase"] == "Running" and (job := await self._cluster.job(namespace, stage["job"])):
                    self.cache.keep("job", job)
        except (*TROUBLE, Refused) as error:
            log.warning("%s: %s", key, told(error), extra={"run": key})

    async def reconcile(self, key: str) -> None:
        """Bring one run a step forward. Raises what the API server answers."""
        known = self.cache.run(key)
        if known is None or known.being_deleted:
            self._telemetry.run_is(key, None)
            self.logs.forget(key)
            return
        try:
            run = known.read()
        except ValidationError as error:
            if known.phase in TERMINAL:
                return  # it has ended, in words of another version
            await self._say_invalid(key, known, error)
            return
        if run.spec.managed_by != MANAGER:
            return
        self._telemetry.run_is(key, run.status.phase if run.status else "Pending")
        world = await self._witness.world(key, known, run)
        await self._carry_out(key, known, run, world, decide(run, world, self._settings))

    async def _say_invalid(self, key: str, known: KnownRun, error: ValidationError) -> None:
        try:
            before, after = invalid(known, error, self._now())
        except ValidationError as unknown:
            log.error("%s: its status is of a newer operator and stays: %s", key, unknown, extra={"run": key})
            return
        if after != before:
            await self._write(known, before, after)

    async def _carry_out(self, key: str, known: KnownRun, run: EGTRun, world: World, decision: Decision) -> None:
        """The status first, so that a crash after any call leaves a memory of what was meant."""
        owner = known.owner
        if decision.status != run.status:
            await self._write(known, run.status, decision.status)
        elif decision.create is not None:
            await self._check_unchanged(known)
        if decision.remove_run:
            await self._cluster.remove_run(owner.namespace, owner.name, owner.uid)
            return
        for job in decision.delete:
            await self._cluster.delete_job(owner.namespace, job.name, job.uid)
        if decision.nudge is not None:
            await self._cluster.nudge_job(owner.namespace, decision.nudge.name, decision.nudge.uid, self._now())
        if decision.create is not None:
            await self._create(key, run, world, decision, decision.create)
        if decision.wake is not None:
            self.queue.add(key, max((decision.wake - self._now()).total_seconds(), 0.05))

    async def _check_unchanged(self, known: KnownRun) -> None:
        """Before a job is made on the word of a status that was only remembered. Raises Conflict when it is old."""
        fresh = await self._cluster.run(known.owner.namespace, known.owner.name)
        if fresh is None or fresh["metadata"]["resourceVersion"] != known.version:
            raise Conflict(f"{known.owner.namespace}/{known.owner.name}: was changed meanwhile")

    async def _write(self, known: KnownRun, before: EGTRunStatus | None, after: EGTRunStatus) -> None:
        """The status, and then what is counted and told of the change."""
        owner = known.owner
        patch = as_merge_patch(after)
        self.cache.keep("run", await self._cluster.write_status(owner.namespace, owner.name, known.version, patch))
        self._telemetry.run_is(f"{owner.namespace}/{owner.name}", after.phase)
        self._telemetry.changed(before, after)
        self.announcer.changed(owner, before, after)

    async def _create(self, key: str, run: EGTRun, world: World, decision: Decision, stage: StageStatus) -> None:
        task = task_of(run, stage, links_of(run, decision.status), self._settings)
        try:
            self.cache.keep("job", await self._cluster.create_job(render(run, world.owner, task, self._settings)))
        except Refused as error:
            known = self.cache.run(key)
            if known is None:
                return
            if error.status == _FORBIDDEN:  # a permission or a quota: it may be allowed later
                after = forbidden(run, decision.status, stage, world, str(error))
                if after != decision.status:
                    await self._write(known, decision.status, after)
                raise
            await self._write(known, decision.status, refused(run, decision, world, str(error), self._settings))
        self.queue.add(key)
