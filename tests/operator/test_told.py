"""What goes wrong around a run is told where its owner looks, or where the operator's owner does."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio.client.exceptions import ApiException

from build_egtrun import KEY, cluster_with, drive, egtrun, failing, operator_of, running, stage_of, status_of
from egt_operator.cluster_errors import Refused
from egt_operator.telemetry import JsonLines, Telemetry
from fake_cluster import Body, FakeCluster
from fake_stages import Ending


class Denying(FakeCluster):
    """An API server that refuses jobs in these words, so many times."""

    status, said, left = 403, "", 0

    async def create_job(self, job: Body) -> Body:
        if self.left:
            self.left -= 1
            raise Refused(self.status, self.said)
        return await super().create_job(job)


def denying(status: int, said: str, times: int) -> Denying:
    cluster = Denying()
    cluster.apply(egtrun())
    cluster.status, cluster.said, cluster.left = status, said, times
    return cluster


def test_a_job_that_a_quota_forbids_says_so_and_is_made_when_it_may_be() -> None:
    cluster = denying(403, "exceeded quota: gpus", 30)
    drive(cluster, until=lambda c: bool(status_of(c)) and stage_of(c, "prepare").get("reason") == "Forbidden")
    assert "exceeded quota: gpus" in stage_of(cluster, "prepare")["message"]
    drive(cluster)
    assert status_of(cluster)["phase"] == "Complete"
    assert stage_of(cluster, "prepare")["retries"] == {}


def test_a_line_of_the_log_names_run_stage_and_attempt(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        drive(cluster_with(script=failing("sft", Ending(exit_code=1))))
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    (found,) = [line for line in lines if line["message"].startswith("StageStarted: sft: attempt 2")]
    assert (found["run"], found["stage"], found["attempt"]) == (KEY, "sft", 2)


def test_a_status_that_is_not_understood_stays_as_it_is() -> None:
    cluster = cluster_with(script=lambda *_: Ending(seconds=60))
    drive(cluster, until=running("sft"))
    run = cluster.objects("run")[0]
    run["status"]["stages"][2]["phase"] = "Migrating"
    cluster._store("run", run)
    before, calls = dict(status_of(cluster)), len(cluster.calls)
    controller = operator_of(cluster)

    async def looks() -> None:
        await controller.refresh()
        await controller.look(KEY)

    asyncio.run(looks())
    assert (status_of(cluster), len(cluster.calls)) == (before, calls)


def lists(heard: bool) -> Any:
    """An operator that has listed three times; a pod changed after the first, of which its watch told or did not."""
    cluster = cluster_with(script=lambda *_: Ending(seconds=600))
    drive(cluster, until=running("prepare"))
    controller = operator_of(cluster)

    async def history() -> None:
        for change in (False, True, False):
            if change:
                cluster.heard = lambda _kind, _body, _gone: None
                pod = cluster.objects("pod")[0]
                pod["status"] |= {"phase": "Failed"}
                body = cluster._store("pod", pod)
            await controller.refresh()
            if change and heard:
                controller.heard("pod", body, gone=False)

    asyncio.run(history())
    return controller


def test_the_looks_of_a_resync_are_spread_so_that_news_does_not_wait_for_them() -> None:
    cluster = FakeCluster()
    for number in range(10):
        run = egtrun()
        cluster.apply({**run, "metadata": {**run["metadata"], "name": f"run-{number}"}})
    controller = operator_of(cluster)

    async def resync() -> int:
        await controller.refresh()
        while len(controller.queue):
            controller.queue.done(await controller.queue.get())
        await controller.refresh(over_seconds=300)
        return len(controller.queue)

    assert asyncio.run(resync()) == 1


def test_every_metric_is_told_of_where_a_platform_engineer_reads() -> None:
    page = (Path(__file__).parents[2] / "operator" / "README.md").read_text()
    made = {metric.name for metric in Telemetry().registry.collect()}
    assert {name for name in made if f"`{name}" not in page} == set()


def test_an_api_server_that_has_just_started_is_waited_for() -> None:
    cluster = cluster_with()
    pages, troubles = cluster.pages, [ApiException(status=429, reason="storage is (re)initializing")]

    async def initializing(*given: Any) -> AsyncIterator[Any]:
        if troubles:
            raise troubles.pop()
        async for page in pages(*given):
            yield page

    cluster.pages = initializing  # type: ignore[method-assign]
    controller = operator_of(cluster)
    asyncio.run(controller.begin())
    assert controller.cache.every_run() == [KEY]


def test_watches_that_never_tell_what_a_list_has_shown_are_stale() -> None:
    assert lists(heard=False).stale


def test_a_watch_that_is_only_later_than_a_list_is_not_stale() -> None:
    assert not lists(heard=True).stale


def test_a_pod_with_our_label_and_no_run_makes_no_watch_stale() -> None:
    cluster = cluster_with(script=lambda *_: Ending(seconds=600))
    drive(cluster, until=running("prepare"))
    controller = operator_of(cluster)

    async def history() -> None:
        for number in range(4):
            await controller.refresh()
            pod = cluster.objects("pod")[0]
            pod["metadata"]["labels"] = {**pod["metadata"]["labels"], "egt.dev/run": "nosuch"}
            pod["status"]["phase"] = ("Running", "Pending")[number % 2]
            cluster._store("pod", pod)
            await controller.look("team/nosuch")

    asyncio.run(history())
    assert not controller.stale
