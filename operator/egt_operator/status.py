"""What a run's status says as a whole, for people and for ``kubectl wait``. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from pydantic import ValidationError

from egt_operator.api import EGTRun
from egt_operator.api_status import MESSAGE_CHARACTERS, Condition, EGTRunStatus, StageStatus
from egt_operator.known_run import KnownRun
from egt_operator.manifest_file import say
from egt_operator.plan import Phase
from egt_pipeline.contract.errors import excerpt

Refusals = Sequence[tuple[str, str]]
_DONE = (Phase.SUCCEEDED, Phase.DISABLED)
# What says most about the final model; the first that was measured is shown.
_ACCURACIES = ("final.accuracy", "sft.accuracy")


@dataclass(frozen=True)
class Verdict:
    """A run in one word, and why: as one word for programs, and for people."""

    phase: Literal["Pending", "Running", "Suspended", "Complete", "Failed"]
    reason: str
    message: str


def with_stage(status: EGTRunStatus, stage: StageStatus) -> EGTRunStatus:
    """The status with ``stage`` in the place of the stage of that name."""
    return status.model_copy(
        update={"stages": tuple(stage if old.name is stage.name else old for old in status.stages)}
    )


def said(run: EGTRun, status: EGTRunStatus, *, now: datetime, generation: int, refusals: Refusals) -> EGTRunStatus:
    """The status with phase, conditions and printer columns that follow from its stages."""
    verdict = _verdict(run, status, refusals)
    at_work = next((s for s in status.stages if s.phase in (Phase.RUNNING, Phase.FAILED)), None)
    last = next((s for s in reversed(status.stages) if s.phase is Phase.SUCCEEDED), None)
    shown = at_work or next((s for s in status.stages if s.phase is Phase.WAITING and s.attempt), None) or last
    return status.model_copy(
        update={
            "observed_generation": generation,
            "phase": verdict.phase,
            "stage": shown.name if shown else None,
            "progress": _progress(status, at_work),
            "accuracy": _accuracy(status),
            "conditions": _conditions(status.conditions, verdict, refusals, now=now, generation=generation),
        }
    )


def seen_at(status: EGTRunStatus, generation: int) -> EGTRunStatus:
    """The same status, said of this generation of the spec."""
    if status.observed_generation == generation:
        return status
    conditions = tuple(one.model_copy(update={"observed_generation": generation}) for one in status.conditions)
    return status.model_copy(update={"observed_generation": generation, "conditions": conditions})


def invalid(known: KnownRun, error: ValidationError, now: datetime) -> tuple[EGTRunStatus, EGTRunStatus]:
    """The status before and after of a run whose spec this operator cannot read; nothing is started for it.

    Raises ValidationError when it cannot read the status either, which is then somebody else's memory.
    """
    before = known.status() or EGTRunStatus()
    refusals = [("Invalid", say(error.errors(include_url=False)[0], EGTRun))]
    verdict = Verdict("Pending", *refusals[0])
    found = _conditions(before.conditions, verdict, refusals, now=now, generation=known.generation)
    update = {"observed_generation": known.generation, "phase": "Pending", "conditions": found}
    return before, before.model_copy(update=update)


def as_merge_patch(status: EGTRunStatus) -> dict[str, Any]:
    """The status as a merge patch: null removes a field; in lists, which are replaced whole, it may not stand."""
    known = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {field.alias or name: known.get(field.alias or name) for name, field in EGTRunStatus.model_fields.items()}


def _verdict(run: EGTRun, status: EGTRunStatus, refusals: Refusals) -> Verdict:
    broken = next((s for s in status.stages if s.phase is Phase.FAILED), None)
    if broken is not None:
        return Verdict("Failed", broken.reason or "Crash", f"{broken.name}: {broken.message}")
    if all(stage.phase in _DONE for stage in status.stages):
        reused = sum(s.phase is Phase.SUCCEEDED and not s.attempt for s in status.stages)
        return Verdict(
            "Complete", "Complete", f"every stage is published{f', {reused} of them by earlier runs' * bool(reused)}"
        )
    active = next((s for s in status.stages if s.phase is Phase.RUNNING), None)
    if active is not None:
        if active.running_since is not None and active.stopping is None:
            return Verdict("Running", "Running", f"{active.name}: attempt {active.attempt} runs")
        return Verdict("Pending", active.reason or "Starting", f"{active.name}: {active.message or 'its pods start'}")
    if run.spec.suspend:
        return Verdict("Suspended", "Suspended", "spec.suspend is true; set it to false to go on")
    if refusals:
        return Verdict("Pending", refusals[0][0], refusals[0][1])
    waiting = next(s for s in status.stages if s.phase is Phase.WAITING)
    if waiting.next_attempt is not None:
        told = f"{waiting.name}: attempt {waiting.attempt + 1} not before {waiting.next_attempt:%H:%M:%S} UTC: "
        return Verdict("Pending", "Backoff", told + (waiting.message or ""))
    return Verdict("Pending", "Waiting", f"{waiting.name} comes next")


def _conditions(
    before: Sequence[Condition], verdict: Verdict, refusals: Refusals, *, now: datetime, generation: int
) -> tuple[Condition, ...]:
    known = {condition.type: condition for condition in before}
    found = []
    for kind in get_args(Condition.model_fields["type"].annotation):
        holds, reason, message = _aspect(kind, verdict, refusals)
        value: Literal["True", "False"] = "True" if holds else "False"
        old = known.get(kind)
        condition = Condition(
            type=kind,
            status=value,
            reason=reason,
            message=excerpt(message, MESSAGE_CHARACTERS),
            last_transition_time=old.last_transition_time if old is not None and old.status == value else now,
            observed_generation=generation,
        )
        found.append(condition)
    return tuple(found)


def _aspect(kind: str, verdict: Verdict, refusals: Refusals) -> tuple[bool, str, str]:
    """Whether one condition holds, its reason and its message; no two conditions of a run repeat a message."""
    if kind == "Accepted":
        return (False, *refusals[0]) if refusals else (True, "Valid", "the run can be carried out")
    if kind == "Finished":
        return verdict.phase in ("Complete", "Failed"), verdict.reason, ""
    holds = verdict.phase == kind
    waits = kind == "Running" and verdict.phase == "Pending" and not refusals
    return holds, verdict.reason, verdict.message if holds or waits else ""


def _progress(status: EGTRunStatus, at_work: StageStatus | None) -> str:
    """As in 3/7 (probe 40 %)."""
    enabled = [stage for stage in status.stages if stage.phase is not Phase.DISABLED]
    done = sum(stage.phase is Phase.SUCCEEDED for stage in enabled)
    text = f"{done}/{len(enabled)}"
    if at_work is None:
        return text
    share = at_work.progress
    percent = f" {100 * share.done / share.total:.0f} %" if share is not None and share.total else ""
    return f"{text} ({at_work.name}{percent})"


def _accuracy(status: EGTRunStatus) -> str | None:
    metrics = next((stage.metrics for stage in status.stages if stage.name == "evaluate"), {})
    found = next((metrics[name] for name in _ACCURACIES if name in metrics), None)
    return None if found is None else f"{found:.3f}"
