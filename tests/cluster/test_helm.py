"""The operator's life under helm, its replicas real pods: install, test, upgrade and rollback under way, uninstall."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import Cluster, running_cluster
from control_plane import wait_for
from node_agent import NodeShape
from node_script import SimulatedPods
from pods_by_namespace import PodsByNamespace
from process_pods import ProcessPods, why_not
from simulated_stages import SimulatedStages
from team_runs import apply, stage, status

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
CHART = str(Path(__file__).parents[2] / "charts" / "egt-operator")
SYSTEM = ["--namespace", "egt-system"]
QUICK = ["--set", "settings.progressSeconds=1", "--set", "settings.resyncSeconds=20"]
# Two replicas import their libraries side by side on few cores.
WAIT = ["--wait", "--timeout", "120s"]
STAGE_SECONDS = 4.0
KINDS = "deploy,sa,role,rolebinding,svc,pdb,netpol,lease,pod"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    stages = SimulatedStages(seconds=STAGE_SECONDS)
    shape = NodeShape()
    with running_cluster(
        shape, lambda plane: PodsByNamespace("egt-system", ProcessPods(plane), SimulatedPods(stages))
    ) as running:
        running.kubectl("create", "namespace", "team")
        running.helm("install", "egt", CHART, *SYSTEM, "--create-namespace", *QUICK, *WAIT)
        yield running


def reaches(cluster: Cluster, name: str, wanted: str) -> None:
    wait_for(f"{name} is at {wanted}", lambda: stage(cluster, name, wanted).get("phase") == "Running", 60)


def completes_at_first_attempts(cluster: Cluster, name: str) -> None:
    wait_for(f"{name} is complete", lambda: status(cluster, name).get("phase") == "Complete", 120)
    assert {stage["attempt"] for stage in status(cluster, name)["stages"]} == {1}


def leader(cluster: Cluster) -> str:
    return cluster.kubectl("get", "lease", "egt", "-n", "egt-system", "-o", "jsonpath={.spec.holderIdentity}")


def test_helm_test_says_that_the_operator_has_what_it_needs(cluster: Cluster) -> None:
    assert "Phase:          Succeeded" in cluster.helm("test", "egt", *SYSTEM)


def test_a_run_goes_on_through_upgrade_and_rollback_as_if_nothing_had_been(cluster: Cluster) -> None:
    apply(cluster, "upgraded")
    reaches(cluster, "upgraded", "distill")
    before = leader(cluster)
    cluster.helm("upgrade", "egt", CHART, *SYSTEM, *QUICK, "--set", "settings.workers=3", *WAIT)
    wait_for("a new replica leads", lambda: leader(cluster) not in ("", before), 60)
    cluster.helm("rollback", "egt", "1", *SYSTEM, *WAIT)
    completes_at_first_attempts(cluster, "upgraded")


def test_when_the_leader_dies_the_other_replica_goes_on(cluster: Cluster) -> None:
    apply(cluster, "inherited")
    reaches(cluster, "inherited", "sft")
    first = leader(cluster)
    cluster.agent.signal("egt-system", first, 9)
    completes_at_first_attempts(cluster, "inherited")


def test_uninstall_leaves_the_runs_and_nothing_else_and_a_new_install_goes_on_with_them(cluster: Cluster) -> None:
    apply(cluster, "kept")
    reaches(cluster, "kept", "probe")
    cluster.helm("uninstall", "egt", *SYSTEM, *WAIT)
    mine = ["-l", "app.kubernetes.io/instance=egt", "-o", "name"]
    wait_for("nothing is left", lambda: not cluster.kubectl("get", KINDS, "-n", "egt-system", *mine), 60)
    assert status(cluster, "kept")["stage"] == "probe"
    cluster.helm("install", "egt", CHART, *SYSTEM, *QUICK, *WAIT)
    completes_at_first_attempts(cluster, "kept")


def test_uninstall_takes_the_runs_with_it_when_asked_to(cluster: Cluster) -> None:
    cluster.helm("upgrade", "egt", CHART, *SYSTEM, *QUICK, "--set", "crds.keep=false", *WAIT)
    apply(cluster, "removed")
    reaches(cluster, "removed", "prepare")
    cluster.helm("uninstall", "egt", *SYSTEM, *WAIT)
    wait_for(
        "runs, jobs and pods are gone",
        lambda: not cluster.kubectl("get", "pytorchjobs,pods", "-n", "team", "-o", "name"),
        60,
    )
    assert "egtruns" not in cluster.kubectl("get", "crd", "-o", "name")
