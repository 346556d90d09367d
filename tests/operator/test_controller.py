"""Whole histories of a run, against a cluster in memory."""

from typing import Any

import pytest

from build_egtrun import cluster_with, condition, drive, egtrun, failing, running, stage_of, status_of
from fake_cluster import FakeCluster
from fake_stages import Ending
from trouble import KilledAt

STAGES = ["prepare", "distill", "sft", "probe", "curate", "rl", "evaluate"]
FIRST_ATTEMPTS = [f"digits-{stage}-a1" for stage in STAGES]


def test_a_run_makes_one_job_a_stage_in_order_and_completes() -> None:
    cluster = cluster_with()
    drive(cluster)
    assert cluster.created == FIRST_ATTEMPTS
    assert status_of(cluster)["phase"] == "Complete"
    assert condition(cluster, "Complete")["status"] == "True"
    assert status_of(cluster)["progress"] == "7/7"
    assert status_of(cluster)["accuracy"] == "0.900"


def test_a_stage_costs_five_writes() -> None:
    cluster = cluster_with()
    drive(cluster)
    assert len(cluster.calls) <= 5 * len(STAGES) + 2  # the end of the run is a status and an event


def test_what_prepare_finds_published_starts_no_pod() -> None:
    cluster = cluster_with()
    cluster.published = {f"{stage}/x": stage for stage in ("distill", "sft", "probe")}
    drive(cluster)
    assert cluster.created == ["digits-prepare-a1", "digits-curate-a1", "digits-rl-a1", "digits-evaluate-a1"]
    assert stage_of(cluster, "sft")["gpuHours"]["saved"] == 1.0
    assert stage_of(cluster, "sft")["attempt"] == 0


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        (Ending(exit_code=137, reason="OOMKilled"), "OutOfMemory"),
        (Ending(exit_code=137, disruption="DeletionByTaintManager"), "NodeLost"),
        (Ending(exit_code=137, disruption="PreemptionByScheduler"), "Preempted"),
        (Ending(exit_code=143), "Preempted"),
        (Ending(exit_code=69), "Unavailable"),
        (Ending(exit_code=65), "BadInput"),
        (Ending(exit_code=1, message="Traceback: KeyError"), "Crash"),
        (Ending(exit_code=0, message="no summary"), "Crash"),
    ],
)
def test_a_failure_is_classified_and_tried_again(ending: Ending, kind: str) -> None:
    cluster = cluster_with(script=failing("sft", ending))
    drive(cluster)
    assert "digits-sft-a2" in cluster.created
    assert stage_of(cluster, "sft")["retries"] == {kind: 1}
    assert stage_of(cluster, "sft")["lastFailure"]["class"] == kind
    assert status_of(cluster)["phase"] == "Complete"


def test_an_error_of_the_user_is_not_tried_again_and_says_why() -> None:
    said = (
        '{"stage": "sft", "digest": "d", "phase": "Failed", "exit_code": 64, "message": "sft.learningRate: too high"}'
    )
    cluster = cluster_with(script=failing("sft", Ending(exit_code=64, message=said)))
    drive(cluster)
    assert cluster.created[-1] == "digits-sft-a1"
    assert condition(cluster, "Failed")["reason"] == "UserError"
    assert "sft.learningRate: too high" in condition(cluster, "Failed")["message"]


def test_retries_end_at_the_limit_of_their_class() -> None:
    run = egtrun(retry={"crash": 2})
    cluster = cluster_with(run, script=failing("curate", Ending(exit_code=1), attempts=99))
    drive(cluster)
    assert [name for name in cluster.created if "curate" in name] == [f"digits-curate-a{n}" for n in (1, 2, 3)]
    assert status_of(cluster)["phase"] == "Failed"


def test_a_pause_between_attempts_is_kept_by_a_new_operator() -> None:
    cluster = cluster_with(script=failing("prepare", Ending(exit_code=1)))
    drive(cluster, until=lambda c: bool(status_of(c)) and stage_of(c, "prepare").get("nextAttempt") is not None)
    drive(cluster, until=lambda c: "digits-prepare-a2" in c.created, seconds=1.0)
    failed_at = stage_of(cluster, "prepare")["lastFailure"]["time"]
    assert stage_of(cluster, "prepare")["queuedSince"] >= failed_at[:17] + str(int(failed_at[17:19]) + 10)


def test_suspend_ends_the_stage_and_resume_goes_on_with_the_next_attempt() -> None:
    cluster = cluster_with(script=lambda *_: Ending(seconds=60))
    drive(cluster, until=running("sft"))
    cluster.change(suspend=True)
    drive(cluster, until=lambda c: status_of(c)["phase"] == "Suspended")
    assert not cluster.objects("pod") or all(p["status"]["phase"] == "Succeeded" for p in cluster.objects("pod"))
    cluster.change(suspend=False)
    drive(cluster)
    assert "digits-sft-a2" in cluster.created
    assert stage_of(cluster, "sft")["retries"] == {}
    assert stage_of(cluster, "sft")["gpuHours"]["wasted"] == 0


def test_suspend_after_the_stage_lets_it_finish() -> None:
    cluster = cluster_with(egtrun(suspendPolicy="AfterStage"), script=lambda *_: Ending(seconds=30))
    drive(cluster, until=running("sft"))
    cluster.change(suspend=True)
    drive(cluster, until=lambda c: status_of(c)["phase"] == "Suspended")
    assert stage_of(cluster, "sft")["phase"] == "Succeeded"
    assert cluster.created[-1] == "digits-sft-a1"


def test_a_stage_without_progress_is_ended_and_tried_again() -> None:
    cluster = cluster_with(
        egtrun(hangDeadlineSeconds=60), script=lambda stage, n: Ending(seconds=1e9 if (stage, n) == ("sft", 1) else 10)
    )
    drive(cluster)
    assert stage_of(cluster, "sft")["retries"] == {"Hang": 1}


def test_a_run_that_is_active_too_long_fails() -> None:
    cluster = cluster_with(egtrun(activeDeadlineSeconds=100), script=lambda *_: Ending(seconds=40))
    drive(cluster)
    assert condition(cluster, "Failed")["reason"] == "Deadline"
    assert "activeDeadlineSeconds: 100" in condition(cluster, "Failed")["message"]


def test_a_rank_that_was_silently_replaced_starts_the_whole_stage_again() -> None:
    run = egtrun(probe={"workers": 2})
    cluster = cluster_with(run, script=lambda *_: Ending(seconds=60))
    drive(cluster, until=running("probe"))
    cluster.advance(5)
    cluster.delete("pod", "digits-probe-a1-worker-0")
    drive(cluster)
    assert stage_of(cluster, "probe")["retries"] == {"NodeLost": 1}
    assert "digits-probe-a2" in cluster.created


def test_a_pod_that_somebody_deletes_has_all_ranks_start_anew() -> None:
    cluster = cluster_with(egtrun(probe={"workers": 2}), script=lambda *_: Ending(seconds=60))
    drive(cluster, until=running("probe"))
    cluster.advance(5)
    cluster.terminate("digits-probe-a1-worker-0")
    drive(cluster)
    probe = stage_of(cluster, "probe")
    assert (probe["retries"], probe["attempt"]) == ({"Preempted": 1}, 2)
    assert probe["lastFailure"]["message"] == "somebody deleted digits-probe-a1-worker-0"


def test_a_job_that_somebody_deleted_is_made_again_as_the_next_attempt() -> None:
    cluster = cluster_with(script=lambda *_: Ending(seconds=60))
    drive(cluster, until=running("sft"))
    cluster.delete("job", "digits-sft-a1")
    drive(cluster)
    assert stage_of(cluster, "sft")["retries"] == {"Preempted": 1}


def test_a_job_of_that_name_that_belongs_to_somebody_else_is_left_alone() -> None:
    cluster = cluster_with()
    drive(cluster, until=lambda c: "digits-prepare-a1" in c.created)
    job = dict(cluster.objects("job")[0])
    job["metadata"] = {**job["metadata"], "ownerReferences": [{"uid": "other", "controller": True}]}
    cluster._store("job", job)
    drive(cluster)
    assert "belongs to somebody else" in condition(cluster, "Failed")["message"]
    assert cluster.objects("job")


def test_a_queue_that_does_not_exist_is_said_before_anything_starts() -> None:
    cluster = cluster_with(egtrun(scheduling={"queue": "nosuch"}))
    drive(cluster, until=lambda c: bool(status_of(c)))
    assert condition(cluster, "Accepted")["reason"] == "QueueMissing"
    assert cluster.created == []


def test_a_node_pool_that_does_not_exist_is_said_before_anything_starts() -> None:
    cluster = cluster_with(egtrun(scheduling={"nodeSelector": {"pool": "nosuch"}}))
    drive(cluster, until=lambda c: bool(status_of(c)))
    assert condition(cluster, "Accepted")["reason"] == "NodePoolMissing"
    assert "nosuch" in condition(cluster, "Accepted")["message"]
    assert cluster.created == []


def test_an_input_that_was_missing_has_prepare_look_again() -> None:
    cluster = cluster_with(script=failing("curate", Ending(exit_code=65)))
    drive(cluster, until=lambda c: "digits-curate-a1" in c.created)
    del cluster.published[next(place for place in cluster.published if place.startswith("probe/"))]
    drive(cluster)
    assert cluster.created.count("digits-prepare-a2") == 1
    assert "digits-probe-a2" in cluster.created
    assert "digits-sft-a2" not in cluster.created
    assert status_of(cluster)["phase"] == "Complete"
    assert "started" not in stage_of(cluster, "sft")  # its time was told when it ran


def test_a_finished_run_is_removed_after_its_time_to_live() -> None:
    cluster = cluster_with(egtrun(ttl={"completeSeconds": 60}))
    drive(cluster, until=lambda c: not c.objects("run"))
    assert not cluster.objects("job")


def test_a_run_that_another_manages_is_left_alone() -> None:
    cluster = cluster_with(egtrun(managedBy="kueue.x-k8s.io/multikueue"))
    drive(cluster, until=lambda c: len(c.calls) > 0 or c.now.minute > 2, seconds=10)
    assert cluster.created == []


def outcome(cluster: FakeCluster) -> dict[str, Any]:
    """What a history comes to, without its times."""
    stages = [
        {name: stage.get(name) for name in ("name", "phase", "attempt", "digest", "metrics", "retries")}
        for stage in status_of(cluster)["stages"]
    ]
    return {"phase": status_of(cluster)["phase"], "stages": stages, "jobs": sorted(cluster.created)}


@pytest.mark.parametrize("script", [lambda *_: Ending(), failing("sft", Ending(exit_code=1))], ids=["smooth", "retry"])
def test_killed_before_or_after_any_call_the_operator_comes_to_the_same_end(script: Any) -> None:
    whole = cluster_with(script=script)
    drive(whole)
    for number in range(len(whole.calls)):
        for moment in ("before", "after"):
            killed = KilledAt(number, moment)
            cluster = cluster_with(script=script, before=killed.before, after=killed.after)
            drive(cluster)
            assert killed.done
            assert outcome(cluster) == outcome(whole), f"killed {moment} call {number}: {whole.calls[number]}"
            assert len(set(cluster.created)) == len(cluster.created)


def test_a_run_that_somebody_else_manages_is_left_alone() -> None:
    cluster = cluster_with(egtrun(managedBy="kueue.x-k8s.io/multikueue"))
    drive(cluster, until=lambda c: c.now.minute > 0)
    assert cluster.calls == []


def test_a_run_that_has_ended_stays_as_it_is_when_it_can_no_longer_be_read() -> None:
    cluster = cluster_with()
    drive(cluster)
    before = dict(status_of(cluster))
    cluster.change(nosuch=1)
    drive(cluster, until=lambda c: c.now.minute > 30)
    assert status_of(cluster) == before
