"""One pod of process mode, from its volumes to its last container's end."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import aiohttp

from container import Container
from node_api import ApiError, Object
from node_pod import NodePod, box_status
from pod_files import PodFiles, WaitingError

if TYPE_CHECKING:
    from process_pods import ProcessPods

Made = TypeVar("Made")
# An image of a registry of this top-level domain, which no registry has, cannot be pulled.
NO_REGISTRY = ".invalid/"
# Missing secrets are looked for this often, a restarted container waits this long; a kubelet takes its time too.
RETRY_SECONDS = 1.0
PROBE_SECONDS = 1.0


class EndedError(Exception):
    """The pod was removed before it had begun."""


class PodRun:
    """One pod while it runs."""

    def __init__(self, pods: "ProcessPods", pod: NodePod) -> None:
        self.pods, self.pod, self.spec = pods, pod, pod.object["spec"]
        self.files = PodFiles(pod, pods.folder / pod.uid)
        self.files.folder.mkdir()
        self.hosts = self.files.folder / "hosts"
        self.started = False
        self.statuses: dict[str, Object] = {}
        self.firsts: dict[str, Object] = {}
        self.containers: dict[str, Container] = {}
        pod.signal = self.signal

    def signal(self, number: int) -> None:
        for container in self.containers.values():
            container.signal_all(number)

    def kill(self) -> None:
        """No process of the pod is left, or is about to be."""
        for container in self.containers.values():
            container.kill()

    async def run(self) -> None:
        first = self.spec.get("initContainers", [])
        waiting = {"waiting": {"reason": "PodInitializing" if first else "ContainerCreating"}}
        self.firsts = {box["name"]: box_status(box, waiting) for box in first}
        self.statuses = {box["name"]: box_status(box, waiting) for box in self.spec["containers"]}
        await self.report("Pending")
        ending = asyncio.ensure_future(self.end_in_time())
        try:
            with contextlib.suppress(EndedError):
                await self.run_boxes()
        finally:
            ending.cancel()
            self.kill()
        ends = [*self.firsts.values(), *self.statuses.values()]
        well = all(status["state"].get("terminated", {}).get("exitCode") == 0 for status in ends)
        with contextlib.suppress(ApiError):  # a pod that never began may not say that it ended; it is removed next
            await self.report("Succeeded" if well else "Failed")

    async def run_boxes(self) -> None:
        await self.retry(self.files.make_volumes)
        for box in self.spec.get("initContainers", []):
            if await BoxRun(self, box, self.firsts, "Pending", again=False).run():
                return
        self.started = True
        again = self.spec.get("restartPolicy", "Always") == "Always"
        boxes = self.spec["containers"]
        await asyncio.gather(*(BoxRun(self, box, self.statuses, "Running", again).run() for box in boxes))

    async def report(self, phase: str) -> None:
        await self.pod.report(phase, list(self.statuses.values()), list(self.firsts.values()))
        self.pods.refresh_names()

    async def retry(
        self, attempt: Callable[[], Awaitable[Made]], waits: Callable[[WaitingError], Awaitable[None]] | None = None
    ) -> Made:
        """What ``attempt`` returns once everything it needs is there; ``waits`` is told what is missing."""
        while not self.pod.terminating.is_set():
            try:
                return await attempt()
            except WaitingError as error:
                if waits:
                    await waits(error)
                await asyncio.sleep(RETRY_SECONDS)
        raise EndedError

    async def end_in_time(self) -> None:
        """Asks the containers to end when the pod is removed, and makes them after its grace period."""
        await self.pod.terminating.wait()
        for container in self.containers.values():
            container.terminate()
        await asyncio.sleep(self.pod.grace_seconds)
        self.kill()


class BoxRun:
    """One container of a pod, with its restarts."""

    def __init__(self, run: PodRun, box: Object, statuses: dict[str, Object], phase: str, again: bool) -> None:
        self.run_of_pod, self.box, self.statuses, self.phase, self.again = run, box, statuses, phase, again
        self.restarts = 0

    async def run(self) -> int:
        """The exit code with which the container ended for good."""
        run = self.run_of_pod
        while True:
            container = await run.retry(self.created, self.waits)
            run.containers[self.box["name"]] = container
            probe = asyncio.ensure_future(self.follow_readiness(container))
            try:
                code = await container.run()
            finally:
                probe.cancel()
            ended = {"terminated": container.terminated(code)}
            self.set(ended, ready=code == 0 and self.statuses is run.firsts)
            if run.pod.terminating.is_set() or not self.again:
                return int(code)
            self.restarts += 1
            self.set({"waiting": {"reason": "CrashLoopBackOff"}})
            await run.report(self.phase)
            await asyncio.sleep(RETRY_SECONDS)

    def set(self, state: Object, *, ready: bool = False) -> None:
        self.statuses[self.box["name"]] = box_status(self.box, state, ready=ready, restarts=self.restarts)

    async def waits(self, error: WaitingError) -> None:
        self.set({"waiting": {"reason": error.reason, "message": str(error)}})
        await self.run_of_pod.report("Pending")

    async def created(self) -> Container:
        """The container with all that it needs. Raises WaitingError in a kubelet's words."""
        run, box = self.run_of_pod, self.box
        if NO_REGISTRY in box["image"]:
            raise WaitingError("ImagePullBackOff", f'Back-off pulling image "{box["image"]}": no such host')
        image = run.pods.image_of(box["image"])
        environment = await run.files.environment(box, image.environment)
        if "readinessProbe" in box:
            # A server: it listens on its pod's address only. The ranks of a job rather find each other on loopback.
            environment |= {"LD_PRELOAD": str(run.pods.shim), "POD_ADDRESS": run.pod.address}
        return Container(run.files, box, self.restarts, environment, image)

    async def follow_readiness(self, container: Container) -> None:
        """The container's status says that it runs, and whether its readiness probe answers."""
        running, probe, known = {"running": {"startedAt": container.started}}, self.box.get("readinessProbe"), None
        while True:
            ready = await self.answers(probe["httpGet"]) if probe else True
            if ready != known:
                known = ready
                self.set(running, ready=ready)
                await self.run_of_pod.report(self.phase)
            if probe is None:
                return
            await asyncio.sleep(probe.get("periodSeconds", 10))

    async def answers(self, get: Object) -> bool:
        ports = {port.get("name"): port["containerPort"] for port in self.box.get("ports", [])}
        pod = self.run_of_pod.pod
        url = f"http://{pod.address}:{ports.get(get['port'], get['port'])}{get.get('path', '/')}"
        try:
            async with asyncio.timeout(PROBE_SECONDS), pod.api.session.get(url) as answer:
                return bool(answer.status < 400)
        except (aiohttp.ClientError, TimeoutError):
            return False
