"""The operator on a real API server with the real training-operator; its stages are simulated."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from build_egtrun import egtrun
from cluster import Cluster, running_cluster, simulated
from control_plane import wait_for
from node_agent import NodeShape
from node_script import Ending
from operator_process import RunningOperator, operator_process
from simulated_stages import SimulatedStages
from team_runs import apply, make_team, stage, status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parents[2]
STAGES = ["prepare", "distill", "sft", "probe", "curate", "rl", "evaluate"]
SIMULATED = SimulatedStages()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster(NodeShape(), simulated(SIMULATED)) as running:
        make_team(running)
        # Whatever pod of a run this namespace takes fits the strictest of Kubernetes' standards.
        running.kubectl("label", "namespace", "team", "pod-security.kubernetes.io/enforce=restricted")
        running.kubectl("create", "secret", "generic", "store", "-n", "team", "--from-literal=AWS_ACCESS_KEY_ID=a",
                        "--from-literal=AWS_SECRET_ACCESS_KEY=b")  # fmt: skip
        yield running


@pytest.fixture(scope="module")
def operator(cluster: Cluster) -> Iterator[RunningOperator]:
    with operator_process(cluster.plane) as running:
        yield running


def apply_with_keys(cluster: Cluster, name: str, **spec: Any) -> None:
    apply(cluster, name, **{"store": {"uri": f"s3://bucket/{name}", "credentialsSecret": "store"}, **spec})


def wait_phase(cluster: Cluster, name: str, phase: str) -> None:
    wait_for(f"{name} is {phase}", lambda: status(cluster, name).get("phase") == phase, 60)


def jobs(cluster: Cluster, name: str) -> list[str]:
    found = cluster.kubectl("get", "pytorchjobs", "-n", "team", "-l", f"egt.dev/run={name}",
                            "--sort-by=.metadata.creationTimestamp", "-o", "name")  # fmt: skip
    return [line.rpartition("/")[2] for line in found.splitlines()]


def test_a_run_completes_and_kubectl_can_wait_for_it(cluster: Cluster, operator: RunningOperator) -> None:
    apply_with_keys(cluster, "whole")
    cluster.kubectl("wait", "egt/whole", "-n", "team", "--for=condition=Finished", "--timeout=120s")
    assert sorted(jobs(cluster, "whole")) == sorted(f"whole-{name}-a1" for name in STAGES)
    columns = cluster.kubectl("get", "egt", "whole", "-n", "team").splitlines()
    assert columns[0].split() == ["NAME", "STAGE", "PHASE", "REASON", "PROGRESS", "ACCURACY", "QUEUE", "AGE"]
    assert columns[1].split()[:6] == ["whole", "evaluate", "Complete", "Complete", "7/7", "0.900"]
    assert 'egt_runs{phase="Complete"}' in operator.metrics()


def test_events_tell_the_story_once(cluster: Cluster, operator: RunningOperator) -> None:
    apply_with_keys(cluster, "told")
    wait_phase(cluster, "told", "Complete")
    events = json.loads(cluster.kubectl("get", "events", "-n", "team", "-o", "json"))["items"]
    reasons = [e["reason"] for e in events if e["involvedObject"]["name"] == "told"]
    assert sorted(reasons) == sorted(["StageStarted"] * 7 + ["StageSucceeded"] * 7 + ["Complete"])


def test_an_attempt_killed_for_memory_is_tried_again_with_its_class_in_the_status(
    cluster: Cluster, operator: RunningOperator
) -> None:
    SIMULATED.endings["memory"] = {("sft", 1): Ending(0.5, 137, "OOMKilled")}
    apply_with_keys(cluster, "memory")
    wait_phase(cluster, "memory", "Complete")
    assert stage(cluster, "memory", "sft")["retries"] == {"OutOfMemory": 1}
    assert "memory-sft-a2" in jobs(cluster, "memory")


def test_metrics_add_up_to_what_the_status_of_a_run_says(cluster: Cluster, operator: RunningOperator) -> None:
    sums = {"egt_stage_seconds_sum": "stage", "egt_stage_seconds_count": "stage", "egt_queue_seconds_sum": "stage",
            "egt_failed_attempts_total": "stage", "egt_gpu_hours_total": "kind"}  # fmt: skip
    kinds = {"stage": STAGES, "kind": ["used", "wasted", "saved"]}

    def figures() -> dict[tuple[str, str], float]:
        return {
            (name, one): operator.figure(name, **{label: one}) for name, label in sums.items() for one in kinds[label]
        }

    SIMULATED.endings["counted"] = {("sft", 1): Ending(3.0, 1), ("rl", 1): Ending(3.0, 137, "OOMKilled")}
    before = figures()
    apply_with_keys(cluster, "counted")
    wait_phase(cluster, "counted", "Complete")
    counted = {place: value - before[place] for place, value in figures().items()}
    stages = {one["name"]: one for one in status(cluster, "counted")["stages"]}
    expected: dict[tuple[str, str], float] = {}
    for name, one in stages.items():
        took = datetime.fromisoformat(one["finished"]) - datetime.fromisoformat(one["started"])
        expected |= {("egt_stage_seconds_count", name): 1, ("egt_stage_seconds_sum", name): took.total_seconds()}
        expected["egt_queue_seconds_sum", name] = one["queueSeconds"]
        expected["egt_failed_attempts_total", name] = sum(one["retries"].values())
    for kind in kinds["kind"]:
        expected["egt_gpu_hours_total", kind] = sum(one.get("gpuHours", {}).get(kind, 0.0) for one in stages.values())
    assert counted == pytest.approx(expected, abs=1e-6)
    assert counted["egt_failed_attempts_total", "sft"] == counted["egt_failed_attempts_total", "rl"] == 1
    assert 0 < counted["egt_gpu_hours_total", "wasted"] < counted["egt_gpu_hours_total", "used"]


def test_a_rank_that_is_silently_replaced_starts_all_ranks_anew(cluster: Cluster, operator: RunningOperator) -> None:
    """Of a pod that was deleted by force training-operator makes another, or it fails the job: whichever it sees."""
    SIMULATED.endings["replaced"] = {("probe", 1): Ending(None)}
    apply_with_keys(cluster, "replaced", probe={"workers": 2})
    wait_for("probe runs", lambda: stage(cluster, "replaced", "probe").get("runningSince"), 60)
    cluster.kubectl("delete", "pod", "replaced-probe-a1-worker-0", "-n", "team", "--force", "--grace-period=0")
    wait_phase(cluster, "replaced", "Complete")
    probe = stage(cluster, "replaced", "probe")
    assert (probe["retries"], probe["attempt"]) == ({"NodeLost": 1}, 2)
    said = probe["lastFailure"]["message"]
    assert "a pod was replaced while the others went on" in said or "1 of 2 pods are not there any more" in said


def test_a_pod_that_somebody_deletes_starts_all_ranks_anew(cluster: Cluster, operator: RunningOperator) -> None:
    SIMULATED.endings["deleted"] = {("probe", 1): Ending(None)}
    apply_with_keys(cluster, "deleted", probe={"workers": 2})
    wait_for("probe runs", lambda: stage(cluster, "deleted", "probe").get("runningSince"), 60)
    cluster.kubectl("delete", "pod", "deleted-probe-a1-worker-0", "-n", "team", "--wait=false")
    wait_phase(cluster, "deleted", "Complete")
    probe = stage(cluster, "deleted", "probe")
    assert (probe["attempt"], sum(probe["retries"].values())) == (2, 1)
    assert probe["retries"].keys() <= {"Preempted", "NodeLost"}, "it depends on what was seen of the pod before it went"


def test_suspend_ends_the_stage_and_resume_completes_the_run(cluster: Cluster, operator: RunningOperator) -> None:
    SIMULATED.endings["paused"] = {("sft", 1): Ending(None)}
    apply_with_keys(cluster, "paused")
    wait_for("sft runs", lambda: stage(cluster, "paused", "sft").get("runningSince"), 60)
    patch = ["patch", "egt", "paused", "-n", "team", "--type=merge", "-p"]
    cluster.kubectl(*patch, '{"spec": {"suspend": true}}')
    wait_phase(cluster, "paused", "Suspended")
    pods = cluster.kubectl("get", "pods", "-n", "team", "-l", "egt.dev/run=paused,egt.dev/stage=sft", "-o", "name")
    assert pods == ""
    cluster.kubectl(*patch, '{"spec": {"suspend": false}}')
    wait_phase(cluster, "paused", "Complete")
    assert stage(cluster, "paused", "sft")["attempt"] == 2


def test_a_lost_node_ends_the_attempt_as_such(cluster: Cluster, operator: RunningOperator) -> None:
    SIMULATED.endings["lost"] = {("sft", 1): Ending(None)}
    apply_with_keys(cluster, "lost")
    wait_for("sft runs", lambda: stage(cluster, "lost", "sft").get("runningSince"), 60)
    node = cluster.kubectl("get", "pod", "lost-sft-a1-master-0", "-n", "team", "-o", "jsonpath={.spec.nodeName}")
    cluster.agent.node_down(node)
    try:
        wait_for("the loss is seen", lambda: stage(cluster, "lost", "sft").get("retries") == {"NodeLost": 1}, 180)
        wait_phase(cluster, "lost", "Complete")
    finally:
        cluster.agent.node_up(node)


def test_deleting_a_run_leaves_nothing(cluster: Cluster, operator: RunningOperator) -> None:
    SIMULATED.endings["gone"] = {("rl", 1): Ending(None)}
    apply_with_keys(cluster, "gone")
    wait_for("rl runs", lambda: stage(cluster, "gone", "rl").get("runningSince"), 60)
    cluster.kubectl("delete", "egt", "gone", "-n", "team", "--timeout=30s")
    left = "pytorchjobs,pods,services"
    wait_for(
        "nothing is left",
        lambda: not cluster.kubectl("get", left, "-n", "team", "-l", "egt.dev/run=gone", "-o", "name"),
        60,
    )


def test_the_api_server_refuses_what_the_types_refuse(cluster: Cluster) -> None:
    for block, change, path in (
        ("rl", {"batchSize": 7, "microBatchSize": 2}, r"spec\.rl\.batchSize"),
        ("model", {"source": "https://huggingface.co/org/model"}, r"spec\.model\.source.*is hf://organisation/name"),
        ("rl", {"resources": {"gpu": 8}}, r"spec\.rl\.resources\.gpu.*as many as a pod has processes"),
        ("sft", {"adamBetas": [0.9, 1.0]}, r"spec\.sft\.adamBetas\[1\]"),
        ("scheduling", {"nodeSelector": {"a b": "x"}}, r"spec\.scheduling\.nodeSelector.*every key"),
        ("podTemplate", {"annotations": {"a/b/c": "x"}}, r"spec\.podTemplate\.annotations.*every key"),
        ("scheduling", {"nodeAffinity": [{"key": "a"}]}, r"spec\.scheduling\.nodeAffinity\[0\]\.values"),
        (
            "scheduling",
            {"tolerations": [{"effect": "NoExecute"}]},
            r"spec\.scheduling\.tolerations\[0\].*key: is missing",
        ),
    ):
        body = egtrun(store={"uri": "s3://bucket/odd"})
        body["spec"][block] |= change
        with pytest.raises(RuntimeError, match=path):
            cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(body))


def test_recipes_cannot_change_and_placement_can(cluster: Cluster, operator: RunningOperator) -> None:
    apply_with_keys(cluster, "frozen")
    wait_phase(cluster, "frozen", "Complete")
    patch = ["patch", "egt", "frozen", "-n", "team", "--type=merge", "-p"]
    with pytest.raises(RuntimeError, match="cannot change"):
        cluster.kubectl(*patch, '{"spec": {"sft": {"learningRate": 0.5}}}')
    with pytest.raises(RuntimeError, match=r"spec\.prepare: Invalid value: .*can change only while the stage waits"):
        cluster.kubectl(*patch, '{"spec": {"prepare": {"resources": {"cpu": 3}}}}')
    cluster.kubectl(*patch, '{"spec": {"ttl": {"completeSeconds": 1}}}')
    wait_for(
        "the run is removed", lambda: "frozen" not in cluster.kubectl("get", "egt", "-n", "team", "-o", "name"), 60
    )


def test_a_killed_operator_is_followed_by_the_next(cluster: Cluster, operator: RunningOperator) -> None:
    SIMULATED.endings["orphan"] = {("probe", 1): Ending(None)}
    apply_with_keys(cluster, "orphan")
    wait_for("probe runs", lambda: stage(cluster, "orphan", "probe").get("runningSince"), 60)
    operator.process.kill()
    cluster.agent.signal("team", "orphan-probe-a1-master-0")
    with operator_process(cluster.plane):
        wait_phase(cluster, "orphan", "Complete")
    assert stage(cluster, "orphan", "probe")["retries"] == {"Crash": 1}
    assert len(jobs(cluster, "orphan")) == 8
