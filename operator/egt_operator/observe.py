"""What PyTorchJobs and their pods say of an attempt, in our own words. Pure.

A PyTorchJob's conditions only say that something failed; why it did stands in its pods. Every cause becomes one class,
and the class decides whether and how often a stage is tried again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from egt_operator.api_status import FailureClass
from egt_operator.children import Job, Pod
from egt_pipeline.contract.errors import (
    ArtifactError,
    DiskFullError,
    PeerLostError,
    StoppedError,
    TaskError,
    UnavailableError,
)
from egt_pipeline.contract.task import Summary

State = Literal["Queued", "Pending", "Running", "Succeeded", "Failed"]

# Reasons of a waiting container that no waiting cures; a kubelet tries image pulls again, so they get some time.
HOPELESS = ("InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError")
IMAGE = ("ErrImagePull", "ImagePullBackOff")
UNMADE = "PodsRefused"
"""Reason of an attempt whose pods the cluster does not let be made, as by a quota."""
_INVALID = " is invalid: "  # the API server's words for what no waiting cures
_CORRECTED = "what is corrected in the manifest counts after suspend: true and false"
_COUNTED = "replica(s) failed"  # training-operator's words for pods that failed or were deleted
_TOLD = (StoppedError.exit_code, 137)  # of a pod that ended as it was asked to, or by force after its grace
_BY_EXIT_CODE: Mapping[int, FailureClass] = {
    TaskError.exit_code: "UserError",
    ArtifactError.exit_code: "BadInput",
    UnavailableError.exit_code: "Unavailable",
    DiskFullError.exit_code: "UserError",
    # As long as the other pod says nothing itself, it is its node that does not answer.
    PeerLostError.exit_code: "NodeLost",
    # Somebody asked the process to stop, and it was not this operator: its node is drained or its place is taken.
    StoppedError.exit_code: "Preempted",
}
_BY_DISRUPTION: Mapping[str, FailureClass] = {
    "DeletionByTaintManager": "NodeLost",
    "DeletionByPodGC": "NodeLost",
    "PreemptionByScheduler": "Preempted",
    "EvictionByEvictionAPI": "Preempted",
    "TerminationByKubelet": "Preempted",
}


@dataclass(frozen=True)
class Cause:
    """Why an attempt failed."""

    kind: FailureClass
    message: str
    exit_code: int | None = None


@dataclass(frozen=True)
class Seen:
    """What an attempt is doing."""

    state: State
    reason: str = ""
    message: str = ""
    summary: Summary | None = None
    cause: Cause | None = None


def observe(job: Job, pods: Sequence[Pod], expected: int, unmade: str = "") -> Seen:
    """What the attempt does, of ``expected`` pods; ``unmade`` says why some of them cannot be made.

    An ended pod says more than its job, which hears of it later; the first rank's summary is the stage's.
    """
    first = next((pod for pod in pods if pod.name.endswith("-master-0")), None)
    if job.suspended and job.outcome is None and (first is None or first.phase != "Succeeded"):
        # Whatever its pods say: they were taken away.
        return Seen("Queued", "Queued", "waits for its queue to admit it")
    failed = [pod for pod in pods if pod.phase == "Failed" or (pod.alive and (pod.disruption or pod.lost))]
    by_itself = _by_itself(failed)
    if by_itself and job.outcome != "Succeeded":
        return Seen("Failed", cause=cause_of(_worst(by_itself)))
    if first is not None and first.phase == "Succeeded":
        return _ended_well(first)
    if job.outcome == "Succeeded":
        # Its pod was removed before it was read. What it published is found by the next attempt.
        return Seen("Failed", cause=Cause("Crash", "the pod was removed before its last words were read"))
    if failed or job.outcome == "Failed":
        return Seen("Failed", cause=_taken_away(job, pods, expected))
    return _waiting(pods, expected, unmade)


def _by_itself(failed: Sequence[Pod]) -> list[Pod]:
    """Of failed pods those that nobody told to end, and that did not fail for want of one that was told."""
    told = [pod for pod in failed if _was_told(pod)]
    first = min((pod.finished for pod in told if pod.finished), default=None)
    return [
        pod
        for pod in failed
        if not _was_told(pod)
        and not (told and pod.exit_code == PeerLostError.exit_code)
        and (first is None or pod.finished is None or pod.finished <= first)
    ]


def _was_told(pod: Pod) -> bool:
    """True for a pod that ended since somebody deleted it, which is what becomes of all pods of a job that failed."""
    own_reason = pod.disruption or pod.eviction or pod.reason == "OOMKilled"
    return pod.deleted is not None and pod.exit_code in _TOLD and not own_reason


def _taken_away(job: Job, pods: Sequence[Pod], expected: int) -> Cause:
    """Why a job ends of which no pod failed by itself: training-operator counts running pods that are deleted too."""
    if len(pods) < expected and _COUNTED in job.message:
        return Cause("NodeLost", f"{expected - len(pods)} of {expected} pods are not there any more: {job.message}")
    deleted = [(pod.deleted, pod.name) for pod in pods if pod.deleted is not None]
    if deleted:  # the others follow, of a job that failed
        return Cause("Preempted", f"somebody deleted {min(deleted)[1]}")
    return Cause("Crash", job.message or "the job failed without a trace")


def _ended_well(first: Pod) -> Seen:
    try:
        summary = Summary.model_validate_json(first.message)
    except ValidationError:
        cause = Cause("Crash", f"{first.name}: ended without a summary: {first.message[-500:]!r}", first.exit_code)
        return Seen("Failed", cause=cause)
    return Seen("Succeeded", summary=summary)


def _waiting(pods: Sequence[Pod], expected: int, unmade: str) -> Seen:
    for pod in pods:
        if pod.reason in HOPELESS or pod.reason in IMAGE:
            return Seen("Pending", pod.reason, f"{pod.name}: {pod.message or pod.reason}")
    for pod in pods:
        if pod.unschedulable:
            return Seen("Pending", "Unschedulable", f"{pod.name}: {pod.unschedulable}")
    if len(pods) < expected and _INVALID in unmade:
        return Seen("Failed", cause=Cause("UserError", f"its pods cannot be made: {unmade}"))
    if len(pods) < expected and unmade:
        return Seen("Pending", UNMADE, f"{len(pods)} of {expected} pods could be made: {unmade}; {_CORRECTED}")
    running = sum(pod.phase == "Running" for pod in pods)
    if len(pods) >= expected and running == sum(pod.alive for pod in pods) and running:
        return Seen("Running")
    return Seen("Pending", "Starting", f"{running} of {expected} pods run")


def _worst(failed: Sequence[Pod]) -> Pod:
    """The pod that says most about why: what a rank said itself before what others were told by its end."""
    order: list[FailureClass] = ["UserError", "OutOfMemory", "BadInput", "NodeLost", "Preempted", "Unavailable"]
    rank = {kind: place for place, kind in enumerate(order)}

    def place(pod: Pod) -> tuple[bool, int, str]:
        return pod.exit_code == PeerLostError.exit_code, rank.get(cause_of(pod).kind, len(order)), pod.name

    return min(failed, key=place)


def cause_of(pod: Pod) -> Cause:
    """Why a pod failed, by its own traces: the cluster's reasons before the exit code."""
    said = _last_words(pod)
    if "exceeds the" in pod.eviction:  # the kubelet's words about a full scratch volume
        said = f"{pod.name}: {pod.eviction}; give it less to write, or the operator a larger settings.scratchSize"
        return Cause("UserError", said, pod.exit_code)
    if pod.disruption:
        kind = _BY_DISRUPTION.get(pod.disruption, "Preempted")
        return Cause(kind, f"{pod.name} on {pod.node}: {pod.disruption}", pod.exit_code)
    if pod.eviction:
        return Cause("Preempted", f"{pod.name} on {pod.node}: {pod.eviction}", pod.exit_code)
    if pod.lost or pod.reason in ("NodeLost", "ContainerStatusUnknown", "NodeShutdown", "Terminated"):
        return Cause("NodeLost", f"{pod.name}: its node {pod.node} was lost", pod.exit_code)
    if pod.reason == "OOMKilled":
        return Cause("OutOfMemory", f"{pod.name}: killed for memory; give the stage more memory", pod.exit_code)
    if pod.exit_code is None:
        return Cause("Crash", f"{pod.name}: {pod.reason or 'failed'}: {pod.message}")
    kind = _BY_EXIT_CODE.get(pod.exit_code, "Crash")
    return Cause(kind, f"{pod.name}: {said or f'exit code {pod.exit_code}'}", pod.exit_code)


def _last_words(pod: Pod) -> str:
    """The message of the stage's summary if there is one, else the end of its log."""
    try:
        return Summary.model_validate_json(pod.message).message
    except ValidationError:
        return pod.message.strip()
