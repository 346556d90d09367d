"""``python -m egt_operator``: the operator. Settings come from the environment, see settings.py."""

import asyncio
import gc
import logging
import os
import signal
import sys
import time
from datetime import UTC, datetime

import kopf
from aiohttp import web
from kubernetes.aio.config import ConfigException
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from egt_operator.cluster import Cluster, connected
from egt_operator.cluster_errors import NotServed, Refused
from egt_operator.controller import Controller
from egt_operator.handlers import Handlers, kopf_settings
from egt_operator.lease import Lease
from egt_operator.settings import Settings
from egt_operator.telemetry import JsonLines, Telemetry
from egt_pipeline.contract.errors import TaskError

_LOG_READERS = 4  # a log of a node that does not answer takes ten seconds to be given up
log = logging.getLogger("egt_operator")


class Operator:
    """One replica: serves metrics and health, waits for the lease, and then works."""

    def __init__(self, settings: Settings, cluster: Cluster) -> None:
        self._settings = settings
        self.telemetry = Telemetry()
        self._cluster = cluster
        self._controller = Controller(cluster, settings, self.telemetry, lambda: datetime.now(UTC), time.monotonic)
        self._handlers = Handlers(self._controller)
        self.stopped = asyncio.Event()

    async def run(self) -> None:
        """Until the lease is lost or the process is asked to stop."""
        runner = await self._serve()
        settings = self._settings
        lease = Lease(self._cluster, settings.lease_namespace, settings.lease_name, settings.identity, time.monotonic)
        tasks = [asyncio.create_task(self._hold(lease)), asyncio.create_task(self.stopped.wait())]
        ended, others = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await runner.cleanup()
        for task in ended:
            task.result()  # what was raised ends the process

    async def _hold(self, lease: Lease) -> None:
        """Work as long as the lease is held."""
        await lease.acquire()
        log.info("leads as %s", self._settings.identity)
        work = asyncio.create_task(self._work())
        hold = asyncio.create_task(lease.hold())
        try:
            ended, _ = await asyncio.wait([work, hold], return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            for task in (work, hold):
                task.cancel()
            await asyncio.gather(work, hold, return_exceptions=True)
            if not hold.done() or hold.cancelled():
                await lease.release()  # after the last worker has stopped

    async def _work(self) -> None:
        await self._controller.begin()
        # The collector took a seventh of the time: it looked again and again at what stays, at every 700 new objects.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            tasks.create_task(self._controller.resync())
            tasks.create_task(self._controller.announcer.work())
            for _ in range(_LOG_READERS):
                tasks.create_task(self._controller.logs.work())
            for _ in range(self._settings.workers):
                tasks.create_task(self._controller.work())

    async def _watch(self) -> None:
        namespaces = self._settings.namespaces
        await kopf.operator(
            registry=self._handlers.registry,
            settings=kopf_settings(),
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
        )
        self.stopped.set()  # it hears of SIGTERM in our place; whatever else ends a watch raises

    async def _serve(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._health)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        port = self._settings.metrics_port
        try:
            await web.TCPSite(runner, port=port).start()
        except OSError as error:
            raise TaskError(
                f"EGT_METRICS_PORT: {port} cannot be listened on: {error.strerror}; 0: any free one"
            ) from None
        log.info("serves /metrics and /healthz on port %s", runner.addresses[0][1])
        return runner

    async def _metrics(self, _: web.Request) -> web.Response:
        self.telemetry.watch_age.set(self._handlers.age_seconds())
        return web.Response(
            body=generate_latest(self.telemetry.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def _health(self, _: web.Request) -> web.Response:
        if self._controller.stale:
            return web.Response(status=500, text="the watches miss what happens in the cluster\n")
        return web.Response(text="ok\n")


async def main() -> None:
    """Run one replica until it is stopped."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        settings = Settings.from_environment(os.environ)
        await _run(settings)
    except (TaskError, NotServed) as error:
        sys.exit(str(error))
    except ConfigException as error:
        sys.exit(f"no cluster: this is no pod of one, and KUBECONFIG or ~/.kube/config cannot be used: {error}")
    except Refused as error:
        sys.exit(f"this operator lacks a permission, or sends what the API server does not take: {error}")


async def _run(settings: Settings) -> None:
    async with connected(settings.requests_per_second, settings.burst) as cluster:
        operator = Operator(settings, cluster)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, operator.stopped.set)
        await operator.run()


if __name__ == "__main__":
    asyncio.run(main())
