"""What real statuses mean: ``seen/`` holds what training-operator 1.9.4 and Kubernetes 1.36 wrote in each case."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from egt_operator.children import Job, Pod, parse_job, parse_pod
from egt_operator.observe import Seen, cause_of, observe

SUMMARY = '{"stage": "sft", "digest": "0123456789abcdef", "phase": "Succeeded", "exit_code": 0, "metrics": {}}'
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
SEEN = Path(__file__).parent / "seen"


def load(case: str) -> tuple[dict[str, Any], list[Pod]]:
    found = json.loads((SEEN / f"{case}.json").read_text())
    found["job"]["metadata"]["labels"] = {"egt.dev/stage": "sft", "egt.dev/attempt": "1"}
    return found["job"], [parse_pod(pod) for pod in found["pods"]]


def seen(case: str) -> Seen:
    job, pods = load(case)
    return observe(parse_job(job), pods, len(pods))


@pytest.mark.parametrize(
    ("case", "kind", "said"),
    [
        ("worker-sigkill", "Crash", "k1-worker-1: exit code 137"),
        ("worker-exit7-cleanRunning", "Crash", "k2-worker-0: line1\nboom"),
        ("oom", "OutOfMemory", "k3-master-0: killed for memory"),
        ("nodeloss-never", "NodeLost", "n1-worker-0"),
        ("agent-restart", "NodeLost", "its node"),
    ],
)
def test_the_class_of_a_failure_is_read_from_its_pods(case: str, kind: str, said: str) -> None:
    found = seen(case)
    assert found.cause is not None
    assert found.cause.kind == kind
    assert said in found.cause.message


def test_a_master_that_ended_well_without_a_summary_is_no_success() -> None:
    found = seen("cleanRunning-success")
    assert found.cause is not None
    assert "ended without a summary" in found.cause.message


def test_a_worker_that_failed_counts_although_the_master_ended_well() -> None:
    found = seen("ray-raylet-sigkill")
    assert found.state == "Failed"
    assert found.cause is not None
    assert "worker-0" in found.cause.message


def waiting(reason: str, message: str = "") -> Seen:
    job, _ = load("oom")
    del job["status"]
    state = {"waiting": {"reason": reason, "message": message}}
    pod = {
        "metadata": {"name": "p-master-0", "labels": {}, "creationTimestamp": "2026-11-21T12:00:00Z"},
        "status": {"phase": "Pending", "containerStatuses": [{"name": "pytorch", "state": state}]},
    }
    return observe(parse_job(job), [parse_pod(pod)], 1)


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "ErrImagePull", "CreateContainerConfigError"])
def test_what_keeps_a_pod_from_starting_is_said(reason: str) -> None:
    found = waiting(reason, 'secret "store" not found')
    assert (found.state, found.reason) == ("Pending", reason)
    assert 'secret "store" not found' in found.message


def test_a_pod_that_is_being_made_is_starting() -> None:
    assert waiting("ContainerCreating").reason == "Starting"


def ended(name: str, exit_code: int, reason: str = "Error") -> Pod:
    state = {"terminated": {"exitCode": exit_code, "reason": reason, "message": ""}}
    return parse_pod({
        "metadata": {"name": name, "creationTimestamp": "2026-11-21T12:00:00Z"},
        "status": {"phase": "Failed", "containerStatuses": [{"name": "pytorch", "state": state}]},
    })  # fmt: skip


def test_a_pod_that_was_left_alone_says_less_than_the_one_that_left() -> None:
    job, _ = load("worker-sigkill")
    left, killed = ended("p-master-0", 75), ended("p-worker-0", 137, "OOMKilled")
    both = observe(parse_job(job), [left, killed], 2)
    assert both.cause is not None
    assert both.cause.kind == "OutOfMemory"
    alone = observe(parse_job(job), [left], 2)
    assert alone.cause is not None
    assert alone.cause.kind == "NodeLost"


def deleted(pod: Pod, *, after: float = 60) -> Pod:
    return replace(pod, deleted=pod.created + timedelta(seconds=after))


def failed_job() -> Job:
    job, _ = load("worker-sigkill")
    found = parse_job(job)
    assert found.message == "PyTorchJob k1 is failed because 1 Worker replica(s) failed."
    return found


def running(name: str) -> Pod:
    return replace(ended(name, 0), phase="Running", exit_code=None, reason="")


@pytest.mark.parametrize("master", [running("p-master-0"), deleted(ended("p-master-0", 143))], ids=["runs", "is told"])
def test_a_job_that_fails_since_a_pod_went_without_a_trace_has_lost_a_node(master: Pod) -> None:
    cause = observe(failed_job(), [master], 2).cause
    assert cause is not None
    assert (cause.kind, cause.message) == (
        "NodeLost",
        "1 of 2 pods are not there any more: PyTorchJob k1 is failed because 1 Worker replica(s) failed.",
    )


@pytest.mark.parametrize("exit_code", [None, 143, 137])
def test_a_job_that_fails_since_somebody_deletes_a_pod_is_preempted_however_the_pod_ends(exit_code: int | None) -> None:
    worker = ended("p-worker-0", exit_code) if exit_code else running("p-worker-0")
    told_later = deleted(running("p-master-0"), after=61)
    cause = observe(failed_job(), [told_later, deleted(worker)], 2).cause
    assert cause is not None
    assert (cause.kind, cause.message) == ("Preempted", "somebody deleted p-worker-0")


@pytest.mark.parametrize("exit_code", [143, 137])
def test_a_pod_that_somebody_deletes_is_preempted_before_training_operator_hears_of_it(exit_code: int) -> None:
    job = replace(failed_job(), outcome=None, message="")
    cause = observe(job, [running("p-master-0"), deleted(ended("p-worker-0", exit_code))], 2).cause
    assert cause is not None
    assert (cause.kind, cause.message) == ("Preempted", "somebody deleted p-worker-0")


@pytest.mark.parametrize(("exit_code", "seconds"), [(75, 0), (1, 5)])
def test_what_other_pods_do_for_want_of_a_deleted_one_says_nothing(exit_code: int, seconds: float) -> None:
    left = replace(ended("p-master-0", exit_code), finished=NOON + timedelta(seconds=seconds))
    told = replace(deleted(ended("p-worker-0", 143)), finished=NOON)
    cause = observe(replace(failed_job(), outcome=None), [left, told], 2).cause
    assert cause is not None
    assert cause.message == "somebody deleted p-worker-0"


def test_a_suspended_job_that_has_failed_is_no_longer_queued() -> None:
    assert observe(replace(failed_job(), suspended=True), [], 1).state == "Failed"


def test_pods_that_were_told_to_end_after_a_crash_do_not_hide_it() -> None:
    cause = observe(failed_job(), [deleted(ended("p-master-0", 143)), ended("p-worker-0", 1)], 2).cause
    assert cause is not None
    assert (cause.kind, cause.exit_code) == ("Crash", 1)


def test_a_worker_that_is_told_to_end_after_the_master_is_no_failure() -> None:
    master = replace(ended("p-master-0", 0, "Completed"), phase="Succeeded", message=SUMMARY)
    job = replace(failed_job(), outcome=None)
    assert observe(job, [master, deleted(ended("p-worker-0", 143))], 2).state == "Succeeded"


def test_a_full_scratch_volume_is_an_error_of_the_user_whatever_its_process_said() -> None:
    said = 'Usage of EmptyDir volume "scratch" exceeds the limit "100Gi".'
    body = {
        "metadata": {"name": "p", "creationTimestamp": "2026-11-21T12:00:00Z"},
        "status": {"phase": "Failed", "reason": "Evicted", "message": said, "containerStatuses": [
            {"name": "pytorch", "state": {"terminated": {"exitCode": 137, "reason": "Error", "message": "step 71"}}}]},
    }  # fmt: skip
    cause = cause_of(parse_pod(body))
    assert cause.kind == "UserError"
    assert said in cause.message
