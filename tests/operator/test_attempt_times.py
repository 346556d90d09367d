"""Since when an attempt runs, and what it has cost, by the word of its pods."""

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
JOB = Job(name="digits-sft-a1", uid="j", owner_uid="r")
SUMMARY = '{"stage": "sft", "digest": "d", "phase": "Succeeded", "exit_code": 0}'


def look(**pod: Any) -> Step:
    """At an attempt of one pod with eight GPUs that was decided a minute ago."""
    run = EGTRun.model_validate(egtrun(sft={"processes": 8}))
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
    return follow(run, stage, Evidence(NOW, JOB, [found], None, 100.0), SETTINGS)


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
