"""Nodes for a test cluster: registers them, renews their leases, and hands their pods to a runtime.

The runtime decides what a pod is: ``node_script`` ends pods by script and starts nothing, ``process_pods`` runs each
container's command as a local process.
"""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Protocol

from node_api import MERGE, STRATEGIC, ApiError, NodeApi, Object
from node_pod import NodePod, now

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
# The node controller misses a node after 50 s; a kubelet renews every 10 s.
RENEW_SECONDS = 5.0


@dataclass(frozen=True)
class NodeShape:
    """What the nodes look like to the scheduler; taints are objects as in spec.taints."""

    nodes: int = 2
    gpus: int = 8
    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[dict[str, str], ...] = ()

    def names(self) -> list[str]:
        return [f"node-{index}" for index in range(self.nodes)]


class Runtime(Protocol):
    """What runs the pods of the nodes."""

    network: int
    """Pods have the addresses 127.<network>.x.y."""
    port: int
    """Where logs are served; 0: nowhere."""

    async def start(self, agent: "NodeAgent") -> None:
        """Called once in the agent's loop, before any node is there."""

    async def run(self, pod: NodePod) -> None:
        """Returns when all containers of the pod have ended and that is reported; heeds ``pod.terminating``."""

    async def stop(self) -> None:
        """Called once, when all pods have ended."""

    def forget(self, pod: NodePod) -> None:
        """Called when the pod is gone at the API server and its run is over."""


class NodeAgent:
    """The kubelet of all nodes; its public methods may be called from any thread."""

    def __init__(self, shape: NodeShape, runtime: Runtime) -> None:
        self.shape, self.runtime = shape, runtime
        self.down: set[str] = set()
        self.pods: dict[str, NodePod] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.removals: set[asyncio.Task[None]] = set()
        self.numbers = count(2)
        self.loop: asyncio.AbstractEventLoop
        self.api: NodeApi

    def signal(self, namespace: str, pod: str, number: int = signal.SIGKILL) -> None:
        """Every process of the pod has got the signal. Raises KeyError where no such pod runs here."""
        found = {(p.namespace, p.name): p for p in list(self.pods.values())}[namespace, pod]

        async def send() -> None:
            found.signal(number)

        asyncio.run_coroutine_threadsafe(send(), self.loop).result(timeout=30)

    def node_down(self, node: str, *, power: bool = True) -> None:
        """The node falls silent until ``node_up``. Without power its processes die too; with it they go on unseen."""
        self.loop.call_soon_threadsafe(self.down.add, node)
        if not power:
            for pod in list(self.pods.values()):
                if pod.object["spec"]["nodeName"] == node:
                    self.loop.call_soon_threadsafe(pod.signal, signal.SIGKILL)

    def node_up(self, node: str) -> None:
        """The node reports again, and takes notice of what happened to its pods meanwhile."""
        self.down.discard(node)
        asyncio.run_coroutine_threadsafe(self.catch_up(node), self.loop).result(timeout=30)

    async def catch_up(self, node: str) -> None:
        for pod in (await self.api.call("GET", f"/api/v1/pods?fieldSelector=spec.nodeName={node}"))["items"]:
            self.see("MODIFIED", pod)

    async def run(self, kubeconfig: Path, folder: Path, ready: threading.Event) -> None:
        self.loop, self.api = asyncio.get_running_loop(), NodeApi(kubeconfig, folder)
        try:
            await self.runtime.start(self)
            for name in self.shape.names():
                await self.register(name)
            async with asyncio.TaskGroup() as tasks:
                for name in self.shape.names():
                    tasks.create_task(self.renew(name))
                tasks.create_task(self.api.watch("/api/v1/pods", self.see))
                ready.set()
        finally:
            left = [*self.tasks.values(), *self.removals]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            await self.runtime.stop()
            await self.api.session.close()
            await asyncio.sleep(0.3)  # TLS connections close in the background

    async def register(self, name: str) -> None:
        labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"} | self.shape.labels
        spec = {"taints": list(self.shape.taints)}
        with contextlib.suppress(ApiError):  # a node of that name is there already: its status follows
            await self.api.call("POST", "/api/v1/nodes", {"metadata": {"name": name, "labels": labels}, "spec": spec})
        await self.renew_once(name)
        await self.report_node(name)

    async def report_node(self, name: str) -> None:
        size = {"cpu": "64", "memory": "512Gi", "pods": "500", "nvidia.com/gpu": str(self.shape.gpus)}
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "a node of the tests",
                 "lastHeartbeatTime": now(), "lastTransitionTime": now()}  # fmt: skip
        status = {"capacity": size, "allocatable": size, "conditions": [ready],
                  "addresses": [{"type": "Hostname", "address": "localhost"}],
                  "daemonEndpoints": {"kubeletEndpoint": {"Port": self.runtime.port}}}  # fmt: skip
        await self.api.call("PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, STRATEGIC)

    async def renew(self, name: str) -> None:
        was_down = False
        while True:
            if name not in self.down:
                with contextlib.suppress(ApiError):  # the next renewal comes in time
                    await self.renew_once(name)
                    if was_down:
                        await self.report_node(name)
            was_down = name in self.down
            await asyncio.sleep(RENEW_SECONDS)

    async def renew_once(self, name: str) -> None:
        spec = {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now("%Y-%m-%dT%H:%M:%S.%fZ")}
        lease = {"metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": spec}
        try:
            await self.api.call("PATCH", f"{LEASES}/{name}", lease, MERGE)
        except ApiError as error:
            if error.code != 404:
                raise
            await self.api.call("POST", LEASES, lease)

    def see(self, event: str, pod: Object) -> None:
        if event == "LISTED":
            for uid in set(self.pods) - set(pod):
                self.forget(uid)
            return
        meta, uid = pod["metadata"], pod["metadata"]["uid"]
        if pod["spec"].get("nodeName") not in set(self.shape.names()) - self.down:
            return
        if event == "DELETED":
            self.forget(uid)
            return
        over = pod["status"].get("phase") in ("Succeeded", "Failed")
        if uid not in self.pods and ("deletionTimestamp" in meta or not over):
            self.pods[uid] = NodePod(self.api, pod, self.address(), lambda: pod["spec"]["nodeName"] in self.down)
            if not over:
                self.tasks[uid] = self.loop.create_task(self.runtime.run(self.pods[uid]))
        if "deletionTimestamp" in meta and not self.pods[uid].terminating.is_set():
            self.pods[uid].object = pod
            self.pods[uid].terminating.set()
            self.removals.add(task := self.loop.create_task(self.remove(uid)))
            task.add_done_callback(self.removals.discard)

    def address(self) -> str:
        number = next(self.numbers)
        return f"127.{self.runtime.network}.{number // 250 % 250}.{number % 250 + 2}"

    def forget(self, uid: str) -> None:
        """The pod is gone at the API server: whatever runs of it ends."""
        pod, task = self.pods.pop(uid, None), self.tasks.pop(uid, None)
        if pod and task:
            task.add_done_callback(lambda _: self.runtime.forget(pod))
            task.cancel()

    async def remove(self, uid: str) -> None:
        """The pod is removed once it has ended."""
        if task := self.tasks.get(uid):
            await asyncio.wait([task])
        if pod := self.pods.get(uid):
            await pod.remove()


@contextlib.contextmanager
def node_agent(kubeconfig: Path, folder: Path, shape: NodeShape, runtime: Runtime) -> Iterator[NodeAgent]:
    """A running agent in a thread of its own. Raises TimeoutError when its nodes are not there within 30 s."""
    agent, ready = NodeAgent(shape, runtime), threading.Event()
    stopping: list[asyncio.Task[None]] = []

    async def run() -> None:
        stopping.append(asyncio.ensure_future(agent.run(kubeconfig, folder, ready)))
        with contextlib.suppress(asyncio.CancelledError):
            await stopping[0]

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="node-agent")
    thread.start()
    try:
        if not ready.wait(timeout=30):
            raise TimeoutError("the node agent registered no nodes within 30 s")
        yield agent
    finally:
        agent.loop.call_soon_threadsafe(stopping[0].cancel)
        thread.join()
