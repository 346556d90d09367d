"""What must not depend on an event that may never come, or on an operator that was there all the time."""

from datetime import timedelta

import pytest

from build_egtrun import KEY, cluster_with, drive, egtrun, running, stage_of, status_of
from fake_stages import Ending


def test_a_finished_run_is_removed_when_its_time_is_over() -> None:
    cluster = cluster_with(egtrun(ttl={"completeSeconds": 10}))
    drive(cluster, until=lambda c: c.objects("run") == [])


async def never(_namespace: str, _pod: str) -> str:
    raise TimeoutError("the node does not answer")


def test_a_log_that_cannot_be_read_keeps_no_run_waiting() -> None:
    cluster = cluster_with(egtrun(hangDeadlineSeconds=60), script=lambda *_: Ending(seconds=150))
    cluster.log_end = never  # type: ignore[method-assign]
    drive(cluster)
    assert status_of(cluster)["phase"] == "Complete"
    assert all(stage["retries"] == {} for stage in status_of(cluster)["stages"])


def test_a_log_that_cannot_be_read_is_told_once_a_job_however_often_it_is_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = cluster_with(script=lambda *_: Ending(seconds=600))
    cluster.log_end = never  # type: ignore[method-assign]
    drive(cluster, until=running("sft"))
    told = [record.message for record in caplog.records if "no log of" in record.message]
    first, *others = told
    assert first == f"{KEY}: no log of digits-prepare-a1: TimeoutError: the node does not answer"
    assert len({first, *others}) == len(told)


def test_a_queue_that_is_made_later_is_noticed() -> None:
    cluster = cluster_with(egtrun(scheduling={"queue": "later"}))
    drive(cluster, until=lambda c: bool(status_of(c)))
    cluster.queues.add("later")
    drive(cluster)
    assert status_of(cluster)["phase"] == "Complete"


def test_progress_that_was_made_while_no_operator_looked_is_no_hang() -> None:
    cluster = cluster_with(egtrun(hangDeadlineSeconds=60), script=lambda *_: Ending(seconds=7200))
    drive(cluster, until=running("prepare"))
    cluster.logs["digits-prepare-a1-master-0"] = 'egt-progress {"done": 5, "total": 9, "unit": "rows"}'
    cluster.now += timedelta(hours=1)
    drive(cluster, until=lambda c: stage_of(c, "prepare").get("progress") is not None, steps=5)
    assert stage_of(cluster, "prepare")["attempt"] == 1


def test_the_time_that_no_operator_was_there_is_not_spent() -> None:
    cluster = cluster_with(egtrun(activeDeadlineSeconds=3600), script=lambda *_: Ending(seconds=60))
    drive(cluster, until=running("sft"))
    for _ in range(20):
        cluster.advance(5)
    cluster.now += timedelta(hours=2)
    drive(cluster)
    assert status_of(cluster)["phase"] == "Complete"
    assert status_of(cluster)["activeSeconds"] < 600


def test_the_job_of_a_lost_node_does_not_come_back_beside_the_next_attempt() -> None:
    cluster = cluster_with(script=lambda *_: Ending(seconds=600))
    drive(cluster, until=running("sft"))
    (pod,) = [p for p in cluster.objects("pod") if p["status"]["phase"] == "Running"]
    pod["status"]["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}]
    cluster.heard("pod", pod, False)
    cluster._store("pod", pod)
    drive(cluster, until=lambda c: "digits-sft-a2" in c.created)
    assert "digits-sft-a1" not in {job["metadata"]["name"] for job in cluster.objects("job")}


QUOTA = 'Error creating: pods "digits-prepare-a1-master-0" is forbidden: exceeded quota: team'


def test_pods_that_may_not_be_made_are_told_and_come_when_they_may() -> None:
    cluster = cluster_with()
    cluster.unmade = QUOTA
    drive(cluster, until=lambda c: QUOTA in str(status_of(c)))
    assert stage_of(cluster, "prepare")["reason"] == "PodsRefused"
    assert stage_of(cluster, "prepare")["message"] == (
        f"0 of 1 pods could be made: {QUOTA}; what is corrected in the manifest counts after suspend: true and false"
    )
    cluster.unmade = ""
    drive(cluster)
    assert status_of(cluster)["phase"] == "Complete"
    assert stage_of(cluster, "prepare")["attempt"] == 1


def test_what_was_said_before_a_queue_took_the_place_away_says_nothing_of_now() -> None:
    cluster = cluster_with()
    cluster.unmade = QUOTA
    drive(cluster, until=lambda c: QUOTA in str(status_of(c)))
    (job,) = cluster.objects("job")
    later = (cluster.now + timedelta(seconds=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    job["status"] = {"conditions": [{"type": "Suspended", "status": "False", "lastTransitionTime": later}]}
    cluster._store("job", job)
    drive(cluster, until=lambda c: QUOTA not in str(status_of(c)))
    assert stage_of(cluster, "prepare")["reason"] == "Starting"


def test_pods_that_cannot_be_valid_end_the_run_at_once() -> None:
    cluster = cluster_with()
    cluster.unmade = 'Error creating: Pod "digits-prepare-a1-master-0" is invalid: spec.volumes: bad'
    drive(cluster)
    assert status_of(cluster)["phase"] == "Failed"
    assert stage_of(cluster, "prepare")["lastFailure"]["message"] == f"its pods cannot be made: {cluster.unmade}"
    assert cluster.objects("job") == []


def test_a_run_whose_pods_are_refused_is_suspended_at_once_whatever_the_policy() -> None:
    cluster = cluster_with(egtrun(suspendPolicy="AfterStage"))
    cluster.unmade = QUOTA
    drive(cluster, until=lambda c: QUOTA in str(status_of(c)))
    assert [e["type"] for e in cluster.events.values() if e["reason"] == "PodsRefused"] == ["Warning"]
    cluster.change(suspend=True)
    drive(cluster, until=lambda c: status_of(c)["phase"] == "Suspended")
    assert cluster.objects("job") == []


def test_a_suspended_run_whose_queue_is_missing_is_suspended() -> None:
    cluster = cluster_with(egtrun(scheduling={"queue": "nosuch"}, suspend=True))
    drive(cluster, until=lambda c: status_of(c).get("phase") == "Suspended")
    accepted = next(c for c in status_of(cluster)["conditions"] if c["type"] == "Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "QueueMissing")
    assert [e["type"] for e in cluster.events.values() if e["reason"] == "QueueMissing"] == ["Warning"]


def test_a_verdict_holds_for_the_spec_of_an_ended_run_that_was_changed_and_an_event_says_so() -> None:
    cluster = cluster_with()
    drive(cluster)
    cluster.change(ttl={"completeSeconds": 3600})
    drive(cluster, until=lambda c: status_of(c)["observedGeneration"] == 2)
    assert {condition["observedGeneration"] for condition in status_of(cluster)["conditions"]} == {2}
    assert status_of(cluster)["phase"] == "Complete"
    assert [e["type"] for e in cluster.events.values() if e["reason"] == "HasEnded"] == ["Warning"]


def test_a_job_without_pods_is_nudged_once_a_minute_at_most() -> None:
    cluster = cluster_with(egtrun(queueDeadlineSeconds=600))
    cluster.unmade = QUOTA
    drive(cluster)
    assert QUOTA in stage_of(cluster, "prepare")["message"]
    assert 5 <= cluster.calls.count("nudge_job") <= 10
