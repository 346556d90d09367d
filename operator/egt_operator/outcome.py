"""What follows for a run when a stage has succeeded, or an output is gone. Pure."""

from collections.abc import Mapping
from datetime import datetime

from egt_operator.api import EGTRun
from egt_operator.api_status import EGTRunStatus, GpuHours, StageStatus
from egt_operator.plan import Phase
from egt_operator.render import gpus_of, pods_of
from egt_operator.status import with_stage
from egt_pipeline.contract.chain import Link, chain
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.task import Summary


def succeeded(run: EGTRun, status: EGTRunStatus, stage: StageStatus, summary: Summary, now: datetime) -> EGTRunStatus:
    """The stage's output is published; what prepare found published already counts as well."""
    metrics = {key: float(value) for key, value in summary.metrics.items() if isinstance(value, int | float)}
    own = {key: value for key, value in metrics.items() if not key.startswith("published.")}
    done = stage.model_copy(
        update={
            "phase": Phase.SUCCEEDED, "digest": summary.digest, "content": dict(summary.content), "metrics": own,
            "finished": now, "reason": None, "message": None,
        }
    )  # fmt: skip
    status = with_stage(status, done)
    if stage.name is not StageName.PREPARE:
        return status
    links = links_of(run, status)
    for other in status.stages:
        if metrics.get(f"published.{other.name}") and other.phase is Phase.WAITING and links[other.name].digest:
            status = with_stage(status, _reused(run, other, links[other.name], metrics, now))
    return status


def _reused(run: EGTRun, stage: StageStatus, link: Link, metrics: Mapping[str, float], now: datetime) -> StageStatus:
    """A stage whose output an earlier run has published."""
    prefix = f"published.{stage.name}."
    found = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
    gpus = gpus_of(run, stage.name) * pods_of(run, stage.name)
    hours = GpuHours(saved=found.pop("seconds", 0.0) * gpus / 3600)
    if stage.attempt and stage.gpu_hours:
        hours = stage.gpu_hours  # it was this run that spent them
    return stage.model_copy(
        update={"phase": Phase.SUCCEEDED, "digest": link.digest, "metrics": found, "finished": now, "gpu_hours": hours}
    )


def made_again(status: EGTRunStatus) -> EGTRunStatus:
    """An input was missing: prepare says anew what is published, and what is not runs again."""
    for stage in status.stages:
        if stage.phase is Phase.SUCCEEDED:
            waiting = {"phase": Phase.WAITING, "started": None, "finished": None, "queue_seconds": None}
            status = with_stage(status, stage.model_copy(update=waiting))
    return status


def links_of(run: EGTRun, status: EGTRunStatus) -> Mapping[StageName, Link]:
    """The chain of the run, as far as prepare has said what it read."""
    prepare = next(stage for stage in status.stages if stage.name is StageName.PREPARE)
    known = prepare.digest if prepare.phase is Phase.SUCCEEDED else None
    content = prepare.content if known else None
    return chain(run.recipes, source_fingerprint=None, prepared=content, prepared_digest=known)
