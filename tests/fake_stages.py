"""What stages do in the cluster in memory, and what they say when they end."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from egt_operator.render import TASK_ANNOTATION

CONTENT = dict.fromkeys(("model", "sft", "rl", "rl-unlabelled", "evaluate"), "c0ffee")


@dataclass(frozen=True)
class Ending:
    """How the pods of an attempt end: after so many seconds of running, with this exit code, reason and message."""

    seconds: float = 10.0
    exit_code: int = 0
    reason: str = ""
    message: str | None = None
    disruption: str = ""


Script = Callable[[str, int], Ending]


def summary(task: Mapping[str, Any], published: dict[str, str]) -> str:
    """The last words of a stage that has succeeded; what it has made is ``published`` now."""
    prepare = task["stage"] == "prepare"
    digest = task["digest"] or "fa11ba5e00000000"
    published[f"{task['stage']}/{digest}"] = task["stage"]
    stages = {place.split("/")[0] for place in published}
    news = {f"published.{stage}": True for stage in stages} | {"published.sft.seconds": 3600.0}
    metrics = (
        {name: v for name, v in news.items() if name.split(".")[1] in stages} if prepare else {"final.accuracy": 0.9}
    )
    return json.dumps({"stage": task["stage"], "digest": digest, "phase": "Succeeded", "exit_code": 0,
                       "content": CONTENT if prepare else {}, "metrics": metrics})  # fmt: skip


def end(pod: dict[str, Any], ending: Ending, now: str, published: dict[str, str]) -> None:
    """The pod's status as its node leaves it."""
    task = json.loads(pod["metadata"]["annotations"][TASK_ANNOTATION])
    reason = ending.reason or ("Error" if ending.exit_code else "Completed")
    well = ending.message is None and not ending.exit_code
    message = summary(task, published) if well else ending.message or ""
    ended = {"exitCode": ending.exit_code, "reason": reason, "message": message,
             "startedAt": pod["status"]["startTime"], "finishedAt": now}  # fmt: skip
    pod["status"]["phase"] = "Failed" if ending.exit_code else "Succeeded"
    pod["status"]["containerStatuses"] = [{"name": "pytorch", "state": {"terminated": ended}}]
    if ending.disruption:
        pod["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": ending.disruption}]
