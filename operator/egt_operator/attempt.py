"""One attempt of one stage, followed from its creation to its end. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from egt_operator.api import EGTRun
from egt_operator.api_status import MESSAGE_CHARACTERS, Failure, FailureClass, StageStatus, Stopping
from egt_operator.attempt_times import FIRST_SECONDS, Evidence, clocked, ended, of_this_turn, settles
from egt_operator.children import Job, Pod
from egt_operator.observe import HOPELESS, IMAGE, UNMADE, Cause, Seen, observe
from egt_operator.plan import Phase
from egt_operator.render import pods_of
from egt_operator.settings import Settings
from egt_pipeline.contract.errors import excerpt
from egt_pipeline.contract.task import Summary

_NEVER_AGAIN = ("UserError", "Deadline")
_RETRY_FIELD: Mapping[FailureClass, str] = {
    "OutOfMemory": "out_of_memory",
    "NodeLost": "node_lost",
    "Preempted": "preempted",
    "Hang": "hang",
    "BadInput": "bad_input",
    "Unavailable": "unavailable",
    "Crash": "crash",
}
_CLASS_OF_STOP: Mapping[Stopping, FailureClass] = {
    "Hang": "Hang",
    "Deadline": "Deadline",
    "RankReplaced": "NodeLost",
    "Deleted": "Preempted",
}
_TOO_EARLY = Cause("Preempted", "its queue took its pods away, and admitted it again before they had ended")
UNMADE_SECONDS = 20.0
"""After so long without its pods a job is asked why; a busy training-operator takes a few seconds."""
_NUDGE_SECONDS = 60.0  # training-operator itself waits longer after each failure, up to 17 minutes
_POLL_SECONDS = 1.0  # while pods end


@dataclass(frozen=True)
class Step:
    """The stage as it is now, and what follows from it."""

    stage: StageStatus
    active_seconds: float
    create: bool = False
    delete: bool = False
    nudge: bool = False
    summary: Summary | None = None
    inputs_missing: bool = False
    wake: datetime | None = None


def follow(run: EGTRun, stage: StageStatus, evidence: Evidence, settings: Settings) -> Step:
    """What has become of the attempt that ``stage`` says is under way."""
    if evidence.job is None:
        return _without_job(run, stage, evidence, settings)
    job, known = evidence.job, len(evidence.pods)
    evidence = replace(evidence, pods=of_this_turn(stage, evidence.pods))
    seen = observe(job, evidence.pods, pods_of(run, stage.name), evidence.unmade)
    if seen.cause is not None and len(evidence.pods) < known and not any(p.phase == "Failed" for p in evidence.pods):
        seen = replace(seen, cause=_TOO_EARLY)  # training-operator counts the pods of the turn before as failed
    if seen.reason != "Starting" and settles(stage, seen, evidence) is None:  # each stage would cost one write more
        stage = stage.model_copy(update={"job_uid": job.uid})
    if seen.state == "Succeeded":
        over, active = ended(run, stage, evidence, wasted=False)
        return Step(over, active, summary=seen.summary)
    if stage.stopping is not None:
        return Step(stage, evidence.active_seconds, delete=True)
    if seen.cause is not None:
        return _failed(run, stage, evidence, seen.cause, settings)
    stage, active = clocked(run, stage, seen, evidence)
    evidence = replace(evidence, active_seconds=active)
    why, message = _must_stop(run, stage, seen, evidence, settings)
    if why == "Unstartable":
        return _failed(run, stage, evidence, Cause("UserError", message), settings)
    if why is not None:
        stopped = stage.model_copy(update={"stopping": why, "reason": why, "message": message})
        return Step(stopped, active, delete=True)
    nudge = seen.reason == UNMADE and _next_nudge(job) <= evidence.now
    return Step(stage, active, nudge=nudge, wake=_next_deadline(run, stage, seen, evidence, settings))


def _without_job(run: EGTRun, stage: StageStatus, evidence: Evidence, settings: Settings) -> Step:
    """The job is not made yet, or gone: by this operator's doing, or somebody else's."""
    if stage.job_uid is None and stage.stopping is None:
        if not run.spec.suspend:
            if writing(evidence.pods, evidence.now, settings):  # somebody deleted the job before it was noted down
                return Step(stage, evidence.active_seconds, wake=evidence.now + timedelta(seconds=_POLL_SECONDS))
            return Step(stage, evidence.active_seconds, create=True)
        stage = stage.model_copy(update={"stopping": "Suspend"})
    why = stage.stopping or "Deleted"
    said = stage.message if stage.stopping else f"the PyTorchJob {stage.job} was deleted"
    stage = stage.model_copy(update={"stopping": why, "message": said})
    if writing(evidence.pods, evidence.now, settings):
        return Step(stage, evidence.active_seconds, wake=evidence.now + timedelta(seconds=_POLL_SECONDS))
    if why == "Suspend":
        over, active = ended(run, stage, evidence, wasted=False)
        waiting = {"phase": Phase.WAITING, "stopping": None, "reason": "Suspended", "message": None}
        return Step(over.model_copy(update=waiting), active)
    return _failed(run, stage, evidence, Cause(_CLASS_OF_STOP[why], said or why), settings)


def _must_stop(
    run: EGTRun, stage: StageStatus, seen: Seen, evidence: Evidence, settings: Settings
) -> tuple[Stopping | Literal["Unstartable"] | None, str]:
    """Why the attempt cannot go on, if so, in one word and for people."""
    now, spec = evidence.now, run.spec
    if run.spec.suspend and (run.spec.suspend_policy == "Immediate" or seen.state != "Running"):  # nothing to finish
        return "Suspend", "spec.suspend is true"
    if stage.pods_created and any(pod.created > stage.pods_created for pod in evidence.pods) and stage.running_since:
        return "RankReplaced", "a pod was replaced while the others went on; all ranks start again together"
    if _passed(stage.running_since, spec.active_deadline_seconds, now, evidence.active_seconds):
        return "Deadline", f"the run was active for activeDeadlineSeconds: {spec.active_deadline_seconds}"
    if seen.state != "Running" and _passed(stage.queued_since, spec.queue_deadline_seconds, now):
        return "Deadline", f"waited for queueDeadlineSeconds: {spec.queue_deadline_seconds}: {seen.message}"
    # A log that cannot be read says nothing about its stage.
    if stage.running_since and evidence.heard and _passed(stage.progressed, spec.hang_deadline_seconds, evidence.heard):
        return "Hang", f"no progress for hangDeadlineSeconds: {spec.hang_deadline_seconds}"
    if seen.reason in (*HOPELESS, *IMAGE) and _passed(_placed(evidence.pods), settings.pending_seconds, now):
        return "Unstartable", f"{seen.reason}: {seen.message}"
    return None, ""


def writing(pods: Sequence[Pod], now: datetime, settings: Settings) -> list[Pod]:
    """Pods that may still write somewhere: they have not ended, and are not given up."""
    known = [(pod, pod.given_up(settings.lost_node_seconds)) for pod in pods if pod.alive]
    return [pod for pod, end in known if end is None or end > now]


def _passed(since: datetime | None, limit: float | None, now: datetime, before: float = 0.0) -> bool:
    return since is not None and limit is not None and before + (now - since).total_seconds() >= limit


def _placed(pods: Sequence[Pod]) -> datetime | None:
    """Since when every pod has had its node; before that, it cannot have begun to pull its image."""
    return max((pod.scheduled or pod.created for pod in pods), default=None)


def without_pods(run: EGTRun, stage: StageStatus, job: Job, pods: Sequence[Pod], now: datetime) -> bool:
    """True for a job that has been there for a while, and some of whose pods have not."""
    waits = not job.suspended and job.outcome is None and stage.running_since is None
    late = now >= job.wanted + timedelta(seconds=UNMADE_SECONDS)
    return waits and late and len(pods) < pods_of(run, stage.name)


def _next_nudge(job: Job) -> datetime:
    return max(job.nudged or job.wanted, job.wanted) + timedelta(seconds=_NUDGE_SECONDS)


def _next_question(job: Job, now: datetime) -> datetime:
    """When to ask (again) why the job has no pods."""
    times = (job.wanted + timedelta(seconds=UNMADE_SECONDS), _next_nudge(job))
    return min((time for time in times if time > now), default=now + timedelta(seconds=_NUDGE_SECONDS))


def _next_deadline(
    run: EGTRun, stage: StageStatus, seen: Seen, evidence: Evidence, settings: Settings
) -> datetime | None:
    """When the attempt has to be looked at again although nothing happens."""
    spec, due = run.spec, []
    if (settled := settles(stage, seen, evidence)) is not None:
        due.append(settled)
    if evidence.job and seen.state == "Pending" and len(evidence.pods) < pods_of(run, stage.name):
        due.append(_next_question(evidence.job, evidence.now))
    if stage.running_since and spec.active_deadline_seconds is not None:
        left = spec.active_deadline_seconds - evidence.active_seconds
        due.append(stage.running_since + timedelta(seconds=left))
    if stage.queued_since and spec.queue_deadline_seconds is not None:
        due.append(stage.queued_since + timedelta(seconds=spec.queue_deadline_seconds))
    if stage.running_since and stage.progressed:
        hangs = stage.progressed + timedelta(seconds=spec.hang_deadline_seconds)
        due += [hangs] if hangs > evidence.now else []
        young = (evidence.now - stage.running_since).total_seconds() < FIRST_SECONDS
        due.append(evidence.now + timedelta(seconds=FIRST_SECONDS if young else settings.progress_seconds))
    if (placed := _placed(evidence.pods)) and seen.reason in (*HOPELESS, *IMAGE):
        due.append(placed + timedelta(seconds=settings.pending_seconds))
    return min(due, default=None)


def _failed(run: EGTRun, stage: StageStatus, evidence: Evidence, cause: Cause, settings: Settings) -> Step:
    over, active = ended(run, stage, evidence, wasted=True)
    stage = failed(run, over, cause, evidence.now, settings)
    # A pod that cannot start never ends by itself; of a pod that was taken away training-operator makes another.
    taken = cause.kind in ("NodeLost", "Preempted") and evidence.job is not None and evidence.job.outcome is None
    delete = (cause.exit_code is None and cause.kind == "UserError") or taken
    return Step(stage, active, delete=delete, inputs_missing=cause.kind == "BadInput", wake=stage.next_attempt)


def failed(run: EGTRun, stage: StageStatus, cause: Cause, now: datetime, settings: Settings) -> StageStatus:
    """The stage after an attempt has failed: to be tried again after a pause, or given up."""
    count = stage.retries.get(cause.kind, 0) + 1
    limit = 0 if cause.kind in _NEVER_AGAIN else getattr(run.spec.retry, _RETRY_FIELD[cause.kind])
    failure = Failure.model_validate(
        {"class": cause.kind, "attempt": stage.attempt, "exit_code": cause.exit_code,
         "message": excerpt(cause.message, MESSAGE_CHARACTERS), "time": now}
    )  # fmt: skip
    update = {
        "retries": {**stage.retries, cause.kind: count}, "last_failure": failure, "stopping": None,
        "queued_since": None, "progress": None,
    }  # fmt: skip
    if count > limit:
        said = cause.message if limit == 0 else f"{cause.message} (tried {limit + 1} times)"
        return stage.model_copy(
            update={**update, "phase": Phase.FAILED, "finished": now, "reason": cause.kind, "message": said}
        )
    pause = backoff_seconds(sum(stage.retries.values()) + 1, cause.kind, settings)
    again = {"phase": Phase.WAITING, "reason": cause.kind, "message": cause.message}
    return stage.model_copy(update={**update, **again, "next_attempt": now + timedelta(seconds=pause)})


def backoff_seconds(failures: int, kind: FailureClass, settings: Settings) -> float:
    """The pause after so many failures of a stage: doubled each time, except after a failure that was not its own."""
    if kind in ("Preempted", "NodeLost"):
        return settings.backoff_seconds
    exponent = min(failures - 1, 30)  # beyond it the limit holds in any case
    return min(settings.backoff_seconds * 2.0**exponent, settings.backoff_limit_seconds)
