"""What a run needs before it starts: GPUs, memory, disk, generations and GPU-hours of each stage. Pure."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Self

from egt_operator.api import EGTRun
from egt_operator.geometry import Geometry, Known
from egt_operator.gpus import Offer, offer_of
from egt_operator.plan import Task
from egt_operator.render import gpus_of, pods_of
from egt_operator.stage_cost import Between, Rows, disk_of, generations_of, hours_of, rows_of
from egt_operator.stage_memory import Phase, Room, phases_of
from egt_pipeline.contract.graph import STAGE_TYPES, StageName
from egt_pipeline.contract.task import Manifest, Metric


@dataclass(frozen=True)
class StageEstimate:
    """What one stage needs. None: not known, or the stage has none. ``disk`` and phases are of one pod and process."""

    stage: StageName
    gpus: int
    phases: tuple[Phase, ...]
    disk: int | None
    generations: Between | None
    gpu_hours: Between | None


@dataclass(frozen=True)
class Estimate:
    """What a run needs, and what that was worked out from."""

    stages: Mapping[StageName, StageEstimate]
    offer: Offer
    known: Known
    rows: Rows

    def only(self, names: AbstractSet[StageName]) -> Self:
        """Of these stages alone."""
        return replace(self, stages={name: stage for name, stage in self.stages.items() if name in names})

    @property
    def gpu_hours(self) -> Between | None:
        """Of all stages together; None where one is not known."""
        return hours_together([one.gpu_hours for one in self.stages.values() if one.phases])


def hours_together(found: Sequence[Between | None]) -> Between | None:
    """Their sum; None where one is not known, or there are none."""
    known = [hours for hours in found if hours is not None]
    if not known or len(known) < len(found):
        return None
    return Between(sum(hours.low for hours in known), sum(hours.high for hours in known))


def estimate(run: EGTRun, known: Known, prepared: Mapping[str, Metric]) -> Estimate:
    """What the enabled stages need; ``prepared`` are the metrics of prepare, where it has run."""
    offer, rows = offer_of(run.spec.scheduling), rows_of(run.spec, prepared)
    stages = {name: _stage(run, name, known.geometry, offer, rows) for name in run.recipes}
    return Estimate(stages, offer, known, rows)


def prepared_metrics(published: Mapping[Task, Manifest]) -> Mapping[str, Metric]:
    """The metrics of prepare, if it is among what is published."""
    return next((found.metrics for task, found in published.items() if task.stage is StageName.PREPARE), {})


def on_gpu(run: EGTRun, stage: StageName, offer: Offer) -> bool:
    """Whether the stage is planned for GPUs: it takes some, and the manifest says which or how many.

    On a laptop a manifest says neither, and the figures are those of a process without a GPU.
    """
    asked = run.spec.stage(stage).resources.gpu is not None
    return STAGE_TYPES[stage].gpu and gpus_of(run, stage) > 0 and (asked or offer.named)


def _stage(run: EGTRun, name: StageName, geometry: Geometry | None, offer: Offer, rows: Rows) -> StageEstimate:
    spec, gpu = run.spec, on_gpu(run, name, offer)
    phases: list[Phase] = []
    disk = hours = None
    if geometry is not None:
        phases = phases_of(spec, name, geometry, Room(gpu, offer.memory if gpu else None))
        disk = disk_of(spec, name, geometry)
        hours = hours_of(spec, name, geometry, offer, rows) if gpu else None
    gpus = gpus_of(run, name) * pods_of(run, name) if gpu else 0
    return StageEstimate(name, gpus, tuple(phases), disk, generations_of(spec, name, rows), hours)
