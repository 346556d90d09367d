"""What to do next for one run: a pure function of its spec, its status, and what was seen of its jobs and pods.

The status is the only memory. It is written before anything is created, so a crash between any two calls loses nothing:
the next look at the run goes on from what stands there. No clock runs here; every deadline is a stored time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from egt_operator.api import EGTRun
from egt_operator.api_status import TERMINAL, EGTRunStatus, StageStatus
from egt_operator.attempt import failed, follow, writing
from egt_operator.attempt_times import Evidence
from egt_operator.children import Job, Pod
from egt_operator.observe import Cause
from egt_operator.outcome import links_of, made_again, succeeded
from egt_operator.plan import Observed, Phase, Task, plan
from egt_operator.render import Owner, job_name
from egt_operator.settings import Settings
from egt_operator.status import said, seen_at, with_stage
from egt_pipeline.contract.chain import Link
from egt_pipeline.contract.graph import STAGES, StageName
from egt_pipeline.contract.task import Progress

_REFUSED_SECONDS = 15.0  # a queue or a node pool that is made later is no event that anybody watches
_GOING_SECONDS = 1.0  # between looks at a job of a deleted run that the garbage collector has not removed yet
_CLEANED_SECONDS = 15.0  # within it training-operator has removed the other pods of a failed job


@dataclass(frozen=True)
class World:
    """What was seen of one run. ``heard`` is when the log of its stage was read last.

    ``refusals`` are reasons and messages why it cannot start, as an unknown queue; ``unmade`` is why the job at work
    has no pods.
    """

    now: datetime
    generation: int
    owner: Owner
    jobs: Mapping[str, Job]
    pods: Sequence[Pod]
    progress: Progress | None = None
    heard: datetime | None = None
    refusals: Sequence[tuple[str, str]] = ()
    unmade: str = ""


@dataclass(frozen=True)
class Decision:
    """The status to write first, then what to delete, nudge and create, and when to look again without an event."""

    status: EGTRunStatus
    create: StageStatus | None = None
    delete: tuple[Job, ...] = ()
    nudge: Job | None = None
    """A job that training-operator is to look at again."""
    wake: datetime | None = None
    remove_run: bool = False


def decide(run: EGTRun, world: World, settings: Settings) -> Decision:
    """The next step of ``run`` as it is in the cluster, status included."""
    status = _begun(run)
    if status.phase in TERMINAL:
        return _after_the_end(run, status, world)
    active = next((stage for stage in status.stages if stage.phase is Phase.RUNNING), None)
    decision = Decision(status)
    if active is not None:
        decision = _follow(run, status, active, world, settings)
        status = decision.status
    if all(stage.phase is not Phase.RUNNING for stage in status.stages):
        decision = _start(run, decision, world, settings)
    status = said(run, decision.status, now=world.now, generation=world.generation, refusals=world.refusals)
    if status.phase in TERMINAL:
        decision = replace(decision, wake=world.now)  # its time to live begins
    elif world.refusals:
        decision = replace(decision, wake=world.now + timedelta(seconds=_REFUSED_SECONDS))
    return replace(decision, status=status)


def _begun(run: EGTRun) -> EGTRunStatus:
    """The status of the run, with every stage named."""
    status = run.status or EGTRunStatus()
    if status.stages:
        return status
    enabled = run.recipes
    stages = (
        StageStatus(name=stage.name, phase=Phase.WAITING if stage.name in enabled else Phase.DISABLED)
        for stage in STAGES
    )
    return status.model_copy(update={"stages": tuple(stages)})


def _follow(run: EGTRun, status: EGTRunStatus, active: StageStatus, world: World, settings: Settings) -> Decision:
    """The active attempt as it is seen now; it may have ended."""
    name = active.job or ""
    job = world.jobs.get(name)
    if job is not None and job.owner_uid != world.owner.uid:
        return _in_the_way(run, status, job, world, settings)
    evidence = Evidence(
        now=world.now,
        job=job,
        # Pods of a deleted run of the same name may still be there; without a job, they are what has to be waited for.
        pods=[pod for pod in world.pods if pod.job == name and (job is None or pod.owner_uid == job.uid)],
        progress=world.progress,
        heard=world.heard,
        active_seconds=status.active_seconds,
        unmade=world.unmade,
    )
    step = follow(run, active, evidence, settings)
    status = with_stage(status, step.stage).model_copy(update={"active_seconds": step.active_seconds})
    if step.summary is not None:
        status = succeeded(run, status, step.stage, step.summary, world.now)
    elif step.inputs_missing:
        status = made_again(status)
    delete = (evidence.job,) if step.delete and evidence.job is not None else ()
    create, nudge = step.stage if step.create else None, evidence.job if step.nudge else None
    return Decision(status, create=create, delete=delete, nudge=nudge, wake=step.wake)


def _in_the_way(run: EGTRun, status: EGTRunStatus, job: Job, world: World, settings: Settings) -> Decision:
    """A job of that name belongs to a deleted run of this name, and will go with it, or to somebody else."""
    active = next(stage for stage in status.stages if stage.job == job.name)
    if job.owner_name == world.owner.name:
        message = f"the PyTorchJob {job.name} of a deleted run of this name is still there"
        waiting = active.model_copy(update={"message": message})
        return Decision(with_stage(status, waiting), wake=world.now + timedelta(seconds=_GOING_SECONDS))
    cause = Cause("UserError", f"a PyTorchJob {job.name} exists and belongs to somebody else; rename it or this run")
    return Decision(with_stage(status, failed(run, active, cause, world.now, settings)))


def _start(run: EGTRun, decision: Decision, world: World, settings: Settings) -> Decision:
    """Begin the next stage, unless something says to wait."""
    status = decision.status
    links = links_of(run, status)
    published = {Task(s.name, s.digest) for s in status.stages if s.phase is Phase.SUCCEEDED and s.digest}
    wanted = plan(links, Observed(published, {}))
    broken = any(stage.phase is Phase.FAILED for stage in status.stages)
    stage = next((s for s in status.stages if any(task.stage is s.name for task in wanted.tasks)), None)
    if stage is None or broken or run.spec.suspend or world.refusals:
        return replace(decision, delete=(*decision.delete, *_left_over(world)) if broken else decision.delete)
    wait = _not_before(stage, world, settings)
    if wait is not None:
        return replace(decision, wake=wait, delete=(*decision.delete, *_uncleaned(stage, world)))
    return replace(decision, status=with_stage(status, begun := _begin(stage, links, world)), create=begun, wake=None)


def _begin(stage: StageStatus, links: Mapping[StageName, Link], world: World) -> StageStatus:
    """The stage with its next attempt decided."""
    number = stage.attempt + 1
    fresh = (
        "job_uid",
        "running_since",
        "pods_created",
        "progressed",
        "progress",
        "next_attempt",
        "stopping",
        "message",
    )
    # Only the pod of prepare sees the sources, so it says by what digest its output goes.
    digest = None if stage.name is StageName.PREPARE else links[stage.name].digest
    return stage.model_copy(
        update={
            **dict.fromkeys(fresh),
            "phase": Phase.RUNNING,
            "attempt": number,
            "job": job_name(world.owner.name, stage.name, number),
            "digest": digest,
            "started": stage.started or world.now,
            "queued_since": world.now,
            "reason": "Starting",
        }
    )


def _not_before(stage: StageStatus, world: World, settings: Settings) -> datetime | None:
    """When the next attempt may begin; None: now. Pods of an earlier one must be gone, or given up."""
    if stage.next_attempt is not None and stage.next_attempt > world.now:
        return stage.next_attempt
    alive = writing(world.pods, world.now, settings)
    if not alive:
        return None
    soon = world.now + timedelta(seconds=_CLEANED_SECONDS)
    return min(pod.given_up(settings.lost_node_seconds) or soon for pod in alive)


def _uncleaned(stage: StageStatus, world: World) -> tuple[Job, ...]:
    """Jobs whose pods live on although their attempt has failed, once training-operator had its time to end them."""
    since = stage.last_failure.time if stage.last_failure else world.now
    if world.now - since < timedelta(seconds=_CLEANED_SECONDS):
        return ()
    return _left_over(world)


def _left_over(world: World) -> tuple[Job, ...]:
    alive = {pod.job for pod in world.pods if pod.alive and not pod.deleted}
    return tuple(job for job in world.jobs.values() if job.name in alive and job.owner_uid == world.owner.uid)


def _after_the_end(run: EGTRun, status: EGTRunStatus, world: World) -> Decision:
    """A finished run is never planned again: what still runs of it ends, and after its time to live it is removed."""
    status = seen_at(status, world.generation)  # or kubectl wait would take the verdict for one on an older spec
    ttl = run.spec.ttl.complete_seconds if status.phase == "Complete" else run.spec.ttl.failed_seconds
    ended = next(c.last_transition_time for c in status.conditions if c.type == status.phase)
    decision = Decision(status, delete=_left_over(world))
    if ttl is None:
        return decision
    due = ended + timedelta(seconds=ttl)
    return replace(decision, remove_run=True) if due <= world.now else replace(decision, wake=due)


def refused(run: EGTRun, decision: Decision, world: World, message: str, settings: Settings) -> EGTRunStatus:
    """The status after the API server has refused to make the next job: it would refuse it again."""
    if decision.create is None:
        return decision.status
    cause = Cause("UserError", f"the API server refused the PyTorchJob: {message}")
    status = with_stage(decision.status, failed(run, decision.create, cause, world.now, settings))
    return said(run, status, now=world.now, generation=world.generation, refusals=())


def forbidden(run: EGTRun, status: EGTRunStatus, stage: StageStatus, world: World, message: str) -> EGTRunStatus:
    """The status while the API server does not allow the next job."""
    said_so = {"reason": "Forbidden", "message": f"the API server forbids the PyTorchJob: {message}"}
    status = with_stage(status, stage.model_copy(update=said_so))
    return said(run, status, now=world.now, generation=world.generation, refusals=())
