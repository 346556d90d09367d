"""Nodes that exist for the API server only: their pods end by script. No process is started, no store is written."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from node_api import MERGE, STRATEGIC, ApiError, NodeApi, Object
from node_script import Ending, Script, annotated

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
# The node controller misses a node after 50 s; a kubelet renews every 10 s.
RENEW_SECONDS = 5.0


@dataclass(frozen=True)
class NodeShape:
    """What the simulated nodes look like to the scheduler; taints are objects as in spec.taints."""

    nodes: int = 2
    gpus: int = 8
    labels: dict[str, str] = field(default_factory=dict)
    taints: tuple[dict[str, str], ...] = ()

    def names(self) -> list[str]:
        return [f"simulated-{index}" for index in range(self.nodes)]


def now(form: str = "%Y-%m-%dT%H:%M:%SZ") -> str:
    return datetime.now(UTC).strftime(form)


class NodeAgent:
    """The kubelet of all simulated nodes; its methods may be called from any thread."""

    def __init__(self, shape: NodeShape, script: Script) -> None:
        self.shape, self.script = shape, script
        self.down: set[str] = set()
        self.pods: dict[str, asyncio.Task[None]] = {}
        self.killed: dict[tuple[str, str], asyncio.Event] = {}
        self.addresses = count(2)
        self.loop: asyncio.AbstractEventLoop
        self.api: NodeApi

    def kill(self, namespace: str, pod: str) -> None:
        """The pod's containers end as by SIGKILL. Raises KeyError where no such pod runs here."""
        self.loop.call_soon_threadsafe(self.killed[namespace, pod].set)

    def node_down(self, node: str) -> None:
        """The node falls silent: neither its lease nor its pods are reported until node_up."""
        self.loop.call_soon_threadsafe(self.down.add, node)

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
            for name in self.shape.names():
                await self.register(name)
            async with asyncio.TaskGroup() as tasks:
                for name in self.shape.names():
                    tasks.create_task(self.renew(name))
                tasks.create_task(self.api.watch("/api/v1/pods", self.see))
                ready.set()
        finally:
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
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "simulated",
                 "lastHeartbeatTime": now(), "lastTransitionTime": now()}  # fmt: skip
        status = {"capacity": size, "allocatable": size, "conditions": [ready],
                  "addresses": [{"type": "Hostname", "address": "localhost"}]}  # fmt: skip
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
                self.pods.pop(uid).cancel()
            return
        meta, uid = pod["metadata"], pod["metadata"]["uid"]
        if pod["spec"].get("nodeName") not in set(self.shape.names()) - self.down:
            return
        if event == "DELETED" or "deletionTimestamp" in meta:
            if task := self.pods.pop(uid, None):
                task.cancel()
            if event != "DELETED":
                self.pods[uid] = self.loop.create_task(self.delete(pod))
        elif uid not in self.pods and pod["status"].get("phase") not in ("Succeeded", "Failed"):
            self.pods[uid] = self.loop.create_task(self.play(pod))

    async def play(self, pod: Object) -> None:
        """The pod runs and ends as the script says, or is killed."""
        key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
        killed = self.killed[key] = asyncio.Event()
        started, ending = now(), self.script(pod)
        number = next(self.addresses)
        address = f"127.20.{number // 250 % 250}.{number % 250 + 2}"
        await self.report(pod, "Running", {"running": {"startedAt": started}}, address)
        try:
            await asyncio.wait_for(killed.wait(), ending.seconds)
            ending = Ending(exit_code=137)
        except TimeoutError:
            pass  # nobody killed it: it ends as the script says
        finally:
            self.killed.pop(key, None)
        phase = "Failed" if ending.exit_code else "Succeeded"
        await self.report(pod, phase, ending.terminated(started, now()), address)

    async def report(self, pod: Object, phase: str, state: dict[str, Any], address: str) -> None:
        """The pod's status at the API server; a pod that is gone meanwhile has none."""
        while pod["spec"]["nodeName"] in self.down:
            await asyncio.sleep(0.1)
        up = phase == "Running"
        statuses = [
            {"name": box["name"], "image": box["image"], "imageID": "none", "restartCount": 0, "ready": up,
             "started": up, "state": state}
            for box in pod["spec"]["containers"]
        ]  # fmt: skip
        ready = {"type": "Ready", "status": str(up), "lastTransitionTime": now()}
        status = {"phase": phase, "podIP": address, "podIPs": [{"ip": address}], "startTime": now(),
                  "conditions": [ready], "containerStatuses": statuses}  # fmt: skip
        body = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": status}
        await self.unless_gone("PATCH", f"{path_of(pod)}/status", body, STRATEGIC)

    async def delete(self, pod: Object) -> None:
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
        await self.unless_gone("DELETE", path_of(pod), body, "application/json")

    async def unless_gone(self, method: str, path: str, body: Object, form: str) -> None:
        try:
            await self.api.call(method, path, body, form)
        except ApiError as error:
            if error.code not in (404, 409):
                raise


def path_of(pod: Object) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


@contextlib.contextmanager
def node_agent(kubeconfig: Path, folder: Path, shape: NodeShape, script: Script = annotated) -> Iterator[NodeAgent]:
    """A running agent in a thread of its own. Raises TimeoutError when its nodes are not there within 30 s."""
    agent, ready = NodeAgent(shape, script), threading.Event()
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
