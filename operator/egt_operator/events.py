"""What is worth an Event: told once, under a name that a repetition would clash with. Pure."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from egt_operator.api import GROUP, KIND, VERSION
from egt_operator.api_status import TERMINAL, EGTRunStatus, StageStatus
from egt_operator.observe import UNMADE
from egt_operator.plan import Phase
from egt_operator.render import Owner
from egt_pipeline.contract.errors import excerpt
from egt_pipeline.contract.graph import StageName

_NOTE_CHARACTERS = 1000  # Kubernetes takes 1,024


@dataclass(frozen=True)
class Happened:
    """One event: ``mark`` tells it apart from every other of the run."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str
    mark: str
    stage: StageName | None = None
    attempt: int | None = None


def happened(before: EGTRunStatus | None, after: EGTRunStatus) -> Iterator[Happened]:
    """What changed between two statuses of a run that people want to know."""
    old = {stage.name: stage for stage in before.stages} if before is not None else {}
    for stage in after.stages:
        for found in _of_stage(old.get(stage.name), stage):
            yield replace(found, stage=stage.name, attempt=stage.attempt)
    if before is not None and before.phase in TERMINAL and before.observed_generation != after.observed_generation:
        said = "this run has ended, and no change of it but that of ttl has an effect; delete it and apply it anew"
        yield Happened("Warning", "HasEnded", said, f"ended-{after.observed_generation}")
    yield from _of_acceptance(before, after)
    if before is None or before.phase != after.phase:
        ended = next((c for c in after.conditions if c.type == after.phase), None)
        if after.phase == "Complete" and ended:
            yield Happened("Normal", "Complete", ended.message, "complete")
        if after.phase == "Failed" and ended:
            yield Happened("Warning", "Failed", ended.message, "failed")
        if after.phase == "Suspended" and ended:
            yield Happened("Normal", "Suspended", ended.message, f"suspended-{ended.last_transition_time}")


def _of_acceptance(before: EGTRunStatus | None, after: EGTRunStatus) -> Iterator[Happened]:
    """Why a run is not carried out as it is written: an unknown queue or node pool, a field of another version."""
    was, now = (next((c for c in s.conditions if c.type == "Accepted"), None) if s else None for s in (before, after))
    if (
        now is None
        or now.status == "True"
        or (was is not None and (was.status, was.reason) == (now.status, now.reason))
    ):
        return
    yield Happened("Warning", now.reason, now.message, f"{now.reason}-{now.last_transition_time}")


def _of_stage(before: StageStatus | None, after: StageStatus) -> Iterator[Happened]:
    mark = f"{after.name}-{after.attempt}"
    was = before.phase if before is not None else Phase.WAITING
    if after.phase is Phase.RUNNING and (before is None or before.attempt != after.attempt):
        yield Happened(
            "Normal", "StageStarted", f"{after.name}: attempt {after.attempt} as {after.job}", f"{mark}-start"
        )
    if after.phase is Phase.SUCCEEDED and was is not Phase.SUCCEEDED:
        if after.attempt:
            yield Happened("Normal", "StageSucceeded", f"{after.name}: published {after.digest}", f"{mark}-end")
        else:
            yield Happened(
                "Normal", "StageReused", f"{after.name}: {after.digest} is published already", f"{mark}-reuse"
            )
    if after.reason == UNMADE and (before is None or before.reason != UNMADE):
        said = f"{after.name}: attempt {after.attempt}: {after.message}"
        yield Happened("Warning", UNMADE, said, f"{mark}-{UNMADE}")
    failure = after.last_failure
    if failure is not None and (before is None or before.last_failure != failure):
        said = f"{after.name}: attempt {failure.attempt}: {failure.kind}: {failure.message}"
        yield Happened("Warning", f"Stage{failure.kind}", said, f"{after.name}-{failure.attempt}-failure")


def render_event(found: Happened, owner: Owner, now: datetime) -> dict[str, Any]:
    """The Event object."""
    name = hashlib.sha256(f"{owner.uid}/{found.mark}".encode()).hexdigest()[:16]
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{owner.name}.{name}", "namespace": owner.namespace},
        "type": found.kind,
        "reason": found.reason,
        "message": excerpt(found.message, _NOTE_CHARACTERS),
        "involvedObject": {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": KIND,
            "name": owner.name,
            "namespace": owner.namespace,
            "uid": owner.uid,
        },
        "source": {"component": "egt-operator"},
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }
