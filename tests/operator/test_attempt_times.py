"""Since when an attempt runs, and what it has cost, by the word of its pods."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from build_egtrun import SETTINGS, egtrun
from egt_operator.api import EGTRun
from egt_operator.api_status import StageStatus
from egt_operator.attempt import Step, follow
from egt_operator.attempt_times import YOUNG, Evidence
from egt_operator.children import Job, Pod
from egt_operator.plan import Phase
from egt_pipeline.contract.graph import StageName

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
JOB = Job(name="digits-sft-a1", uid="j", owner_uid="r", wanted=NOW - 60 * SECOND)
SUMMARY = '{"stage": "sft", "digest": "d", "phase": "Succeeded", "exit_code": 0}'


def look(run_spec: dict[str, Any] | None = None, **pod: Any) -> Step:
    """At an attempt of one pod with eight GPUs that was decided a minute ago."""
    run = EGTRun.model_validate(egtrun(sft={"processes": 8}, **(run_spec or {})))
    stage = StageStatus(
        name=StageName.SFT,
        phase=Phase.RUNNING,
        attempt=1,
        job=JOB.name,
        reason="Starting",
        queued_since=NOW - 60 * SECOND,
    )
    given = {"phase": "Running", "created": NOW - 60 * SECOND, **pod}
    found = Pod(name="digits-sft-a1-master-0", job=JOB.name, owner_uid="j", **given)
    return follow(run, stage, Evidence(NOW, JOB, [found], None, None, 100.0), SETTINGS)


def test_pods_that_have_just_begun_cost_no_write_yet() -> None:
    began = NOW - SECOND
    step = look(started=began)
    assert (step.stage.running_since, step.stage.reason, step.stage.job_uid) == (None, "Starting", None)
    assert step.wake == began + YOUNG


def test_a_stage_runs_since_its_pods_say_so() -> None:
    began = NOW - 10 * SECOND
    stage = look(started=began).stage
    assert (stage.running_since, stage.queue_seconds, stage.job_uid) == (began, 50.0, "j")


def test_a_node_whose_clock_is_ahead_does_not_make_a_stage_run_in_the_future() -> None:
    assert look(started=NOW + 3600 * SECOND).stage.running_since == NOW


def test_what_ran_while_nobody_looked_is_counted() -> None:
    step = look(phase="Succeeded", message=SUMMARY, exit_code=0, started=NOW - 40 * SECOND, finished=NOW - 4 * SECOND)
    assert step.summary is not None
    assert step.active_seconds == 136.0
    assert step.stage.queue_seconds == 20.0
    assert step.stage.gpu_hours is not None
    assert step.stage.gpu_hours.used == 36 * 8 / 3600
    assert step.stage.gpu_hours.wasted == 0


def test_pods_that_do_not_say_since_when_run_since_they_were_seen() -> None:
    assert look().stage.running_since == NOW


def test_a_node_whose_clock_is_behind_does_not_spend_the_time_of_a_run() -> None:
    step = look({"activeDeadlineSeconds": 3600}, started=NOW - timedelta(hours=2))
    assert step.stage.running_since == NOW - 60 * SECOND  # when the attempt was decided
    assert not step.delete


def test_pods_that_start_at_the_last_moment_have_not_waited_too_long() -> None:
    assert look({"queueDeadlineSeconds": 60}, started=NOW - SECOND).stage.stopping is None


QUEUED = Job(name=JOB.name, uid="j", owner_uid="r", wanted=NOW - 60 * SECOND, suspended=True)
RAN = timedelta(hours=10)


def evicted(stage: StageStatus, job: Job, *pods: Pod, now: datetime = NOW) -> Step:
    """A look at an attempt whose queue takes its place away."""
    return follow(EGTRun.model_validate(egtrun()), stage, Evidence(now, job, pods, None, None, 0.0), SETTINGS)


def one_pod(**pod: Any) -> Pod:
    return Pod(name=f"{JOB.name}-master-0", job=JOB.name, owner_uid="j", **{"created": NOW - RAN, **pod})


def test_what_an_evicted_attempt_has_cost_is_counted_once() -> None:
    running = StageStatus(name=StageName.SFT, phase=Phase.RUNNING, attempt=1, job=JOB.name, job_uid="j",
                          running_since=NOW - RAN, pods_created=NOW - RAN, progressed=NOW)  # fmt: skip
    alive = one_pod(phase="Running", started=NOW - RAN)
    ended = one_pod(phase="Failed", exit_code=143, started=NOW - RAN, finished=NOW + 11 * SECOND)
    first = evicted(running, QUEUED, alive)
    assert (first.stage.queued_since, first.active_seconds) == (NOW, RAN.total_seconds())
    # Its pods end later, and may still do so when it is admitted again.
    for job, pod in ((QUEUED, ended), (JOB, alive), (JOB, ended)):
        later = evicted(first.stage, job, pod, now=NOW + 12 * SECOND)
        assert (later.stage.phase, later.stage.retries, later.active_seconds) == (Phase.RUNNING, {}, 0.0)
        assert later.stage.running_since is None
        assert not later.delete
    new = one_pod(phase="Running", created=NOW + 20 * SECOND, started=NOW + 21 * SECOND)
    again = evicted(first.stage, JOB, new, now=NOW + 30 * SECOND)
    assert (again.stage.running_since, again.stage.queue_seconds) == (NOW + 21 * SECOND, 21.0)


def test_an_attempt_that_is_admitted_before_its_pods_of_last_time_have_ended_is_preempted() -> None:
    evicted_before = StageStatus(name=StageName.SFT, phase=Phase.RUNNING, attempt=1, job=JOB.name, job_uid="j",
                                 queued_since=NOW, pods_created=NOW - RAN)  # fmt: skip
    counted = replace(JOB, outcome="Failed", message="PyTorchJob x is failed because 1 Master replica(s) failed.")
    for pod in (one_pod(phase="Running", deleted=NOW), one_pod(phase="Failed", exit_code=143, deleted=NOW)):
        assert evicted(evicted_before, counted, pod).stage.retries == {"Preempted": 1}


def test_a_stage_that_nobody_has_heard_of_is_not_called_hung() -> None:
    silent = StageStatus(name=StageName.SFT, phase=Phase.RUNNING, attempt=1, job=JOB.name, job_uid="j",
                         running_since=NOW - RAN, pods_created=NOW - RAN, progressed=NOW - RAN)  # fmt: skip
    run, pod = EGTRun.model_validate(egtrun()), one_pod(phase="Running", started=NOW - RAN)
    for heard, why in ((None, None), (NOW - RAN, None), (NOW, "Hang")):
        step = follow(run, silent, Evidence(NOW, JOB, [pod], None, heard, 0.0), SETTINGS)
        assert step.stage.stopping == why


def test_a_job_that_was_deleted_before_it_was_noted_down_is_made_again_when_its_pods_are_gone() -> None:
    starting = StageStatus(name=StageName.SFT, phase=Phase.RUNNING, attempt=1, job=JOB.name, queued_since=NOW)
    run, pod = EGTRun.model_validate(egtrun()), one_pod(phase="Running")
    waits, goes = (follow(run, starting, Evidence(NOW, None, pods, None, None, 0.0), SETTINGS) for pods in ([pod], []))
    assert (waits.create, goes.create) == (False, True)
