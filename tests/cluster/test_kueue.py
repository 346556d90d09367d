"""Runs in a queue of the real Kueue: they wait for quota, lose their place and get it back, and complete."""

import json
from collections.abc import Iterator

import pytest

from cluster import Cluster, running_cluster, simulated
from control_plane import wait_for
from kueue import kueue, quota
from node_agent import NodeShape
from node_script import Ending
from operator_process import RunningOperator, operator_process
from simulated_stages import SimulatedStages
from team_runs import apply, make_team, stage, status

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
STAGES = SimulatedStages()
FOREVER = Ending(None)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster(NodeShape(), simulated(STAGES)) as running, kueue(running.plane):
        make_team(running)
        running.kubectl("apply", "--server-side", "-f", "-", stdin=quota(gpus=2))
        yield running


@pytest.fixture(scope="module")
def operator(cluster: Cluster) -> Iterator[RunningOperator]:
    with operator_process(cluster.plane) as running:
        yield running


def apply_in(cluster: Cluster, name: str, queue: str = "team") -> None:
    apply(cluster, name, scheduling={"queue": queue})


def wait_complete(cluster: Cluster, name: str) -> None:
    wait_for(f"{name} is complete", lambda: status(cluster, name).get("phase") == "Complete", 90)


def test_a_run_waits_for_quota_and_says_so(cluster: Cluster, operator: RunningOperator) -> None:
    STAGES.endings["first"] = {("sft", 1): Ending(6.0)}
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=quota(gpus=1))
    apply_in(cluster, "first")
    wait_for("sft runs", lambda: stage(cluster, "first", "sft").get("runningSince"), 60)
    apply_in(cluster, "second")
    wait_for("it waits", lambda: stage(cluster, "second", "sft").get("reason") == "Queued", 60)
    assert status(cluster, "second")["phase"] == "Pending"
    columns = cluster.kubectl("get", "egt", "second", "-n", "team").splitlines()[1].split()
    assert "team" in columns
    wait_complete(cluster, "first")
    wait_complete(cluster, "second")
    assert stage(cluster, "second", "sft")["queueSeconds"] > 1
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=quota(gpus=2))


@pytest.mark.parametrize("wanted", ["sft", "rl"])
def test_a_run_that_loses_its_place_gets_it_back_and_completes(
    cluster: Cluster, operator: RunningOperator, wanted: str
) -> None:
    name = f"evicted-{wanted}"
    STAGES.endings[name] = {(wanted, 1): FOREVER}  # type: ignore[index]
    apply_in(cluster, name)
    wait_for(f"{wanted} runs", lambda: stage(cluster, name, wanted).get("runningSince"), 60)
    del STAGES.endings[name][wanted, 1]
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=quota(gpus=2, stop="HoldAndDrain"))
    wait_for("it waits again", lambda: stage(cluster, name, wanted).get("reason") == "Queued", 60)
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=quota(gpus=2))
    wait_complete(cluster, name)
    found = stage(cluster, name, wanted)
    assert (found["attempt"], found["retries"]) == (1, {})
    assert found["gpuHours"]["wasted"] > 0


def test_a_queue_that_does_not_exist_is_named_and_waited_for(cluster: Cluster, operator: RunningOperator) -> None:
    apply_in(cluster, "queueless", queue="later")
    accepted = ["get", "egt", "queueless", "-n", "team", "-o", "jsonpath={.status.conditions[?(@.type=='Accepted')]}"]
    wait_for("it is refused", lambda: '"status":"False"' in cluster.kubectl(*accepted), 30)
    assert "there is no LocalQueue 'later' in namespace team" in cluster.kubectl(*accepted)
    made = json.loads(quota(gpus=2))["items"][2]
    made["metadata"]["name"] = "later"
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(made))
    wait_complete(cluster, "queueless")
