"""A run that is deleted and applied again under its name, while what belonged to the old one is still there."""

import copy
from typing import Any

from build_egtrun import KEY, drive, egtrun, operator_of, status_of
from fake_cluster import FakeCluster
from fake_stages import Ending

FIRST = [f"digits-{stage}-a1" for stage in ("prepare", "distill", "sft", "probe", "curate", "rl", "evaluate")]


def with_remains(kinds: tuple[str, ...], ending: Ending) -> FakeCluster:
    """A cluster with a new run whose predecessor has ended; of that, ``kinds`` are still there."""
    cluster = FakeCluster(script=lambda *_: ending)
    cluster.apply(egtrun())
    drive(cluster)
    remains: dict[str, list[Any]] = {kind: copy.deepcopy(cluster.objects(kind)) for kind in kinds}  # type: ignore[arg-type]
    cluster.delete("run", "digits")
    for kind, bodies in remains.items():
        for body in bodies:
            cluster._store(kind, body)  # type: ignore[arg-type]
    cluster.created.clear()
    cluster.script = lambda *_: Ending()
    cluster.apply(egtrun(model={"source": "/data/other"}))
    return cluster


def test_pods_of_the_old_run_say_nothing_about_the_new_one() -> None:
    cluster = with_remains(("pod",), Ending(exit_code=64, message="a typo"))
    drive(cluster, until=lambda c: bool(status_of(c)))
    assert status_of(cluster)["phase"] == "Pending"
    for pod in cluster.objects("pod"):
        if pod["status"]["phase"] == "Failed":
            cluster.delete("pod", pod["metadata"]["name"])
    drive(cluster)
    assert status_of(cluster)["phase"] == "Complete"
    assert cluster.created == FIRST


def test_a_job_of_the_old_run_is_waited_for() -> None:
    cluster = with_remains(("job",), Ending())
    old = {job["metadata"]["uid"] for job in cluster.objects("job")}
    drive(cluster, until=lambda c: "still there" in str(status_of(c)))
    for job in cluster.objects("job"):
        if job["metadata"]["uid"] in old:
            cluster.delete("job", job["metadata"]["name"])
    drive(cluster)
    assert status_of(cluster)["phase"] == "Complete"
    assert cluster.created == ["digits-prepare-a1"]  # which finds published what the old run has made


def test_a_job_of_somebody_else_in_the_way_is_an_error_that_says_so() -> None:
    cluster = with_remains(("job",), Ending())
    for job in cluster.objects("job"):
        job["metadata"]["ownerReferences"] = []
    drive(cluster)
    assert status_of(cluster)["phase"] == "Failed"
    assert "somebody else" in str(status_of(cluster)["conditions"])


def test_a_job_with_our_label_and_nothing_else_does_no_harm() -> None:
    cluster = FakeCluster()
    cluster.apply(egtrun())
    stray = {"name": "stray", "namespace": "team", "labels": {"egt.dev/run": "digits"}}
    stray["creationTimestamp"] = "2026-11-21T11:00:00Z"
    cluster._store("job", {"metadata": stray, "spec": {"runPolicy": {"suspend": True}}})
    drive(cluster)
    assert cluster.created == FIRST
    assert operator_of(cluster).cache.run(KEY) is None  # a new operator knows nothing before it asks
