"""What the cluster in memory answers, a real API server answers too: one suite for both."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import pytest

from build_egtrun import SETTINGS, egtrun, prepared_status, stage_at_work
from cluster import Cluster as WholeCluster
from cluster import running_cluster, simulated
from control_plane import wait_for
from egt_operator.api import EGTRun
from egt_operator.children import parse_job
from egt_operator.cluster import Cluster
from egt_operator.cluster_errors import Conflict, Refused
from egt_operator.events import Happened, render_event
from egt_operator.outcome import links_of
from egt_operator.rate import Bucket
from egt_operator.render import Owner, job_name, render
from egt_operator.task import task_of
from egt_pipeline.contract.graph import StageName
from fake_cluster import FakeCluster
from node_agent import NodeShape
from simulated_stages import SimulatedStages
from team_runs import client_of, make_team

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parents[2]
Act = Callable[[Any], Awaitable[Any]]


class Place(Protocol):
    """A cluster with one run, ``team/digits``."""

    def do(self, act: Act) -> Any:
        """What the call comes to."""


class Fake:
    def __init__(self) -> None:
        self.cluster = FakeCluster()
        self.cluster.apply(egtrun())

    def do(self, act: Act) -> Any:
        return asyncio.run(act(self.cluster))  # type: ignore[arg-type]


class Real:
    def __init__(self, cluster: WholeCluster) -> None:
        self.cluster = cluster
        cluster.kubectl("delete", "egt,pytorchjobs", "--all", "-n", "team")
        self.do(lambda api: api._call("POST", "/apis/egt.dev/v1alpha1/namespaces/team/egtruns", egtrun()))

    def do(self, act: Act) -> Any:
        async def inside() -> Any:
            async with client_of(self.cluster) as client:
                return await act(Cluster(client, Bucket(1000, 1000)))

        return asyncio.run(inside())


@pytest.fixture(scope="module")
def real_cluster() -> Iterator[WholeCluster]:
    with running_cluster(NodeShape(), simulated(SimulatedStages(seconds=3600))) as running:
        make_team(running)
        yield running


@pytest.fixture(params=["fake", "real"])
def place(request: pytest.FixtureRequest) -> Place:
    return Fake() if request.param == "fake" else Real(request.getfixturevalue("real_cluster"))


def run_of(place: Place) -> dict[str, Any]:
    found: dict[str, Any] = place.do(lambda api: api.run("team", "digits"))
    return found


def job_of(place: Place) -> dict[str, Any]:
    run = EGTRun.model_validate(egtrun())
    owner = Owner("digits", "team", run_of(place)["metadata"]["uid"])
    task = task_of(run, stage_at_work(StageName.SFT), links_of(run, prepared_status()), SETTINGS)
    return render(run, owner, task, SETTINGS)


def test_a_status_is_written_on_the_version_that_was_read_and_on_no_other(place: Place) -> None:
    version = run_of(place)["metadata"]["resourceVersion"]
    written = place.do(lambda api: api.write_status("team", "digits", version, {"phase": "Running", "stages": []}))
    assert written["status"]["phase"] == "Running"
    assert written["metadata"]["resourceVersion"] != version
    with pytest.raises(Conflict):
        place.do(lambda api: api.write_status("team", "digits", version, {"phase": "Failed"}))
    assert run_of(place)["status"]["phase"] == "Running"


def test_null_in_a_status_removes_a_field_and_what_is_not_named_stays(place: Place) -> None:
    for patch in ({"phase": "Running", "stage": "sft", "progress": "1/7"}, {"phase": "Running", "progress": None}):
        version = run_of(place)["metadata"]["resourceVersion"]
        place.do(lambda api, patch=patch, version=version: api.write_status("team", "digits", version, patch))
    status = run_of(place)["status"]
    assert (status["stage"], status.get("progress")) == ("sft", None)


def test_a_job_is_made_once(place: Place) -> None:
    job = job_of(place)
    made = place.do(lambda api: api.create_job(job))
    assert made["metadata"]["uid"]
    with pytest.raises(Conflict):
        place.do(lambda api: api.create_job(job))


def test_a_job_that_makes_no_sense_is_refused(place: Place) -> None:
    job = job_of(place)
    with pytest.raises(Refused):
        place.do(lambda api: api.create_job({**job, "kind": "Nonsense"}))


def test_only_the_very_job_is_deleted_and_twice_is_once(place: Place) -> None:
    job = job_of(place)
    made = place.do(lambda api: api.create_job(job))
    name, uid = made["metadata"]["name"], made["metadata"]["uid"]
    place.do(lambda api: api.delete_job("team", name, "another"))
    assert place.do(lambda api: api.job("team", name)) is not None
    place.do(lambda api: api.delete_job("team", name, uid))
    place.do(lambda api: api.delete_job("team", name, uid))
    assert place.do(lambda api: api.job("team", name)) is None


def test_only_the_very_job_is_nudged(place: Place) -> None:
    job = job_of(place)
    made = place.do(lambda api: api.create_job(job))
    name, uid = made["metadata"]["name"], made["metadata"]["uid"]
    now = datetime(2026, 11, 21, tzinfo=UTC)
    for other in ((name, "another"), ("nosuch", uid)):
        place.do(lambda api, other=other: api.nudge_job("team", *other, now))
    assert parse_job(place.do(lambda api: api.job("team", name))).nudged is None
    place.do(lambda api: api.nudge_job("team", name, uid, now))
    assert parse_job(place.do(lambda api: api.job("team", name))).nudged == now


def test_what_is_not_there_is_none(place: Place) -> None:
    assert place.do(lambda api: api.run("team", "nosuch")) is None
    assert place.do(lambda api: api.job("team", "nosuch")) is None
    assert place.do(lambda api: api.pods("team", "nosuch")) == []
    assert place.do(lambda api: api.log_end("team", "nosuch")) == ""
    assert not place.do(lambda api: api.has_nodes({"pool": "nosuch"}))
    assert not place.do(lambda api: api.has_queue("team", "nosuch"))


def test_an_event_that_is_there_is_no_error(place: Place) -> None:
    owner = Owner("digits", "team", run_of(place)["metadata"]["uid"])
    event = render_event(Happened("Normal", "StageStarted", "sft", "mark"), owner, FakeCluster().now)
    for _ in range(2):
        place.do(lambda api: api.create_event(event))


def test_a_list_has_whole_objects_and_the_version_that_it_is_of(place: Place) -> None:
    async def pages(api: Any) -> list[tuple[list[Any], int]]:
        return [page async for page in api.pages("run", ())]

    ((found, version),) = place.do(pages)
    assert [run["metadata"]["name"] for run in found] == ["digits"]
    assert found[0]["kind"] == "EGTRun"
    assert version >= int(found[0]["metadata"]["resourceVersion"])


def test_a_job_goes_with_its_run(place: Place) -> None:
    job = job_of(place)
    made = place.do(lambda api: api.create_job(job))
    uid = run_of(place)["metadata"]["uid"]
    place.do(lambda api: api.remove_run("team", "digits", uid))
    name = job_name("digits", StageName.SFT, 2)
    assert made["metadata"]["name"] == name
    wait_for("the job is gone", lambda: place.do(lambda api: api.job("team", name)) is None)
