"""One pod on a node of ours: what is asked of it, and what the API server is told of it."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from node_api import STRATEGIC, ApiError, NodeApi, Object


def now(form: str = "%Y-%m-%dT%H:%M:%SZ") -> str:
    return datetime.now(UTC).strftime(form)


def path_of(pod: Object) -> str:
    return f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"


def box_status(box: Object, state: Object, *, ready: bool = False, restarts: int = 0) -> Object:
    """The status of a container as a kubelet reports it; ``state`` as in containerStatuses[].state."""
    up = "running" in state
    return {"name": box["name"], "image": box["image"], "imageID": "none", "restartCount": restarts,
            "ready": ready, "started": up, "state": state}  # fmt: skip


class NodePod:
    """A pod that a runtime runs. ``killed`` and ``terminating`` are what the runtime has to heed."""

    def __init__(self, api: NodeApi, made: Object, address: str, silent: Callable[[], bool]) -> None:
        self.api, self.object, self.address, self._silent = api, made, address, silent
        self.killed, self.terminating = asyncio.Event(), asyncio.Event()
        self.started = now()
        self.ready = False
        self.signal: Callable[[int], None] = lambda _: self.killed.set()
        """Sends a signal to every process of the pod; a pod without processes can only be killed."""

    @property
    def namespace(self) -> str:
        return str(self.object["metadata"]["namespace"])

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.object["metadata"]["uid"])

    @property
    def grace_seconds(self) -> float:
        """Between the request to end and the end by force."""
        return float(self.object["metadata"].get("deletionGracePeriodSeconds", 30))

    async def report(self, phase: str, boxes: Sequence[Object], first: Sequence[Object] = (), **more: Any) -> None:
        """The API server has this status afterwards, of a pod that still exists; a silent node waits until it speaks.

        Args:
            phase: as in status.phase.
            boxes: status of each container.
            first: status of each init container.
            more: further fields of the status.
        """
        while self._silent():
            await asyncio.sleep(0.1)
        self.ready = phase == "Running" and all(box["ready"] for box in boxes)
        conditions = [
            {"type": kind, "status": str(true), "lastTransitionTime": now()}
            for kind, true in (("Initialized", phase != "Pending"), ("ContainersReady", self.ready),
                               ("Ready", self.ready))
        ]  # fmt: skip
        status = {"phase": phase, "hostIP": "127.0.0.1", "podIP": self.address, "podIPs": [{"ip": self.address}],
                  "startTime": self.started, "conditions": conditions, "containerStatuses": list(boxes),
                  **more}  # fmt: skip
        if first:
            status["initContainerStatuses"] = list(first)
        body = {"metadata": {"uid": self.uid}, "status": status}
        with gone_is_fine():
            await self.api.call("PATCH", f"{path_of(self.object)}/status", body, STRATEGIC)

    async def remove(self) -> None:
        """The API server has forgotten the pod afterwards."""
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
        with gone_is_fine():
            await self.api.call("DELETE", path_of(self.object), body)


@contextlib.contextmanager
def gone_is_fine() -> Any:
    """A pod that is gone, or is another of the same name by now, needs nothing from us."""
    try:
        yield
    except ApiError as error:
        if error.code not in (404, 409):
            raise
