"""What the operator asks of the API server, and what its role allows: the same, no more and no less."""

import asyncio
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from kubernetes.aio.client.exceptions import ApiException

from egt_operator.cache import KINDS, Kind
from egt_operator.cluster import Cluster
from egt_operator.cluster_errors import Conflict, NotServed, Refused
from egt_operator.handlers import WATCHED
from egt_operator.rate import Bucket

ROOT = Path(__file__).parents[2]
Verb = tuple[str, str, str]


class Recorder:
    """Stands where the client is: remembers requests, answers each as told."""

    def __init__(self, status: int = 200, body: Any = None) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self._status = status
        self._body = body or {"apiVersion": "v1", "kind": "XList", "metadata": {"resourceVersion": "7", "uid": "u"},
                              "items": [], "spec": {}}  # fmt: skip

    async def param_serialize(self, method: str, path: str, body: Any = None, **_: Any) -> tuple[str, str]:
        self.requests.append((method, path, body))
        return method, path

    async def call_api(self, *_: Any, **__: Any) -> Any:
        async def read() -> bytes:
            return json.dumps(self._body).encode()

        return SimpleNamespace(status=self._status, reason="reason", read=read)


def cluster_of(recorder: Recorder) -> Cluster:
    return Cluster(recorder, Bucket(1000, 1000))  # type: ignore[arg-type]


async def pages(cluster: Cluster, kind: Kind) -> list[tuple[list[Any], int]]:
    return [page async for page in cluster.pages(kind, ())]


async def every_call(cluster: Cluster) -> None:
    job = {"metadata": {"namespace": "team", "name": "job"}, "spec": {}}
    for kind in KINDS:
        await pages(cluster, kind)
    await cluster.run("team", "run")
    await cluster.write_status("team", "run", "1", {})
    await cluster.remove_run("team", "run", "uid")
    await cluster.job("team", "job")
    await cluster.pods("team", "job")
    await cluster.create_job(job)
    await cluster.delete_job("team", "job", "uid")
    await cluster.nudge_job("team", "job", "uid", datetime(2026, 11, 21, tzinfo=UTC))
    await cluster.unmade_pods("team")
    await cluster.log_end("team", "pod")
    await cluster.has_queue("team", "queue")
    await cluster.has_nodes({"pool": "h200"})
    await cluster.create_event(job)


def verb_of(method: str, path: str) -> Verb:
    found = re.fullmatch(
        r"/(?:api|apis/([^/]+))/v[^/]+(?:/namespaces/[^/]+)?/([a-z]+)(?:/([^/]+))?(?:/([a-z]+))?", path
    )
    assert found, path
    group, resource, name, part = found.groups()
    reading = "get" if name else "list"
    verb = {"GET": reading, "POST": "create", "PATCH": "patch", "DELETE": "delete"}[method]
    return group or "", f"{resource}/{part}" if part else resource, verb


def test_every_call_and_watch_is_allowed_and_nothing_else_is() -> None:
    recorder = Recorder()
    asyncio.run(every_call(cluster_of(recorder)))
    asked = {verb_of(method, path) for method, path, _ in recorder.requests}
    asked |= {(group, resource, verb) for group, _, resource in WATCHED for verb in ("list", "watch")}
    # Checked by an admission plugin where an owner reference blocks deletion; nobody calls it.
    asked.add(("egt.dev", "egtruns/finalizers", "update"))
    rules = yaml.safe_load((ROOT / "charts/egt-operator/files/rules.yaml").read_text())
    every = [*rules["rules"], *rules["nodes"]]
    allowed = {(r["apiGroups"][0], r["resources"][0], verb) for r in every for verb in r["verbs"]}
    assert asked == allowed


def test_the_operator_never_reads_a_secret() -> None:
    rules = (ROOT / "charts/egt-operator/files/rules.yaml").read_text()
    assert "secrets" not in rules


@pytest.mark.parametrize(("status", "error"), [(409, Conflict), (422, Refused), (403, Refused), (500, ApiException)])
def test_an_answer_becomes_what_it_means(status: int, error: type[Exception]) -> None:
    cluster = cluster_of(Recorder(status, {"message": "why not"}))
    with pytest.raises(error, match="why not"):
        asyncio.run(cluster.create_job({"metadata": {"namespace": "team", "name": "job"}, "spec": {}}))


def test_what_a_webhook_denies_is_refused_for_good_and_a_missing_permission_is_not() -> None:
    for said, status in (('admission webhook "v" denied the request: no', 422), ("may not create pytorchjobs", 403)):
        with pytest.raises(Refused) as refused:
            asyncio.run(cluster_of(Recorder(403, {"message": said})).create_job({"metadata": {"namespace": "t"}}))
        assert refused.value.status == status


def test_a_kind_that_the_cluster_does_not_know_is_named_with_its_cure() -> None:
    with pytest.raises(NotServed, match=r"pytorchjobs\.kubeflow\.org: install training-operator"):
        asyncio.run(pages(cluster_of(Recorder(404)), "job"))


def test_a_job_that_loses_a_field_to_an_older_definition_is_withdrawn() -> None:
    recorder = Recorder()
    job = {"metadata": {"namespace": "team", "name": "job"}, "spec": {"nprocPerNode": "1"}}
    with pytest.raises(Refused, match=r"no spec\.nprocPerNode: install training-operator"):
        asyncio.run(cluster_of(recorder).create_job(job))
    assert [method for method, _, _ in recorder.requests] == ["POST", "DELETE"]


def test_an_operator_that_may_not_list_nodes_takes_every_pool_for_there() -> None:
    assert asyncio.run(cluster_of(Recorder(403)).has_nodes({"pool": "h200"}))
    assert not asyncio.run(cluster_of(Recorder(200)).has_nodes({"pool": "h200"}))


def test_what_is_not_there_is_none_and_deleting_it_is_nothing() -> None:
    cluster = cluster_of(Recorder(404, {"message": "not found"}))
    assert asyncio.run(cluster.job("team", "job")) is None
    asyncio.run(cluster.delete_job("team", "job", "uid"))


def test_requests_beyond_the_burst_wait_their_turn() -> None:
    async def three() -> float:
        bucket = Bucket(rate=20, burst=1)
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(bucket.take() for _ in range(3)))
        return asyncio.get_running_loop().time() - began

    assert asyncio.run(three()) == pytest.approx(0.1, abs=0.04)
