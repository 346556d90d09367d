"""What should exist: a pure function from the chain of a run and what was observed to a plan.

Three shells drive it: the operator, ``egt local`` and tests made of random histories. It knows no clock and no network.
A task once started stays wanted as long as its digest does, even when the artifact of a stage before it disappears:
a running job must never be deleted because somebody cleaned up upstream.
"""

from collections.abc import Container, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from egt_pipeline.contract.chain import Link
from egt_pipeline.contract.graph import STAGES, StageName

Action = Literal["run", "reuse", "disabled", "unknown"]
UNKNOWN = "unknown until prepare has read the data"


class Phase(StrEnum):
    """How far a stage of a run is."""

    WAITING = "Waiting"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    DISABLED = "Disabled"


@dataclass(frozen=True)
class Task:
    """A unit of work: its text form names jobs and places in the store."""

    stage: StageName
    digest: str

    def __str__(self) -> str:
        return f"{self.stage}/{self.digest}"


@dataclass(frozen=True)
class Observed:
    """What was seen: artifacts that are published, and tasks that were started (running or failed)."""

    published: AbstractSet[Task]
    started: Mapping[Task, Phase]


@dataclass(frozen=True)
class Plan:
    """``tasks`` should exist, everything else should not; ``phases`` is what was seen of each stage."""

    tasks: frozenset[Task]
    phases: Mapping[StageName, Phase]

    @property
    def complete(self) -> bool:
        """True when every enabled stage is published."""
        return all(phase in (Phase.SUCCEEDED, Phase.DISABLED) for phase in self.phases.values())


def plan(links: Mapping[StageName, Link], observed: Observed) -> Plan:
    """The tasks that should exist now, and the phase of every stage."""
    phases: dict[StageName, Phase] = {stage.name: Phase.DISABLED for stage in STAGES}
    tasks: set[Task] = set()
    for name, link in links.items():
        if link.digest is None or link.inputs is None:
            # What runs goes on while prepare is made again: most likely its digest is still the right one.
            under_way = {task: phase for task, phase in observed.started.items() if task.stage is name}
            phases[name] = next(iter(under_way.values()), Phase.WAITING)
            tasks.update(under_way)
            continue
        task = Task(name, link.digest)
        if task in observed.published:
            phases[name] = Phase.SUCCEEDED
            continue
        phases[name] = observed.started.get(task, Phase.WAITING)
        ready = all(phases[ref.stage] is Phase.SUCCEEDED for ref in link.inputs.values())
        if ready or task in observed.started:
            tasks.add(task)
    return Plan(frozenset(tasks), phases)


@dataclass(frozen=True)
class Forecast:
    """What ``egt plan`` says of one stage."""

    name: StageName
    action: Action
    digest: str | None
    reason: str


@dataclass(frozen=True)
class Past:
    """What a stage was in the last run of the same name."""

    digest: str
    recipe: Mapping[str, Any]
    inputs: Mapping[str, str]


def forecast(
    links: Mapping[StageName, Link], published: AbstractSet[Task], past: Mapping[StageName, Past]
) -> list[Forecast]:
    """Per stage: what a run would do now, and why. A stage whose digest is unknown counts as run."""
    lines: list[Forecast] = []
    for stage in STAGES:
        link = links.get(stage.name)
        if link is None:
            lines.append(Forecast(stage.name, "disabled", None, "enabled: false"))
        elif link.digest is None:
            lines.append(Forecast(stage.name, "run", None, UNKNOWN))
        elif Task(stage.name, link.digest) in published:
            lines.append(Forecast(stage.name, "reuse", link.digest, "published already"))
        else:
            lines.append(Forecast(stage.name, "run", link.digest, _why(link, past.get(stage.name))))
    return lines


def forecast_without_store(enabled: Container[StageName], trouble: str) -> list[Forecast]:
    """Per stage: nothing can be said of it; why stands at the first."""
    lines = []
    for stage in STAGES:
        reason = trouble if stage.name is StageName.PREPARE else "what is published is not known"
        found = Forecast(stage.name, "unknown", None, reason)
        lines.append(found if stage.name in enabled else Forecast(stage.name, "disabled", None, "enabled: false"))
    return lines


def _why(link: Link, past: Past | None) -> str:
    if past is None:
        return "never ran"
    if past.digest == link.digest:
        return "not finished yet"
    recipe = link.recipe.model_dump(mode="json", by_alias=True)
    changes = _changes(past.recipe, recipe, "")
    inputs = {name: ref.identity for name, ref in (link.inputs or {}).items()}
    if link.source_fingerprint is not None:
        inputs["sources"] = link.source_fingerprint
    changes += [f"input {name} changed" for name in inputs if inputs[name] != past.inputs.get(name)]
    return "; ".join(changes) or "the stage's code has a new revision"


def _changes(before: Any, after: Any, path: str) -> list[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = sorted({*before, *after})
        return [
            line for key in keys for line in _changes(before.get(key), after.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if before == after else [f"{path}: {before} -> {after}"]
