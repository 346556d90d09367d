"""Simulate mode: pods that end by script. No process is started, no store is written."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from node_agent import NodeAgent
from node_pod import NodePod, box_status, now

SECONDS, EXIT, REASON, MESSAGE = (f"simulate.egt.test/{name}" for name in ("seconds", "exit", "reason", "message"))


@dataclass(frozen=True)
class Ending:
    """What becomes of each container: it runs so many seconds and ends so. seconds None: it runs until deleted."""

    seconds: float | None = 0.0
    exit_code: int = 0
    reason: str = ""
    message: str = ""

    def terminated(self, started: str, finished: str) -> dict[str, Any]:
        """The container's final state, as a kubelet reports it."""
        reason = self.reason or ("Error" if self.exit_code else "Completed")
        state: dict[str, Any] = {
            "exitCode": self.exit_code, "reason": reason, "startedAt": started, "finishedAt": finished,
        }  # fmt: skip
        return {"terminated": state | ({"message": self.message} if self.message else {})}


Script = Callable[[dict[str, Any]], Ending]


def annotated(pod: dict[str, Any]) -> Ending:
    """The ending that the pod's own annotations ask for; without any it ends well at once."""
    notes = pod["metadata"].get("annotations") or {}
    seconds = notes.get(SECONDS, "0")
    return Ending(
        None if seconds == "never" else float(seconds),
        int(notes.get(EXIT, "0")),
        notes.get(REASON, ""),
        notes.get(MESSAGE, ""),
    )


class SimulatedPods:
    """A runtime whose pods end as ``script`` says."""

    network, port = 20, 0

    def __init__(self, script: Script) -> None:
        self.script = script

    async def start(self, agent: NodeAgent) -> None:
        """Nothing has to be prepared."""

    async def stop(self) -> None:
        """Nothing has to be undone."""

    def forget(self, pod: NodePod) -> None:
        """Nothing is left of a pod that never was."""

    async def run(self, pod: NodePod) -> None:
        """The pod runs and ends as the script says, unless it is killed or removed before."""
        started, ending, boxes = now(), self.script(pod.object), pod.object["spec"]["containers"]
        running = {"running": {"startedAt": started}}
        await pod.report("Running", [box_status(box, running, ready=True) for box in boxes])
        ends = [asyncio.ensure_future(event.wait()) for event in (pod.killed, pod.terminating)]
        try:
            await asyncio.wait(ends, timeout=ending.seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for waiting in ends:
                waiting.cancel()
        if pod.killed.is_set():
            ending = Ending(exit_code=137)
        elif pod.terminating.is_set():
            ending = Ending(exit_code=143)  # as a kubelet, which says how a pod ended before it goes
        ended = ending.terminated(started, now())
        await pod.report("Failed" if ending.exit_code else "Succeeded", [box_status(box, ended) for box in boxes])
