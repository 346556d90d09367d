"""The whole example for clusters, as its first comment says to run it, beside the same manifest on this machine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import running_cluster
from cluster_run import BUCKET, TEACHER_PORT, ClusterRun, example_manifest
from control_plane import wait_for
from node_agent import NodeShape
from process_pods import ProcessPods, why_not
from small_run import STAGES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
NAME = "digits-cluster"
# Stages that take their numbers from their inputs alone; rl rolls dice, and its rollouts depend on who is ready first.
DETERMINISTIC = {
    "distill": ("trajectories", ["sample_id", "status", "response"]),
    "sft": ("losses", ["step", "loss"]),
    "probe": ("entropies", ["sample_id", "answer_entropy_nats"]),
    "curate": ("selection", ["sample_id", "decision", "rank"]),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterRun]:
    with running_cluster(NodeShape(), ProcessPods) as cluster:
        (cluster.s3.folder / BUCKET).mkdir()
        place = ClusterRun(cluster, tmp_path_factory.mktemp("digits"))
        place.bring_sources()
        place.install()
        place.apply(example_manifest())
        yield place


@pytest.fixture(scope="module", autouse=True)
def steps_said(place: ClusterRun) -> dict[str, float]:
    """The run is suspended somewhere between two checkpoints of sft and of rl, goes on, and completes.

    Returned is how many steps each had said to be done when it was suspended.
    """
    found = {stage: suspend_during(place, stage, steps) for stage, steps in (("sft", 50), ("rl", 12))}
    place.wait_complete(NAME, 3000)
    return found


def suspend_during(place: ClusterRun, stage: str, after: int) -> float:
    def steps() -> float:
        progress = place.stage(NAME, stage).get("progress") or {}
        return float(progress.get("done", 0))

    wait_for(f"{stage} has done some steps", lambda: steps() > after, 1200)
    place.suspend(NAME, True)
    wait_for("the run is suspended", lambda: place.status(NAME)["phase"] == "Suspended", 300)
    said = steps()
    place.suspend(NAME, False)
    return said


def test_a_stage_that_was_suspended_goes_on_as_its_next_attempt(
    place: ClusterRun, steps_said: dict[str, float]
) -> None:
    """That no step of sft is missing, and none done twice, is what its losses say, which are compared below."""
    stages = place.status(NAME)["stages"]
    attempts = {stage["name"]: stage["attempt"] for stage in stages}
    assert attempts == {name: 1 + (name in steps_said) for name in STAGES}
    assert all(stage["retries"] == {} for stage in stages)


def test_rl_does_no_step_of_a_suspended_attempt_again(place: ClusterRun, steps_said: dict[str, float]) -> None:
    order = place.table("rl", "order").to_pylist()
    kept = max((row["step"] for row in order if row["attempt"] == 1), default=0)
    assert {row["attempt"] for row in order if row["step"] > kept} == {2}
    assert kept > 0
    assert steps_said["rl"] - kept <= 1  # its stop writes a checkpoint, so not even an interval is lost
    print(f"rl: {steps_said['rl']:.0f} steps said at the suspension, {kept} of them kept")


def test_every_artifact_names_the_pod_that_made_it(place: ClusterRun) -> None:
    hosts = {stage: manifest["producer"]["host"] for stage, manifest in place.manifests().items()}
    assert sorted(hosts) == sorted(STAGES)
    assert all(host.startswith(f"{NAME}-{stage}-a") for stage, host in hosts.items())


def test_verify_recomputes_the_whole_chain(place: ClusterRun) -> None:
    place.egt("verify", f"{NAME}.yaml")


def test_deterministic_stages_give_the_numbers_of_a_run_on_this_machine(place: ClusterRun) -> None:
    """The local run begins with an empty store of its own, and ends where the two may part."""
    run = example_manifest()
    run["metadata"]["name"] = "here"
    pod = place.cluster.plane.get("pods", "-l", "app=digits-teacher")["items"][0]  # type: ignore[index]
    run["spec"]["distill"]["teacher"]["baseUrl"] = f"http://{pod['status']['podIP']}:{TEACHER_PORT}/v1"
    run["spec"]["store"] |= {"endpoint": place.cluster.s3.endpoint, "uri": f"s3://{BUCKET}/here"}
    run["spec"]["rl"]["enabled"] = run["spec"]["evaluate"]["enabled"] = False
    del run["spec"]["store"]["credentialsSecret"]
    (place.folder / "here.yaml").write_text(json.dumps(run))
    place.egt("local", "run", "here.yaml")
    for stage, (file, columns) in DETERMINISTIC.items():
        there, here = (
            place.table(stage, file, store).select(columns).sort_by(columns[0]) for store in ("runs", "here")
        )
        assert there.equals(here), stage


def test_another_curation_reuses_sft_and_probe(place: ClusterRun) -> None:
    other: dict[str, Any] = example_manifest()
    other["metadata"]["name"] = "other"
    other["spec"]["curate"]["keep"] = {"share": 0.2}
    place.apply(other)
    wait_for("rl runs", lambda: place.stage("other", "rl").get("phase") == "Running", 300)
    attempts = {stage["name"]: stage["attempt"] for stage in place.status("other")["stages"]}
    assert [name for name in STAGES[:6] if attempts[name] == 0] == ["distill", "sft", "probe"]
    place.cluster.kubectl("delete", "egt", "other", "--timeout=60s")


def test_a_report_is_made_of_the_run_on_the_cluster(place: ClusterRun, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    place.egt("report", f"{NAME}.yaml", "--out", str(page))
    assert "probe" in page.read_text()
