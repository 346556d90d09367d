"""What ``egt sweep plan`` says: the stages that would run, what is shared once, and the GPU-hours of that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rich.console import Console
from rich.table import Table

from egt_operator.cli_parts import failures
from egt_operator.estimate import Estimate, estimate, hours_together, prepared_metrics
from egt_operator.fit import refusals
from egt_operator.geometry import geometry_of
from egt_operator.plan import Task
from egt_operator.plan_view import between_text
from egt_operator.stage_cost import Between
from egt_operator.sweep import Census, SweepRun, census, tasks_of
from egt_operator.sweep_local import open_members
from egt_pipeline.contract.chain import chain
from egt_pipeline.contract.errors import EgtError
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.task import Manifest


@dataclass(frozen=True)
class SweepLook:
    """The runs of a sweep, the tasks of each, and what of them is published; ``trouble`` is why that is not known."""

    runs: Sequence[SweepRun]
    tasks: Sequence[Mapping[StageName, Task]]
    found: Sequence[Mapping[Task, Manifest]]
    trouble: EgtError | None = None

    @cached_property
    def published(self) -> set[Task]:
        """What no run has to make."""
        return {task for found in self.found for task in found}

    @cached_property
    def counts(self) -> list[Census]:
        """By stage."""
        return census(self.tasks, self.published)

    @cached_property
    def to_run(self) -> list[list[StageName]]:
        """Per run, the stages that would run for it: those that are not published, and that no run before it needs."""
        seen, lines = set(self.published), []
        for needed in self.tasks:
            lines.append([task.stage for task in needed.values() if task not in seen])
            seen.update(needed.values())
        return lines

    @cached_property
    def needs(self) -> list[Estimate]:
        """Per run, of the stages that would run for it."""
        together = zip(self.runs, self.found, self.to_run, strict=True)
        return [_estimate(entry, found).only(set(new)) for entry, found, new in together]

    @cached_property
    def refused(self) -> list[list[str]]:
        """Per run, what would run for it and does not fit its GPUs."""
        together = zip(self.runs, self.needs, strict=True)
        return [[str(one) for one in refusals(entry.run.spec, needs)] for entry, needs in together]

    @cached_property
    def gpu_hours(self) -> dict[StageName, Between | None]:
        """By stage, of all that would run on a GPU; None: not known."""
        hours: dict[StageName, list[Between | None]] = {}
        for needs in self.needs:
            for name, stage in needs.stages.items():
                if stage.gpus:
                    hours.setdefault(name, []).append(stage.gpu_hours)
        return {name: hours_together(all_of) for name, all_of in hours.items()}


def look(runs: Sequence[SweepRun], store: str | None) -> SweepLook:
    """What is published of the runs; as if nothing were where the store cannot be asked, as recipes say the rest."""
    try:
        chains = [member.local.chain() for member in open_members(runs, store)]
    except EgtError as error:
        links = [chain(entry.run.recipes, source_fingerprint="", prepared=None) for entry in runs]
        return SweepLook(runs, [tasks_of(one) for one in links], [{} for _ in runs], error)
    return SweepLook(runs, [tasks_of(links) for links, _ in chains], [found for _, found in chains])


def _estimate(entry: SweepRun, found: Mapping[Task, Manifest]) -> Estimate:
    return estimate(entry.run, geometry_of(entry.run.spec.model), prepared_metrics(found))


def failures_of(seen: SweepLook) -> list[str]:
    """What is known now to fail, said once; nothing where it is not known what would run."""
    if seen.trouble is not None:
        return []
    together = zip(seen.runs, seen.needs, strict=True)
    return list(dict.fromkeys(line for entry, needs in together for line in failures(entry.run, needs)))


def too_large(seen: SweepLook) -> str:
    """A line for each that does not fit, with the runs it is said of; empty if all fit."""
    runs: dict[str, list[str]] = {}
    for entry, refused in zip(seen.runs, seen.refused, strict=True):
        for said in refused:
            runs.setdefault(said, []).append(entry.name)
    return "\n".join(f"{', '.join(names)}: {said}" for said, names in runs.items())


def as_data(seen: SweepLook) -> dict[str, Any]:
    """For ``-o json``."""
    hours = {name: found and vars(found) for name, found in seen.gpu_hours.items()}
    stages = [{**vars(one), "to_run": one.to_run, "gpu_hours": hours.get(one.stage)} for one in seen.counts]
    runs = [
        {"run": entry.name, "arm": entry.arm, "seed": entry.seed, "to_run": new, "refused": refused}
        for entry, new, refused in zip(seen.runs, seen.to_run, seen.refused, strict=True)
    ]
    return {"stages": stages, "runs": runs}


def print_sweep(seen: SweepLook) -> None:
    """Two tables: by run and by stage."""
    console = Console()
    table = Table("run", "stages that would run for it")
    for entry, new in zip(seen.runs, seen.to_run, strict=True):
        table.add_row(entry.name, ", ".join(new) or "none")
    console.print(table)
    totals = Table("stage", "used by runs", "distinct", "published", "to run")
    if seen.gpu_hours:
        totals.add_column("GPU-hours", justify="right")
    for count in seen.counts:
        published = str(count.published) if seen.trouble is None else "unknown"
        hours = [between_text(seen.gpu_hours.get(count.stage))] if seen.gpu_hours else []
        totals.add_row(count.stage, str(count.used), str(count.distinct), published, str(count.to_run), *hours)
    together = hours_together(list(seen.gpu_hours.values()))
    if together is not None:
        totals.add_section()
        totals.add_row("all", "", "", "", "", between_text(together))
    console.print(totals)
    if seen.trouble is not None:
        console.print("· as if nothing were published, as the store or the sources cannot be asked", highlight=False)
