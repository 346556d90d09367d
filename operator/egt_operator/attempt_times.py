"""The times of one attempt: since when its pods run, how long it waited for them, what it has cost. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from egt_operator.api import EGTRun
from egt_operator.api_status import GpuHours, StageProgress, StageStatus
from egt_operator.children import Job, Pod
from egt_operator.observe import Seen
from egt_operator.render import gpus_of, pods_of
from egt_pipeline.contract.task import Progress

# A stage that ends within it costs no write of its own for having begun; Kubernetes gives times in whole seconds.
YOUNG = timedelta(seconds=2)
FIRST_SECONDS = 5.0  # after which the first progress may stand in the log


@dataclass(frozen=True)
class Evidence:
    """What was seen of an attempt: ``heard`` is when its log was read, ``active_seconds`` what was spent before it."""

    now: datetime
    job: Job | None
    pods: Sequence[Pod]
    progress: Progress | None
    heard: datetime | None
    active_seconds: float
    unmade: str = ""
    """Why pods of the job cannot be made, as training-operator said last."""


def clocked(run: EGTRun, stage: StageStatus, seen: Seen, evidence: Evidence) -> tuple[StageStatus, float]:
    """The stage with its times and progress brought up to now, and the run's active seconds before this attempt."""
    now, active = evidence.now, evidence.active_seconds
    if seen.state != "Running":
        if seen.state == "Queued" and evidence.pods:  # its queue has taken the place away
            ran = stage.running_since is not None or _began(evidence) is not None
            since = now if ran else stage.queued_since
            stage, active = ended(run, stage, evidence, wasted=True)
            stage = stage.model_copy(update={"queued_since": since, "pods_created": _youngest(evidence)})
        message = None if seen.reason == "Starting" else seen.message
        return stage.model_copy(update={"reason": seen.reason, "message": message}), active
    if stage.running_since is None:
        if settles(stage, seen, evidence) is not None:
            return stage, active
        stage = _begun(stage, evidence).model_copy(update={"progressed": now, "pods_created": _youngest(evidence)})
    stage = stage.model_copy(update={"reason": None, "message": None})
    found = evidence.progress
    if found is not None and (stage.progress is None or found.done != stage.progress.done):
        progress = StageProgress(done=found.done, total=found.total, unit=found.unit)
        stage = stage.model_copy(update={"progress": progress, "progressed": now})
    return stage, active


def of_this_turn(stage: StageStatus, pods: Sequence[Pod]) -> list[Pod]:
    """Pods without those that a queue has taken away: their names come again, and they may take long to end."""
    if stage.running_since is not None or stage.pods_created is None:
        return list(pods)
    return [pod for pod in pods if pod.created > stage.pods_created]


def settles(stage: StageStatus, seen: Seen, evidence: Evidence) -> datetime | None:
    """When pods that have just begun to run are worth telling; None if they are, or do not run."""
    began = _began(evidence)
    if seen.state != "Running" or stage.running_since is not None or began is None:
        return None
    return began + YOUNG if began <= evidence.now < began + YOUNG else None  # in between: no node's clock is ahead


def _began(evidence: Evidence) -> datetime | None:
    """Since when all its pods run, by their own word; None if one has not begun."""
    starts = [pod.started for pod in evidence.pods]
    known = [start for start in starts if start is not None]
    return max(known) if known and len(known) == len(starts) else None


def _youngest(evidence: Evidence) -> datetime:
    return max(pod.created for pod in evidence.pods)


def _begun(stage: StageStatus, evidence: Evidence) -> StageStatus:
    """The stage with its pods running since they say so, within what can be: clocks of nodes may be wrong."""
    began = _began(evidence) or evidence.now
    began = min(max(began, stage.queued_since or began), evidence.now)
    waited = (began - (stage.queued_since or began)).total_seconds()
    return stage.model_copy(
        update={
            "running_since": began, "queued_since": None, "queue_seconds": (stage.queue_seconds or 0.0) + waited,
        }
    )  # fmt: skip


def ended(run: EGTRun, stage: StageStatus, evidence: Evidence, *, wasted: bool) -> tuple[StageStatus, float]:
    """The stage with its pods no longer running, what they cost counted; and the run's active seconds."""
    if stage.running_since is None and _began(evidence) is not None:  # they ran while nobody looked
        stage = _begun(stage, evidence)
    if stage.running_since is None:
        return stage.model_copy(update={"queued_since": None}), evidence.active_seconds
    # The operator may have been away when they ended.
    ends = [pod.finished for pod in evidence.pods if pod.finished and not pod.alive]
    end = max(ends) if ends and len(ends) == len(evidence.pods) else evidence.now
    seconds = max((min(end, evidence.now) - stage.running_since).total_seconds(), 0.0)
    hours = seconds * gpus_of(run, stage.name) * pods_of(run, stage.name) / 3600
    before = stage.gpu_hours or GpuHours()
    spent = before.model_copy(update={"used": before.used + hours, "wasted": before.wasted + hours * wasted})
    ended = stage.model_copy(update={"running_since": None, "queued_since": None, "gpu_hours": spent})
    return ended, evidence.active_seconds + seconds
