"""Jobs and pods of runs, each as far as anything decides by it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from egt_operator.api import KIND
from egt_operator.render import CONTAINER

JOB_LABEL = "training.kubeflow.org/job-name"  # training-operator's own
NUDGED = "egt.dev/nudged"
"""Annotation of a job whose pods cannot be made: when training-operator was last brought to try again."""
_ENDED = ("Succeeded", "Failed")
_EVICTED = ("Evicted", "Preempting", "Preempted")


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod of an attempt."""

    name: str
    job: str
    created: datetime
    phase: str
    owner_uid: str = ""
    """UID of its job: one of an earlier run may have had the same name."""
    deleted: datetime | None = None
    """By when it is to be gone."""
    node: str | None = None
    exit_code: int | None = None
    reason: str = ""
    """Why its container waits or ended."""
    message: str = ""
    """Its last words, or why its container waits."""
    started: datetime | None = None
    """When its container started."""
    finished: datetime | None = None
    """When its container ended."""
    eviction: str = ""
    """What the cluster says when it has taken the pod's place away, reason first."""
    scheduled: datetime | None = None
    """When it got its node."""
    unschedulable: str = ""
    disruption: str = ""
    """Reason of the DisruptionTarget condition."""
    lost: bool = False
    """True once the cluster has said that its node is."""

    @property
    def alive(self) -> bool:
        """True until it has ended."""
        return self.phase not in _ENDED

    def given_up(self, patience_seconds: float) -> datetime | None:
        """When it counts as gone although it has not ended: its node does not answer. None: never."""
        return self.deleted + timedelta(seconds=patience_seconds) if self.deleted else None


@dataclass(frozen=True, slots=True)
class Job:
    """One PyTorchJob, which is one attempt of one stage."""

    name: str
    uid: str
    owner_uid: str
    wanted: datetime
    """Since when its pods are to be there: its creation, or the end of its last suspension."""
    owner_name: str = ""
    """The EGTRun it belongs to; empty if it is another kind of object's, or nobody's."""
    suspended: bool = False
    outcome: Literal["Succeeded", "Failed"] | None = None
    message: str = ""
    nudged: datetime | None = None
    """When training-operator was last brought to try again."""


def parse_pod(body: Mapping[str, Any]) -> Pod:
    """A pod as the API server gives it."""
    metadata, status = body["metadata"], body.get("status") or {}
    conditions = {found["type"]: found for found in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled", {})
    exit_code, reason, message = _container(status)
    times = _times(status)
    evicted = status.get("reason") in _EVICTED
    return Pod(
        name=metadata["name"],
        job=(metadata.get("labels") or {}).get(JOB_LABEL, ""),
        created=parse_time(metadata["creationTimestamp"]),
        phase=status.get("phase", "Pending"),
        deleted=parse_time(metadata["deletionTimestamp"]) if "deletionTimestamp" in metadata else None,
        node=body.get("spec", {}).get("nodeName"),
        exit_code=exit_code,
        owner_uid=_controller(metadata).get("uid", ""),
        reason=reason or status.get("reason", ""),
        message=message or status.get("message", ""),
        started=parse_time(times["startedAt"]) if times.get("startedAt") else None,
        finished=parse_time(times["finishedAt"]) if times.get("finishedAt") else None,
        eviction=f"{status['reason']}: {status.get('message', '')}" if evicted else "",
        scheduled=parse_time(scheduled["lastTransitionTime"]) if scheduled.get("status") == "True" else None,
        unschedulable=scheduled.get("message", "") if scheduled.get("reason") == "Unschedulable" else "",
        disruption=conditions.get("DisruptionTarget", {}).get("reason", ""),
        lost=status.get("reason") == "NodeLost",
    )


def has_ended(body: Mapping[str, Any]) -> bool:
    """True for a pod, as the API server gives it, all of whose containers have ended."""
    return (body.get("status") or {}).get("phase") in _ENDED


def _container(status: Mapping[str, Any]) -> tuple[int | None, str, str]:
    """Exit code, reason and message of the container of ours, else of what keeps it from starting."""
    ours = [c for c in status.get("containerStatuses") or () if c["name"] == CONTAINER]
    for found in [*ours, *(status.get("initContainerStatuses") or ())]:
        state = found.get("state") or {}
        if (ended := state.get("terminated")) and (found["name"] == CONTAINER or ended["exitCode"]):
            return ended["exitCode"], ended.get("reason", ""), ended.get("message", "")
        waiting = state.get("waiting") or {}
        if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return None, waiting["reason"], waiting.get("message", "")
    return None, "", ""


def _times(status: Mapping[str, Any]) -> Mapping[str, str]:
    """When the container of ours started and finished, as far as it has."""
    ours: Mapping[str, Any] = next((c for c in status.get("containerStatuses") or () if c["name"] == CONTAINER), {})
    state: Mapping[str, Any] = ours.get("state") or {}
    found: Mapping[str, str] = state.get("terminated") or state.get("running") or {}
    return found


def parse_job(body: Mapping[str, Any]) -> Job:
    """A PyTorchJob as the API server gives it."""
    metadata, status = body["metadata"], body.get("status") or {}
    true = {found["type"]: found for found in status.get("conditions") or () if found["status"] == "True"}
    outcome = "Succeeded" if "Succeeded" in true else "Failed" if "Failed" in true else None
    owner = _controller(metadata)
    return Job(
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=owner.get("uid", ""),
        wanted=parse_time(_resumed(status) or metadata["creationTimestamp"]),
        owner_name=owner["name"] if owner.get("kind") == KIND else "",
        suspended=bool(body["spec"].get("runPolicy", {}).get("suspend")),
        outcome=outcome,  # type: ignore[arg-type]
        message=true[outcome].get("message", "") if outcome else "",
        nudged=parse_time(nudged) if (nudged := (metadata.get("annotations") or {}).get(NUDGED)) else None,
    )


def _resumed(status: Mapping[str, Any]) -> str | None:
    """When its last suspension ended."""
    found = (one for one in status.get("conditions") or () if one["type"] == "Suspended" and one["status"] == "False")
    return next((one.get("lastTransitionTime") for one in found), None)


def _controller(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """The owner reference of the object that controls this one; empty if none does."""
    return next((owner for owner in metadata.get("ownerReferences") or () if owner.get("controller")), {})


def parse_time(text: str) -> datetime:
    """A time as the API server writes it."""
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
