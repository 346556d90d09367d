"""Each class of failure by its real cause: memory that runs out, nodes without power, artifacts that vanish.

Stages are real and small; only the first two are needed, since every stage fails in the same ways.
"""

import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from chat_server import Answer, ChatServer, chat_server
from cluster_run import BUCKET, ClusterRun, small_manifest, without_operator
from control_plane import wait_for
from operator_process import RunningOperator, operator_process
from process_pods import limits_memory, why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
SECONDS = 60.0
"""A stage starts within five seconds; a busy machine takes longer."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterRun]:
    with without_operator(tmp_path_factory.mktemp("failures"), sft=40, rl=40, heldout=20) as found:
        yield found


@pytest.fixture(scope="module")
def operator(place: ClusterRun) -> Iterator[RunningOperator]:
    with operator_process(place.cluster.plane) as running:
        yield running


@pytest.fixture
def silent_teacher() -> Iterator[ChatServer]:
    """A teacher that takes every request and answers none as long as the test lasts."""
    over = threading.Event()

    def never(_request: dict[str, Any], _number: int) -> Answer:
        over.wait()
        return Answer(status=503)

    with chat_server(never) as server:
        yield server
        over.set()


def begin(place: ClusterRun, name: str, change: Callable[[dict[str, Any]], object] = len) -> None:
    """Apply a small run with a store of its own."""
    run = small_manifest()
    run["metadata"]["name"] = name
    run["spec"]["store"]["uri"] = f"s3://{BUCKET}/{name}"
    run["spec"]["retry"] = dict.fromkeys(("crash", "outOfMemory", "unavailable", "nodeLost", "hang", "badInput"), 1)
    run["spec"]["distill"]["teacher"]["baseUrl"] = "http://127.0.0.1:9/v1"  # nobody listens there
    change(run["spec"])
    place.apply(run)


def wait_failed(place: ClusterRun, name: str) -> str:
    """Message of the Failed condition once the run has failed."""
    wait_for(f"{name} has failed", lambda: place.status(name).get("phase") == "Failed", SECONDS)
    return next(c["message"] for c in place.status(name)["conditions"] if c["type"] == "Failed")


def wait_running(place: ClusterRun, name: str, wanted: str) -> None:
    wait_for(f"{wanted} runs", lambda: place.stage(name, wanted).get("runningSince"), SECONDS)


def wait_retried(place: ClusterRun, name: str, wanted: str, kind: str) -> None:
    wait_for(f"{wanted} is {kind}", lambda: place.stage(name, wanted).get("retries", {}).get(kind), SECONDS)


def jobs(place: ClusterRun, name: str) -> list[str]:
    found = place.cluster.kubectl("get", "pytorchjobs", "-l", f"egt.dev/run={name}", "-o", "name")
    return sorted(line.rpartition("/")[2] for line in found.splitlines())


# The first: the operator of the others, which names a good image, is not there yet.
def test_an_image_that_cannot_be_pulled(place: ClusterRun) -> None:
    settings = {"image": "registry.invalid/egt:1", "lease_name": "imageless", "pending_seconds": "3"}
    with operator_process(place.cluster.plane, **settings):
        begin(place, "imageless")
        assert "registry.invalid/egt:1" in wait_failed(place, "imageless")
    place.cluster.kubectl("delete", "egt", "imageless")


@pytest.mark.skipif(not limits_memory(), reason="no memory controller of cgroup v1 here")
def test_a_memory_limit_that_is_too_small(place: ClusterRun, operator: RunningOperator) -> None:
    begin(place, "memory", lambda spec: spec.update(prepare={"resources": {"memory": "48Mi"}}))
    assert "give the stage more memory (tried 2 times)" in wait_failed(place, "memory")
    assert place.stage("memory", "prepare")["retries"] == {"OutOfMemory": 2}


def test_a_secret_that_does_not_exist(place: ClusterRun, operator: RunningOperator) -> None:
    begin(place, "secretless", lambda spec: spec["store"].update(credentialsSecret="nosuch"))
    assert 'secret "nosuch" not found' in wait_failed(place, "secretless")
    assert jobs(place, "secretless") in ([], ["secretless-prepare-a1"])


def test_a_store_that_cannot_be_reached(place: ClusterRun, operator: RunningOperator) -> None:
    run = small_manifest()
    run["metadata"]["name"] = "storeless"
    run["spec"]["retry"] = {"unavailable": 0}
    run["spec"]["store"]["endpoint"] = "http://127.0.0.1:9"
    place.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(run))
    assert "http://127.0.0.1:9" in wait_failed(place, "storeless")
    assert jobs(place, "storeless") == ["storeless-prepare-a1"]


def test_a_source_that_does_not_exist_is_not_tried_again(place: ClusterRun, operator: RunningOperator) -> None:
    begin(place, "sourceless", lambda spec: spec["data"]["rl"].update(source=f"s3://{BUCKET}/data/nosuch.jsonl"))
    assert "nosuch.jsonl" in wait_failed(place, "sourceless")
    assert place.stage("sourceless", "prepare")["retries"] == {"UserError": 1}


def test_a_service_that_does_not_answer_is_tried_again(place: ClusterRun, operator: RunningOperator) -> None:
    begin(place, "teacherless")
    assert "http://127.0.0.1:9/v1" in wait_failed(place, "teacherless")
    assert place.stage("teacherless", "distill")["retries"] == {"Unavailable": 2}


def test_no_node_that_fits(place: ClusterRun, operator: RunningOperator) -> None:
    taint = ["taint", "nodes", "--all", "reserved=yes:NoSchedule"]
    place.cluster.kubectl(*taint)
    try:
        begin(place, "placeless", lambda spec: spec.update(queueDeadlineSeconds=30))
        wait_for("it says why", lambda: place.stage("placeless", "prepare").get("reason") == "Unschedulable", SECONDS)
        assert "untolerated taint" in place.stage("placeless", "prepare")["message"]
        assert "queueDeadlineSeconds: 30" in wait_failed(place, "placeless")
    finally:
        place.cluster.kubectl(*taint[:-1], "reserved:NoSchedule-")


def test_a_quota_that_leaves_no_room(place: ClusterRun, operator: RunningOperator) -> None:
    place.cluster.kubectl("create", "quota", "none", "--hard=pods=0")
    try:
        begin(place, "crowded")
        wait_for("it says why", lambda: place.stage("crowded", "prepare").get("reason") == "PodsRefused", SECONDS)
        assert "exceeded quota: none" in place.stage("crowded", "prepare")["message"]
    finally:
        place.cluster.kubectl("delete", "quota", "none")
    wait_for("it goes on", lambda: place.stage("crowded", "prepare")["phase"] == "Succeeded", 2 * SECONDS)
    assert place.stage("crowded", "prepare")["attempt"] == 1


def test_a_priority_class_that_does_not_exist(place: ClusterRun, operator: RunningOperator) -> None:
    begin(place, "classless", lambda spec: spec.update(scheduling={"priorityClass": "nosuch"}))
    wait_for("it says why", lambda: place.stage("classless", "prepare").get("reason") == "PodsRefused", SECONDS)
    assert "no PriorityClass with name nosuch" in place.stage("classless", "prepare")["message"]


def silent(server: ChatServer) -> Callable[[dict[str, Any]], object]:
    return lambda spec: spec["distill"]["teacher"].update(baseUrl=server.base_url, timeoutSeconds=600)


def test_a_stage_that_hangs(place: ClusterRun, operator: RunningOperator, silent_teacher: ChatServer) -> None:
    begin(place, "hangs", lambda spec: (silent(silent_teacher)(spec), spec.update(hangDeadlineSeconds=30)))
    wait_running(place, "hangs", "distill")
    place.cluster.agent.signal("default", "hangs-distill-a1-master-0", signal.SIGSTOP)
    wait_retried(place, "hangs", "distill", "Hang")
    wait_for("the next attempt runs", lambda: "hangs-distill-a2" in jobs(place, "hangs"), SECONDS)


def test_a_killed_process(place: ClusterRun, operator: RunningOperator, silent_teacher: ChatServer) -> None:
    begin(place, "killed", silent(silent_teacher))
    wait_running(place, "killed", "distill")
    place.cluster.agent.signal("default", "killed-distill-a1-master-0", signal.SIGKILL)
    wait_retried(place, "killed", "distill", "Crash")


def test_a_pod_that_gives_way(place: ClusterRun, operator: RunningOperator, silent_teacher: ChatServer) -> None:
    begin(place, "evicted", silent(silent_teacher))
    wait_running(place, "evicted", "distill")
    pod = "evicted-distill-a1-master-0"
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": "default"}}
    path = f"/api/v1/namespaces/default/pods/{pod}/eviction"
    place.cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    wait_retried(place, "evicted", "distill", "Preempted")


def test_a_node_without_power(place: ClusterRun, operator: RunningOperator, silent_teacher: ChatServer) -> None:
    begin(place, "powerless", silent(silent_teacher))
    wait_running(place, "powerless", "distill")
    pod = ["get", "pod", "powerless-distill-a1-master-0", "-o", "jsonpath={.spec.nodeName}"]
    node = place.cluster.kubectl(*pod)
    place.cluster.agent.node_down(node, power=False)
    try:
        wait_for("the loss is seen", lambda: place.stage("powerless", "distill").get("retries"), 180)
        assert place.stage("powerless", "distill")["retries"] == {"NodeLost": 1}
        wait_for("it goes on elsewhere", lambda: "powerless-distill-a2" in jobs(place, "powerless"), SECONDS)
    finally:
        place.cluster.agent.node_up(node)


def test_an_artifact_that_vanished_is_made_again(
    place: ClusterRun, operator: RunningOperator, silent_teacher: ChatServer
) -> None:
    begin(place, "vanished", silent(silent_teacher))
    wait_running(place, "vanished", "distill")
    shutil.rmtree(place.bucket / "vanished" / "artifacts" / "prepare")
    place.cluster.agent.signal("default", "vanished-distill-a1-master-0", signal.SIGKILL)
    wait_retried(place, "vanished", "distill", "BadInput")
    wait_for("prepare runs again", lambda: "vanished-prepare-a2" in jobs(place, "vanished"), SECONDS)


def test_nothing_is_left_of_deleted_runs(place: ClusterRun, operator: RunningOperator) -> None:
    place.cluster.kubectl("delete", "egt", "--all", "--timeout=60s")
    left = ["get", "pytorchjobs,pods,services", "-l", "egt.dev/run", "-o", "name"]
    wait_for("nothing is left", lambda: not place.cluster.kubectl(*left), SECONDS)
