"""What is known of a run is never older than what was known before."""

from datetime import UTC, datetime
from typing import Any

from egt_operator.cache import Cache
from egt_operator.children import Job


def run(version: int, uid: str = "u", name: str = "digits") -> dict[str, Any]:
    metadata = {"name": name, "namespace": "team", "uid": uid, "resourceVersion": str(version)}
    return {"apiVersion": "egt.dev/v1alpha1", "kind": "EGTRun", "metadata": metadata, "spec": {}}


def pod(version: int, name: str = "p", run_name: str | None = "digits") -> dict[str, Any]:
    labels = {"egt.dev/run": run_name} if run_name else {}
    metadata = {"name": name, "namespace": "team", "uid": name, "resourceVersion": str(version), "labels": labels}
    return {"metadata": {**metadata, "creationTimestamp": "2026-11-21T12:00:00Z"}, "status": {"phase": "Running"}}


def test_a_late_event_does_not_replace_something_newer() -> None:
    cache = Cache()
    cache.keep("run", run(5))
    assert cache.keep("run", run(4)) is None
    found = cache.run("team/digits")
    assert found is not None
    assert found.version == "5"


def test_a_change_that_nothing_decides_by_is_no_news() -> None:
    cache = Cache()
    assert cache.keep("pod", pod(1)) == "team/digits"
    same = pod(2)
    same["status"]["podIP"] = "10.0.0.7"
    assert cache.keep("pod", same) is None
    ended = pod(3)
    ended["status"]["phase"] = "Succeeded"
    assert cache.keep("pod", ended) == "team/digits"
    assert cache.keep("pod", same) is None


def test_what_belongs_to_no_run_is_not_kept() -> None:
    assert Cache().keep("pod", pod(1, run_name=None)) is None


def test_a_list_finds_what_was_missed_and_what_is_gone() -> None:
    cache = Cache()
    cache.keep("pod", pod(1, "stays"))
    cache.keep("pod", pod(2, "gone"))
    assert [cache.keep("pod", listed) for listed in (pod(1, "stays"), pod(7, "new"))] == [None, "team/digits"]
    assert cache.drop_unlisted("pod", {"stays", "new"}, version=9) == ["team/digits"]
    assert sorted(found.name for found in cache.pods("team/digits")) == ["new", "stays"]


def test_what_a_list_of_a_job_s_pods_does_not_hold_is_gone_for_good() -> None:
    job = Job(name="digits-sft-a1", uid="j", owner_uid="r", wanted=datetime(2026, 11, 21, tzinfo=UTC))
    cache = Cache()
    of_job = {"ownerReferences": [{"uid": "j", "controller": True, "kind": "PyTorchJob", "name": job.name}]}
    bodies = {name: pod(5, name) for name in ("stays", "gone")}
    for body in bodies.values():
        body["metadata"] |= of_job
        cache.keep("pod", body)
    cache.keep("pod", pod(5, "of another job"))
    cache.keep_pods_of("team/digits", job, [bodies["stays"]])
    assert (
        cache.keep("pod", {**bodies["gone"], "metadata": {**bodies["gone"]["metadata"], "resourceVersion": "6"}})
        is None
    )
    assert [found.name for found in cache.pods_of("team/digits", job)] == ["stays"]
    assert sorted(found.name for found in cache.pods("team/digits")) == ["of another job", "stays"]


def test_a_list_that_is_older_than_an_event_does_not_undo_it() -> None:
    cache = Cache()
    cache.keep("pod", pod(12, "young"))
    assert cache.drop_unlisted("pod", set(), version=9) == []
    assert [found.name for found in cache.pods("team/digits")] == ["young"]


def test_a_run_of_the_same_name_made_anew_is_the_one_that_counts() -> None:
    cache = Cache()
    cache.keep("run", run(5, uid="old"))
    cache.keep("run", run(8, uid="new"))
    cache.keep("run", run(7, uid="old"), gone=True)
    found = cache.run("team/digits")
    assert found is not None
    assert found.owner.uid == "new"


def test_what_went_while_a_list_was_under_way_is_not_brought_back_by_it() -> None:
    cache = Cache()
    cache.keep("pod", pod(5))
    cache.keep("pod", pod(8), gone=True)
    assert cache.keep("pod", pod(5)) is None
    assert cache.keep("pod", pod(7)) is None
    assert cache.pods("team/digits") == []
