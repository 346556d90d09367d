"""helm install, kubectl apply, and the whole method runs for real in pods, its artifacts on a real S3 server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import running_cluster
from cluster_run import BUCKET, ClusterRun, small_manifest
from control_plane import wait_for
from node_agent import NodeShape
from process_pods import ProcessPods, why_not
from small_run import STAGES

# The first test of a machine builds Kubernetes, which takes longer than any run on it.
pytestmark = [pytest.mark.timeout(3600), pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterRun]:
    with running_cluster(NodeShape(), ProcessPods) as cluster:
        (cluster.s3.folder / BUCKET).mkdir()
        place = ClusterRun(cluster, tmp_path_factory.mktemp("cluster"))
        place.bring_sources(sft=600, rl=120, heldout=80)
        place.install()
        yield place


@pytest.fixture(scope="module")
def completed(place: ClusterRun) -> tuple[Path, dict[str, Any]]:
    return place.apply(small_manifest()), place.wait_complete("small", 1500)


def test_every_stage_succeeds_at_its_first_attempt(completed: tuple[Path, dict[str, Any]]) -> None:
    stages = completed[1]["stages"]
    assert [stage["name"] for stage in stages] == STAGES
    assert {(stage["phase"], stage["attempt"]) for stage in stages} == {("Succeeded", 1)}


def test_every_artifact_names_the_pod_that_made_it(place: ClusterRun, completed: tuple[Path, dict[str, Any]]) -> None:
    hosts = {stage: manifest["producer"]["host"] for stage, manifest in place.manifests().items()}
    assert sorted(hosts) == sorted(STAGES)
    assert all(host.startswith(f"small-{stage}-a1-") for stage, host in hosts.items())


def test_verify_recomputes_the_whole_chain(place: ClusterRun, completed: tuple[Path, dict[str, Any]]) -> None:
    verdicts = json.loads(place.egt("verify", str(completed[0]), "-o", "json"))
    assert all(verdict["published"] and not verdict["problems"] for verdict in verdicts)


def test_rl_saw_the_kept_samples_from_easy_to_hard(place: ClusterRun, completed: tuple[Path, dict[str, Any]]) -> None:
    kept = [row for row in place.table("curate", "selection").to_pylist() if row["decision"] == "kept"]
    order = place.table("rl", "order").to_pylist()
    seen = [row["sample_id"] for row in sorted(order, key=lambda row: (row["epoch"], row["step"], row["position"]))]
    assert seen == [row["sample_id"] for row in sorted(kept, key=lambda row: row["rank"])]


def test_a_second_run_with_another_curation_reuses_sft_and_probe(
    place: ClusterRun, completed: tuple[Path, dict[str, Any]]
) -> None:
    other = small_manifest()
    other["metadata"]["name"] = "other"
    other["spec"]["curate"] = {"keep": {"share": 0.2}}
    place.apply(other)

    wait_for("curate is done", lambda: place.stage("other", "curate").get("phase") == "Succeeded", 120)
    attempts = {stage["name"]: stage["attempt"] for stage in place.status("other")["stages"]}
    assert [attempts[name] for name in ("prepare", "distill", "sft", "probe", "curate")] == [1, 0, 0, 0, 1]
    place.cluster.kubectl("delete", "egt", "other", "--timeout=60s")
