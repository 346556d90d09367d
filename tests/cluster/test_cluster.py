"""The test cluster is what it says: a real API server and training-operator, and pods that end by script."""

import json

import pytest

from cluster import Cluster
from control_plane import control_plane, wait_for
from node_script import EXIT, SECONDS

# The first test of a machine builds the programs, which takes longer than any run of them.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def job(name: str, container: str = "pytorch", **notes: str) -> str:
    """A PyTorchJob of one master and two workers as JSON; the notes are annotations of the workers."""

    def replicas(count: int, annotations: dict[str, str]) -> dict[str, object]:
        pod = {"containers": [{"name": container, "image": "none", "command": ["true"]}]}
        template = {"metadata": {"annotations": annotations}, "spec": pod}
        return {"replicas": count, "restartPolicy": "Never", "template": template}

    kinds = {"Master": replicas(1, {SECONDS: "1"}), "Worker": replicas(2, notes)}
    spec = {"runPolicy": {"cleanPodPolicy": "Running"}, "pytorchReplicaSpecs": kinds}
    meta = {"name": name, "namespace": "default"}
    return json.dumps({"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "metadata": meta, "spec": spec})


def wait_for_condition(cluster: Cluster, name: str, condition: str) -> None:
    cluster.kubectl("wait", f"--for=condition={condition}", f"pytorchjob/{name}", "--timeout=60s")


def test_a_job_of_one_master_and_two_workers_succeeds(cluster: Cluster) -> None:
    cluster.kubectl("create", "-f", "-", stdin=job("well"))
    wait_for_condition(cluster, "well", "Succeeded")


def test_a_worker_that_ends_with_an_error_fails_its_job(cluster: Cluster) -> None:
    cluster.kubectl("create", "-f", "-", stdin=job("ill", **{EXIT: "7"}))
    wait_for_condition(cluster, "ill", "Failed")


def test_a_killed_worker_ends_with_137(cluster: Cluster) -> None:
    cluster.kubectl("create", "-f", "-", stdin=job("killed", **{SECONDS: "never"}).replace('"1"', '"never"'))
    wait_for("the worker runs", lambda: "Running" in cluster.kubectl("get", "pod", "killed-worker-1"))
    cluster.agent.signal("default", "killed-worker-1")
    wait_for_condition(cluster, "killed", "Failed")
    state = "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}"
    assert cluster.kubectl("get", "pod", "killed-worker-1", "-o", state) == "137"


def test_the_webhook_refuses_a_job_without_a_container_named_pytorch(cluster: Cluster) -> None:
    with pytest.raises(RuntimeError, match=r"validator\.pytorchjob.*denied"):
        cluster.kubectl("create", "-f", "-", stdin=job("misnamed", container="other"))


def test_two_control_planes_at_once_do_not_see_each_other(cluster: Cluster) -> None:
    with control_plane() as other:
        other.kubectl("create", "configmap", "only-here")
        with pytest.raises(RuntimeError, match="not found"):
            cluster.kubectl("get", "configmap", "only-here")
