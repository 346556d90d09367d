"""Runs in namespace ``team`` of a test cluster, as kubectl sees them."""

import json
from pathlib import Path
from typing import Any

from build_egtrun import egtrun
from cluster import Cluster

CRD = Path(__file__).parents[2] / "crds" / "egtruns.yaml"


def make_team(cluster: Cluster) -> None:
    """EGTRuns are served, and the namespace is there."""
    cluster.kubectl("apply", "--server-side", "-f", str(CRD))
    cluster.plane.wait_established("egtruns.egt.dev")
    cluster.kubectl("create", "namespace", "team")


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
