"""An EGTRun as the API server holds it, and an operator that reconciles it against a fake cluster."""

import asyncio
from collections.abc import Callable
from typing import Any

from egt_operator.api import EGTRun
from egt_operator.api_status import EGTRunStatus, StageStatus
from egt_operator.controller import Controller
from egt_operator.plan import Phase
from egt_operator.settings import Settings
from egt_operator.telemetry import Telemetry
from egt_pipeline.contract.graph import STAGES, StageName
from fake_cluster import FakeCluster
from fake_stages import Ending
from trouble import Crash

SETTINGS = Settings(image="registry.example/egt@sha256:0", backoff_seconds=10, progress_seconds=1)
KEY = "team/digits"


def egtrun(**spec: Any) -> dict[str, Any]:
    """A run named digits in namespace team; ``spec`` is laid over what it needs."""
    base: dict[str, Any] = {
        "model": {"source": "/data/model"},
        "data": {
            "sft": {"source": "/data/sft.jsonl"},
            "rl": {"source": "/data/rl.jsonl"},
            "evaluate": [{"name": "heldout", "source": "/data/heldout.jsonl"}],
        },
        "store": {"uri": "s3://bucket/team", "credentialsSecret": "store"},
        "distill": {"teacher": {"model": "teacher", "baseUrl": "http://teacher/v1"}},
        "evaluate": {"enabled": True},
        **spec,
    }
    named = {"apiVersion": "egt.dev/v1alpha1", "kind": "EGTRun", "metadata": {"name": "digits", "namespace": "team"}}
    filled = EGTRun.model_validate({**named, "spec": base}).model_dump(mode="json", by_alias=True, exclude_none=True)
    return {**named, "spec": filled["spec"]}


def prepared_status() -> EGTRunStatus:
    """Of a run whose prepare has succeeded."""
    content = dict.fromkeys(("model", "sft", "rl", "rl-unlabelled", "evaluate"), "c")
    stages = tuple(
        StageStatus(
            name=s.name, phase=Phase.SUCCEEDED if s.name == "prepare" else Phase.WAITING, digest="d", content=content
        )
        for s in STAGES
    )
    return EGTRunStatus(stages=stages)


def stage_at_work(stage: StageName) -> StageStatus:
    """Its second attempt runs."""
    return StageStatus(name=stage, phase=Phase.RUNNING, attempt=2, digest="d", job=f"digits-{stage}-a2")


def operator_of(cluster: FakeCluster) -> Controller:
    """A new operator process: it knows nothing but what the cluster tells it."""
    controller = Controller(cluster, SETTINGS, Telemetry(), cluster.clock, cluster.seconds)  # type: ignore[arg-type]
    cluster.heard = lambda kind, body, gone: controller.heard(kind, body, gone=gone)
    return controller


def status_of(cluster: FakeCluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster.objects("run")[0].get("status") or {}
    return found


def stage_of(cluster: FakeCluster, name: str) -> dict[str, Any]:
    return next(stage for stage in status_of(cluster)["stages"] if stage["name"] == name)


def cluster_with(run: dict[str, Any] | None = None, **settings: Any) -> FakeCluster:
    """A cluster in memory with that run, by default one that has nothing special."""
    cluster = FakeCluster(**settings)
    cluster.apply(run or egtrun())
    return cluster


def running(stage: str) -> Callable[[FakeCluster], bool]:
    """True of a cluster once the pods of the stage run."""
    return lambda cluster: any(
        s["name"] == stage and s["phase"] == "Running" and s.get("runningSince")
        for s in status_of(cluster).get("stages", ())
    )


def drive(
    cluster: FakeCluster,
    *,
    until: Callable[[FakeCluster], bool] = lambda cluster: status_of(cluster).get("phase") in ("Complete", "Failed"),
    steps: int = 400,
    seconds: float = 5.0,
) -> None:
    """Let time pass and the operator look, until ``until``; an operator that crashes is started anew."""

    async def history() -> None:
        controller = operator_of(cluster)
        await controller.refresh()
        for _ in range(steps):
            if until(cluster):
                return
            try:
                for _ in range(4):  # a conflict or a created job wants another look at once
                    await controller.look(KEY)
                await controller.announcer.post_waiting()
                await controller.logs.read_waiting()
            except Crash:
                controller = operator_of(cluster)
                await controller.refresh()
            cluster.advance(seconds)
        raise AssertionError(f"not reached in {steps} steps: {status_of(cluster)}")

    asyncio.run(history())


def failing(stage: str, ending: Ending, attempts: int = 1) -> Any:
    return lambda name, attempt: ending if name == stage and attempt <= attempts else Ending()


def condition(cluster: FakeCluster, kind: str) -> dict[str, Any]:
    return next(found for found in status_of(cluster)["conditions"] if found["type"] == kind)
