"""How a simulated pod ends: the script of simulate mode."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
