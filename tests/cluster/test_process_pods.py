"""Process mode is what it says: real processes with volumes, secrets, users, limits, logs and graceful ends."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import Cluster, running_cluster
from control_plane import wait_for
from node_agent import NodeShape
from process_pods import ProcessPods, limits_memory, why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster(NodeShape(), ProcessPods) as running:
        running.kubectl("create", "secret", "generic", "store", "--from-literal=KEY=s3cret")
        yield running


def pod(name: str, script: str, box: dict[str, Any] | None = None, **spec: Any) -> str:
    """A pod of one container with a shell script, as JSON."""
    made = {"name": "main", "image": "any", "command": ["sh", "-c", script]} | (box or {})
    body = {"restartPolicy": "Never", "containers": [made], **spec}
    meta = {"name": name, "namespace": "default", "labels": {"app": name}, "annotations": {"note": "from above"}}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": body})


def state(cluster: Cluster, name: str) -> dict[str, Any]:
    """Of the pod's container; empty as long as its node has said nothing."""
    status: dict[str, Any] = cluster.plane.get("pod", name)["status"]  # type: ignore[index]
    found: dict[str, Any] = status.get("containerStatuses", [{"state": {}}])[0]["state"]
    return found


def ended(cluster: Cluster, name: str) -> dict[str, Any]:
    """The final state of the pod's container."""
    wait_for(f"{name} has ended", lambda: "terminated" in state(cluster, name), 30)
    found: dict[str, Any] = state(cluster, name)["terminated"]
    return found


def logs(cluster: Cluster, name: str) -> str:
    return cluster.kubectl("logs", name)


def test_a_command_runs_and_its_exit_code_and_last_words_come_back(cluster: Cluster) -> None:
    script = "echo hello; echo bad >/dev/termination-log; exit 7"
    cluster.kubectl("create", "-f", "-", stdin=pod("words", script))
    found = ended(cluster, "words")
    assert (found["exitCode"], found["reason"], found["message"]) == (7, "Error", "bad\n")
    assert logs(cluster, "words") == "hello\n"


def test_variables_come_from_values_secrets_and_fields(cluster: Cluster) -> None:
    secret = {"secretKeyRef": {"name": "store", "key": "KEY"}}
    field = {"fieldRef": {"fieldPath": "metadata.annotations['note']"}}
    env = [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)2"}, {"name": "C", "valueFrom": secret},
           {"name": "D", "valueFrom": field}]  # fmt: skip
    cluster.kubectl("create", "-f", "-", stdin=pod("variables", 'echo "$A $B $C $D"', {"env": env}))
    ended(cluster, "variables")
    assert logs(cluster, "variables") == "1 12 s3cret from above\n"


def test_volumes_hold_what_they_name_and_writes_never_reach_the_host(cluster: Cluster) -> None:
    items = [{"path": "task.json", "fieldRef": {"fieldPath": "metadata.annotations['note']"}}]
    volumes = [{"name": "task", "downwardAPI": {"items": items}}, {"name": "keys", "secret": {"secretName": "store"}},
               {"name": "scratch", "emptyDir": {}}, {"name": "shm", "emptyDir": {"medium": "Memory"}}]  # fmt: skip
    places = {"task": "/etc/task", "keys": "/etc/keys", "scratch": "/scratch", "shm": "/dev/shm"}
    box = {
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in places.items()],
        "workingDir": "/scratch",
    }
    script = "cat /etc/task/task.json /etc/keys/KEY; pwd; touch here /dev/shm/there; echo x >/egt-must-not-exist"
    cluster.kubectl("create", "-f", "-", stdin=pod("volumes", script, box, volumes=volumes))
    assert ended(cluster, "volumes")["exitCode"] == 0
    assert logs(cluster, "volumes") == "from aboves3cret/scratch\n"
    assert not Path("/egt-must-not-exist").exists()


def test_a_restricted_container_has_its_user_and_cannot_write_its_root(cluster: Cluster) -> None:
    security = {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "readOnlyRootFilesystem": True,
                "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}  # fmt: skip
    script = (
        "id -u; touch /x 2>/dev/null || echo refused; grep CapBnd /proc/self/status; python -c 'import egt_operator'"
    )
    cluster.kubectl("create", "-f", "-", stdin=pod("restricted", script, {"securityContext": security}))
    assert ended(cluster, "restricted")["exitCode"] == 0
    assert logs(cluster, "restricted").split() == ["65532", "refused", "CapBnd:", "0000000000000000"]


def test_a_removed_pod_may_end_in_its_own_time_and_no_longer_than_its_grace(cluster: Cluster) -> None:
    kind = "trap 'echo saved; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    deaf = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    for name, script in (("kind", kind), ("deaf", deaf)):
        cluster.kubectl("create", "-f", "-", stdin=pod(name, script, terminationGracePeriodSeconds=2))
        wait_for("it runs", lambda name=name: "ready" in logs(cluster, name), 30)
        cluster.kubectl("delete", "pod", name, "--timeout=10s")


@pytest.mark.skipif(not limits_memory(), reason="no memory controller of cgroup v1 here")
def test_a_container_above_its_memory_limit_is_killed_by_name(cluster: Cluster) -> None:
    script = "exec python -c 'bytearray(300 << 20)'"
    box = {"resources": {"limits": {"memory": "64Mi"}}}
    cluster.kubectl("create", "-f", "-", stdin=pod("hungry", script, box))
    found = ended(cluster, "hungry")
    assert (found["exitCode"], found["reason"]) == (137, "OOMKilled")


def test_a_killed_pod_takes_every_process_with_it_and_ends_with_137(cluster: Cluster) -> None:
    cluster.kubectl("create", "-f", "-", stdin=pod("killed", "sleep 4321 & sleep 4321 & echo ready; wait"))
    wait_for("it runs", lambda: "ready" in logs(cluster, "killed"), 30)
    cluster.agent.signal("default", "killed")
    assert ended(cluster, "killed")["exitCode"] == 137
    assert subprocess.run(["pgrep", "-f", "sleep 4321"], check=False).returncode == 1


def test_a_missing_secret_or_image_is_named_and_waited_for(cluster: Cluster) -> None:
    env = [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "later", "key": "A"}}}]
    cluster.kubectl("create", "-f", "-", stdin=pod("waits", "echo $A", {"env": env}))
    cluster.kubectl("create", "-f", "-", stdin=pod("imageless", "true", {"image": "registry.invalid/x:1"}))
    wait_for(
        "it says so", lambda: "waiting" in state(cluster, "waits") and "message" in state(cluster, "waits")["waiting"]
    )
    waiting = state(cluster, "waits")["waiting"]
    assert (waiting["reason"], waiting["message"]) == ("CreateContainerConfigError", 'secret "later" not found')
    wait_for("it says so", lambda: "message" in state(cluster, "imageless").get("waiting", {}))
    assert state(cluster, "imageless")["waiting"]["reason"] == "ImagePullBackOff"
    cluster.kubectl("create", "secret", "generic", "later", "--from-literal=A=here")
    ended(cluster, "waits")
    assert logs(cluster, "waits") == "here\n"


def test_a_service_is_reached_by_its_name(cluster: Cluster) -> None:
    spec = {"selector": {"app": "server"}, "ports": [{"port": 8000}]}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"}, "spec": spec}
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(service))
    cluster.kubectl("create", "-f", "-", stdin=pod("server", "exec python -m http.server 8000"))
    get = 'import urllib.request as u; print(u.urlopen("http://web.default:8000/etc/hostname").status)'
    tries = f"for i in $(seq 50); do python -c '{get}' && exit 0; sleep 0.2; done; exit 1"
    cluster.kubectl("create", "-f", "-", stdin=pod("client", tries))
    assert ended(cluster, "client")["exitCode"] == 0


def test_a_pod_speaks_to_the_api_server_with_its_own_account(cluster: Cluster) -> None:
    script = """exec python -c "
import asyncio
from kubernetes.aio import config
from kubernetes.aio.client import AuthenticationV1Api
from kubernetes.aio.client.api_client import ApiClient
async def main():
    config.load_incluster_config()
    async with ApiClient() as client:
        review = await AuthenticationV1Api(client).create_self_subject_review({})
        print(review.status.user_info.username)
asyncio.run(main())"
"""
    cluster.kubectl("create", "-f", "-", stdin=pod("speaks", script))
    ended(cluster, "speaks")
    assert logs(cluster, "speaks") == "system:serviceaccount:default:default\n"
