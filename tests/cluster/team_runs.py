"""Runs in namespace ``team`` of a test cluster, as kubectl sees them."""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from kubernetes.aio import config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from build_egtrun import egtrun
from cluster import Cluster
from control_plane import wait_for

CRD = Path(__file__).parents[2] / "crds" / "egtruns.yaml"
RUNS = "/apis/egt.dev/v1alpha1/namespaces/team/egtruns"
JOBS = "/apis/kubeflow.org/v1/namespaces/team/pytorchjobs"
PODS = "/api/v1/namespaces/team/pods"


def serve_runs(cluster: Cluster) -> None:
    """EGTRuns are served."""
    cluster.kubectl("apply", "--server-side", "-f", str(CRD))
    cluster.plane.wait_established("egtruns.egt.dev")


def make_team(cluster: Cluster) -> None:
    """EGTRuns are served, and the namespace is there and takes pods."""
    serve_runs(cluster)
    cluster.kubectl("create", "namespace", "team")
    wait_for("the ServiceAccount", lambda: cluster.kubectl("get", "sa", "default", "-n", "team"))


@contextlib.asynccontextmanager
async def client_of(cluster: Cluster) -> AsyncIterator[ApiClient]:
    """The operator's own client, for calls as it makes them."""
    found = Configuration()
    await config.load_kube_config(  # type: ignore[no-untyped-call]
        config_file=str(cluster.kubeconfig), client_configuration=found
    )
    async with ApiClient(found) as client:
        yield client


def apply(cluster: Cluster, name: str, **spec: Any) -> None:
    """A run of that name is applied; its store is its own."""
    body = egtrun(**{"store": {"uri": f"s3://bucket/{name}"}, **spec})
    body["metadata"]["name"] = name
    cluster.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(body))


def status(cluster: Cluster, name: str) -> dict[str, Any]:
    """The status of a run; empty before it has any."""
    found = json.loads(cluster.kubectl("get", "egt", name, "-n", "team", "-o", "json"))
    status: dict[str, Any] = found.get("status", {})
    return status


def stage(cluster: Cluster, name: str, wanted: str) -> dict[str, Any]:
    """The status of one stage; empty before the run has any."""
    return next((s for s in status(cluster, name).get("stages", ()) if s["name"] == wanted), {})
