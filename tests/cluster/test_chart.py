"""The chart against a real API server, and the operator with the rights that the chart gives it and no others."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from build_egtrun import egtrun
from cluster import Cluster, running_cluster, simulated
from cluster_binaries import module_folder
from control_plane import control_plane, wait_for
from node_agent import NodeShape
from operator_process import operator_process, why_it_ends
from simulated_stages import SimulatedStages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parents[2]
KUBERNETES = ["--kube-version", "1.36.3"]  # a template that sees no cluster takes the oldest
CHART = ROOT / "charts" / "egt-operator"
ONE_TEAM = ["--namespace", "egt-system", "-f", str(CHART / "ci" / "one-namespace.yaml")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster(NodeShape(), simulated(SimulatedStages())) as running:
        for name in ("egt-system", "team-a", "team-b"):
            running.kubectl("create", "namespace", name)
        yield running


def server_dry_run(cluster: Cluster, *arguments: str) -> None:
    # A pod of helm test would need what the release makes before it.
    known = ["--namespace", "egt-system", "--skip-tests", *KUBERNETES]
    text = cluster.helm("template", "egt", str(CHART), *known, *arguments)
    cluster.kubectl("apply", "--server-side", "--dry-run=server", "-f", "-", stdin=text)


def test_the_chart_is_sound(cluster: Cluster) -> None:
    assert "0 chart(s) failed" in cluster.helm("lint", str(CHART))


@pytest.mark.parametrize(
    "values", [[], ["-f", str(CHART / "ci" / "one-namespace.yaml")], ["-f", str(CHART / "ci" / "cluster.yaml")]]
)
def test_what_the_chart_renders_is_accepted_by_the_api_server(cluster: Cluster, values: list[str]) -> None:
    server_dry_run(cluster, *values)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("replicas=0", "replicas"),
        ("settings.nosuch=1", "nosuch"),
        ("image.digest=latest", "digest"),
        ("typo=1", "typo"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(cluster: Cluster, value: str, said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        cluster.helm("template", "egt", str(CHART), *KUBERNETES, "--set", value)


def test_install_upgrade_rollback_uninstall_leave_the_runs_definition_and_nothing_else(cluster: Cluster) -> None:
    cluster.helm("install", "egt", str(CHART), *ONE_TEAM, "--wait", "--timeout", "60s")
    cluster.helm("upgrade", "egt", str(CHART), *ONE_TEAM, "--set", "settings.workers=3", "--wait", "--timeout", "60s")
    cluster.helm("rollback", "egt", "1", "--namespace", "egt-system", "--wait", "--timeout", "60s")
    cluster.helm("uninstall", "egt", "--namespace", "egt-system", "--wait", "--timeout", "60s")
    kinds = "deploy,sa,role,rolebinding,svc,pdb,netpol"
    left = [cluster.kubectl("get", kinds, "-n", name, "-l", "app.kubernetes.io/instance=egt", "-o", "name")
            for name in ("egt-system", "team-a")]  # fmt: skip
    assert left == ["", ""]
    assert "egtruns.egt.dev" in cluster.kubectl("get", "crd", "-o", "name")


def phase(cluster: Cluster, namespace: str) -> str:
    return cluster.kubectl("get", "egt", "digits", "-n", namespace, "-o", "jsonpath={.status.phase}")


def test_an_operator_installed_for_one_namespace_serves_it_and_can_touch_no_other(cluster: Cluster) -> None:
    cluster.kubectl("apply", "--server-side", "-f", str(ROOT / "crds" / "egtruns.yaml"))
    cluster.plane.wait_established("egtruns.egt.dev")
    cluster.helm("install", "one", str(CHART), *ONE_TEAM, "--set", "crds.install=false")
    token = cluster.kubectl("create", "token", "one", "-n", "egt-system").strip()
    config = with_token(cluster, token)
    for namespace in ("team-a", "team-b"):
        body: dict[str, Any] = egtrun(store={"uri": f"s3://bucket/{namespace}"})
        body["metadata"]["namespace"] = namespace
        cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(body))
    settings = {"namespaces": '["team-a"]', "lease_namespace": "egt-system", "lease_name": "one"}
    with operator_process(cluster.plane, config, **settings) as operator:
        wait_for(f"team-a's run completes {operator.log}", lambda: phase(cluster, "team-a") == "Complete", 60)
    assert phase(cluster, "team-b") == ""
    can = ["auth", "can-i", "--as", "system:serviceaccount:egt-system:one"]
    with pytest.raises(RuntimeError):
        cluster.kubectl(*can, "create", "pytorchjobs.kubeflow.org", "-n", "team-b")
    with pytest.raises(RuntimeError):
        cluster.kubectl(*can, "get", "secrets", "-n", "team-a")


def test_an_operator_without_a_permission_says_which(cluster: Cluster) -> None:
    cluster.kubectl("create", "serviceaccount", "powerless", "-n", "egt-system")
    token = cluster.kubectl("create", "token", "powerless", "-n", "egt-system").strip()
    said = why_it_ends(with_token(cluster, token))
    assert "lacks a permission" in said
    assert 'cannot get resource "leases"' in said


def test_an_operator_names_the_kind_that_the_cluster_does_not_know() -> None:
    with control_plane() as bare:
        assert "pytorchjobs.kubeflow.org: install training-operator" in why_it_ends(bare.kubeconfig)
        module = module_folder("training-operator", "github.com/kubeflow/training-operator")
        crds = module / "manifests" / "base" / "crds"
        bare.kubectl("apply", "--server-side", "-f", str(crds / "kubeflow.org_pytorchjobs.yaml"))
        bare.wait_established("pytorchjobs.kubeflow.org")
        assert "egtruns.egt.dev: apply the definition" in why_it_ends(bare.kubeconfig)


def with_token(cluster: Cluster, token: str) -> Path:
    """The cluster's kubeconfig with a token in place of the administrator's certificate."""
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    path = cluster.plane.folder / "token.kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path
