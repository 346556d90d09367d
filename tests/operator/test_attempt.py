"""One attempt, looked at once."""

from datetime import UTC, datetime, timedelta

from build_egtrun import SETTINGS, egtrun
from egt_operator.api import EGTRun
from egt_operator.api_status import StageStatus
from egt_operator.attempt import Step, follow
from egt_operator.attempt_times import Evidence
from egt_operator.children import Job, Pod
from egt_operator.plan import Phase
from egt_pipeline.contract.graph import StageName

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def look(placed: datetime) -> Step:
    """At an attempt that was in the queue for an hour, and whose image cannot be pulled since it has a node."""
    job = Job(name="digits-sft-a1", uid="j", owner_uid="r", wanted=NOW - HOUR)
    pod = Pod(name="digits-sft-a1-master-0", job=job.name, owner_uid="j", created=NOW - HOUR, scheduled=placed,
              phase="Pending", reason="ErrImagePull", message="the registry is busy")  # fmt: skip
    stage = StageStatus(
        name=StageName.SFT, phase=Phase.RUNNING, attempt=1, job=job.name, job_uid="j", queued_since=NOW - HOUR
    )
    return follow(EGTRun.model_validate(egtrun()), stage, Evidence(NOW, job, [pod], None, None, 0.0), SETTINGS)


def test_waiting_for_a_node_is_no_part_of_the_patience_with_a_registry() -> None:
    placed = NOW - timedelta(seconds=1)
    step = look(placed)
    assert step.stage.phase is Phase.RUNNING
    assert step.wake == placed + timedelta(seconds=SETTINGS.pending_seconds)


def test_an_image_that_cannot_be_had_for_too_long_fails_the_stage() -> None:
    assert look(NOW - timedelta(seconds=SETTINGS.pending_seconds)).stage.phase is Phase.FAILED
