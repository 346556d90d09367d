"""Process mode: each container of a pod is a local process with its own mounts, processes, user and memory limit.

It is no container runtime: an image is a folder, and for every name without one the host's file system with this
checkout's interpreter; pods share the host's network; disk sizes and CPU limits are not enforced. Needs root.
"""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import yaml
from aiohttp import web

from control_plane import ControlPlane
from kubelet_server import serve_logs
from node_agent import NodeAgent
from node_api import Object
from node_pod import NodePod
from pod_files import PodFiles, host_names, write_in_place
from pod_image import PodImage, checkout_image
from pod_run import PodRun
from s3_server import free_port

HERE = Path(__file__).parent
MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")


def why_not() -> str | None:
    """Why this machine can run no pods as processes; None when it can."""
    if os.geteuid() != 0:
        return "pods as processes need root: mounts, namespaces and users are made"
    if shutil.which("cc") is None:
        return "pods as processes need a C compiler (cc), for the library that gives each pod its own address"
    base = "mount -t tmpfs tmpfs /mnt && mkdir /mnt/u /mnt/w /mnt/r"
    overlay = "mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r"
    tried = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "sh", "-c", f"{base} && {overlay}"]
    done = subprocess.run(tried, check=False, capture_output=True, text=True)
    return f"pods as processes need namespaces and overlays: {done.stderr.strip()}" if done.returncode else None


def limits_memory() -> bool:
    """Whether memory limits can be enforced here: cgroup v1 with a memory controller."""
    return (MEMORY_GROUPS / "memory.limit_in_bytes").exists()


def claim_network() -> tuple[int, socket.socket]:
    """A network 127.<number> that no other agent of this machine uses as long as the socket is open."""
    for number in range(30, 250):
        claim = socket.socket()
        with contextlib.suppress(OSError):
            claim.bind((f"127.{number}.0.1", 1))
            return number, claim
        claim.close()
    raise RuntimeError("every network from 127.30 to 127.249 is in use")


class ProcessPods:
    """A runtime for nodes of ``plane``; ``images`` it knows by name, every other is this checkout."""

    def __init__(self, plane: ControlPlane, images: dict[str, PodImage] | None = None) -> None:
        assert plane.authority, "logs are served with a certificate of the control plane's own authority"
        plane.authority.issue("kubelet", "kubelet")
        folder, server = plane.folder, yaml.safe_load(plane.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
        self.plane_folder, self.folder, self.port = folder, folder / "pods", free_port()
        self.network, self._claim = claim_network()
        self.shim = folder / "bind_shim.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", self.shim, HERE / "bind_shim.c", "-ldl"], check=True)
        host, port = server.removeprefix("https://").split(":")
        self._given = {"HOME": "/", "KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
        self._images = images or {}
        self.services: dict[str, Object] = {}
        self.running: dict[str, PodRun] = {}
        self._watch: asyncio.Task[None]
        self._logs: web.AppRunner

    async def start(self, agent: NodeAgent) -> None:
        """Logs are served, and Services are followed."""
        self.agent = agent
        self.folder.mkdir(exist_ok=True)
        self._watch = asyncio.create_task(agent.api.watch("/api/v1/services", self.see_service))
        self._logs = await serve_logs(self.plane_folder, self.port, self.log_of)

    async def stop(self) -> None:
        """Nothing of the pods is left, on disk, in memory or on the network."""
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)
        await self._logs.cleanup()
        self._claim.close()
        for pod in self.agent.pods.values():
            self.forget(pod)

    def image_of(self, name: str) -> PodImage:
        """What a container of the image starts from, with what a kubelet adds to its variables."""
        found = self._images.get(name) or checkout_image()
        return replace(found, environment=found.environment | self._given, shown=[*found.shown, str(self.shim)])

    def see_service(self, event: str, service: Object) -> None:
        if event == "LISTED":
            self.services.clear()
        elif event == "DELETED":
            self.services.pop(service["metadata"]["uid"], None)
        else:
            self.services[service["metadata"]["uid"]] = service
        self.refresh_names()

    def refresh_names(self) -> None:
        """Every pod's /etc/hosts says which pods stand behind which Service now."""
        runs = list(self.running.values())
        pods = [run.pod for run in runs if run.started]
        for run in runs:
            write_in_place(run.hosts, host_names(run.pod, pods, list(self.services.values())))

    def log_of(self, namespace: str, pod: str, box: str) -> Path | None:
        """The latest log of a container, also of a pod that has ended and is still known."""
        for known in self.agent.pods.values():
            if (known.namespace, known.name) == (namespace, pod):
                logs = sorted((self.folder / known.uid).glob(f"{box}-*.log"), key=lambda log: log.stat().st_mtime)
                return logs[-1] if logs else None
        return None

    async def run(self, pod: NodePod) -> None:
        """Runs the pod's containers until all have ended. Whatever goes wrong here fails the pod by name."""
        run = PodRun(self, pod)
        self.running[pod.uid] = run
        self.refresh_names()
        try:
            await run.run()
        except asyncio.CancelledError:
            raise  # the pod is gone at the API server, or the cluster ends
        except Exception as error:
            await pod.report("Failed", [], reason="AgentError", message=repr(error))
            raise
        finally:
            self.running.pop(pod.uid, None)
            self.refresh_names()

    def forget(self, pod: NodePod) -> None:
        """Nothing of the pod is left on the machine."""
        PodFiles(pod, self.folder / pod.uid).clean()
