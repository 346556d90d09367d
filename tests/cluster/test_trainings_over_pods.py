"""sft and rl over two pods each, a process in either, all real; a pod of each is killed in the middle of its work."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chat_server import Answer, chat_server
from cluster_run import BUCKET, ClusterRun, small_manifest, without_operator
from control_plane import wait_for
from operator_process import operator_process
from process_pods import why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]
EPOCHS = 8
OVER_PODS = {"processes": 2, "pods": 2}
ALWAYS_ONE = Answer(text="<think>The first says four, right.</think><answer>1</answer>")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterRun]:
    with (
        without_operator(tmp_path_factory.mktemp("pods"), sft=60, rl=40, heldout=20) as found,
        operator_process(found.cluster.plane),
    ):
        yield found


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    with chat_server(lambda _request, _number: ALWAYS_ONE) as server:
        yield server.base_url


def apply(place: ClusterRun, name: str, teacher: str, **stages: dict[str, Any]) -> None:
    """A run with a store of its own: where a stage runs is no part of what its output is called."""
    run = small_manifest()
    run["metadata"]["name"] = name
    spec = run["spec"]
    spec["store"] |= {"uri": f"s3://{BUCKET}/{name}"}
    spec["distill"]["teacher"]["baseUrl"] = teacher
    spec["sft"] |= {"processes": 1, "maxSteps": 60, "batchSize": 16, "microBatchSize": 8, "warmupSteps": 5,
                    "checkpointSteps": 10}  # fmt: skip
    spec["rl"] |= {"epochs": EPOCHS, "microBatchSize": 4, "checkpointSteps": 1}
    spec["evaluate"] |= {"enabled": False}
    for stage, changes in stages.items():
        spec[stage] |= changes
    place.apply(run)


def checkpoints(place: ClusterRun, run: str, stage: str) -> dict[str, set[str]]:
    """The steps of which each pod has committed its part."""
    records = (place.bucket / run / "attempts" / stage).glob("*/work/checkpoints/*/pod-*/*/step-*/directory.json")
    found: dict[str, set[str]] = {"pod-0": set(), "pod-1": set()}
    for record in records:
        found[record.parts[-4]].add(record.parts[-2])
    return found


def kill_after_a_checkpoint(place: ClusterRun, run: str, stage: str) -> None:
    """The second pod of the stage's first attempt is gone once there is a whole checkpoint to go on from."""
    wait_for(
        f"{stage} has a checkpoint", lambda: bool(set.intersection(*checkpoints(place, run, stage).values())), 1500
    )
    place.cluster.agent.signal("default", f"{run}-{stage}-a1-worker-0", signal.SIGKILL)
    wait_for("its stage is tried again", lambda: place.stage(run, stage).get("attempt") == 2, 120)


def resumed_from(place: ClusterRun, run: str, stage: str) -> int:
    """The step that the stage's second attempt says to have gone on from."""
    pod = f"{run}-{stage}-a2-master-0"

    def said() -> list[str]:
        lines: list[str] = place.cluster.kubectl("logs", pod).splitlines()
        return [line for line in lines if line.startswith("goes on from")]

    wait_for("it says where it goes on", lambda: bool(said()), 120)
    return int(said()[0][-6:])


@pytest.fixture(scope="module")
def completed(place: ClusterRun, teacher: str) -> tuple[ClusterRun, dict[str, int]]:
    """The run, and the step that each training went on from after one of its pods was killed."""
    apply(place, "two", teacher, sft=OVER_PODS, rl=OVER_PODS)
    found = {}
    for stage in ("sft", "rl"):
        kill_after_a_checkpoint(place, "two", stage)
        found[stage] = resumed_from(place, "two", stage)
    place.wait_complete("two", 900)
    return place, found


def test_a_killed_pod_ends_the_attempt_with_its_own_class(completed: tuple[ClusterRun, dict[str, int]]) -> None:
    for stage in ("sft", "rl"):
        status = completed[0].stage("two", stage)
        assert (status["retries"], status["attempt"]) == ({"Crash": 1}, 2)
        assert status["lastFailure"]["message"].startswith(f"two-{stage}-a1-worker-0: ")
        assert status["lastFailure"]["exitCode"] == 137


def test_losses_over_two_pods_with_one_killed_are_those_of_one_pod(
    completed: tuple[ClusterRun, dict[str, int]], teacher: str
) -> None:
    place, steps = completed
    apply(place, "one", teacher, **{stage: {"enabled": False} for stage in ("probe", "curate", "rl")})
    place.wait_complete("one", 600)
    one, two = (place.table("sft", "losses", store)["loss"].to_pylist() for store in ("one", "two"))
    assert 10 <= steps["sft"] < 60 == len(one)
    apart = max(abs(a - b) for a, b in zip(one, two, strict=True))
    print(f"sft went on from step {steps['sft']}, rl from {steps['rl']}; losses differ by {apart:.1e} at most")
    assert two == pytest.approx(one, abs=1e-3)


def test_rl_over_two_pods_with_one_killed_saw_the_planned_order(
    completed: tuple[ClusterRun, dict[str, int]], tmp_path: Path
) -> None:
    place, steps = completed
    kept = [row for row in place.table("curate", "selection", "two").to_pylist() if row["decision"] == "kept"]
    order = place.table("rl", "order", "two").to_pylist()
    planned = [row["sample_id"] for row in sorted(kept, key=lambda row: row["rank"])]
    assert [row["sample_id"] for row in order] == planned * EPOCHS
    assert {row["attempt"] for row in order if row["step"] <= steps["rl"]} == {1}
    assert {row["attempt"] for row in order if row["step"] > steps["rl"]} <= {2}


def test_nothing_of_the_attempts_is_left(completed: tuple[ClusterRun, dict[str, int]]) -> None:
    place, _ = completed
    assert not [path for path in (place.bucket / "two" / "attempts").rglob("*") if path.is_file()]
    verdicts = json.loads(place.egt("verify", "two.yaml", "-o", "json"))
    assert all(verdict["published"] and not verdict["problems"] for verdict in verdicts)
