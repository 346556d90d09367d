"""What ``egt plan`` prints of an estimate: two tables, what they take for granted, and what does not fit."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from egt_operator.estimate import Estimate, StageEstimate
from egt_operator.fit import GIB, Refusal
from egt_operator.formulas_view import KINDS, print_formulas
from egt_operator.memory import Memory
from egt_operator.plan import Forecast
from egt_operator.stage_cost import Between
from egt_operator.stage_memory import Phase


def print_plan(lines: Sequence[Forecast], needs: Estimate, refused: Sequence[Refusal], *, as_json: bool) -> None:
    """What each stage would do now, and why, and what it needs."""
    if as_json:
        print(json.dumps([as_data(line, needs, refused) for line in lines]))
        return
    table = Table("stage", "action", "digest", "reason")
    for line in lines:
        table.add_row(line.name, line.action, line.digest or "", line.reason)
    console = Console()
    console.print(table)
    print_estimate(console, needs)


def print_estimate(console: Console, found: Estimate) -> None:
    """Work and time of each stage, memory of each phase, and what was taken for granted; nothing without stages."""
    if not found.stages:
        return
    console.print(_work(found))
    if any(stage.phases for stage in found.stages.values()):
        console.print(_memory(found))
        print_formulas(
            console, {label_of(stage, phase): phase.terms for stage in found.stages.values() for phase in stage.phases}
        )
    for note in notes(found):
        console.print(f"· {note}", highlight=False)


def _work(found: Estimate) -> Table:
    gpus = any(stage.gpus for stage in found.stages.values())
    table = Table("stage", title="what it takes", title_justify="left")
    for column in ("disk a pod, GB", "generations", *(("GPUs", "GPU-hours", "hours") if gpus else ())):
        table.add_column(column, justify="right")
    for name, stage in found.stages.items():
        disk = _tenths(stage.disk / 1e9) if stage.disk else ""
        table.add_row(name, disk, between_text(stage.generations), *(_time(stage) if gpus else ()))
    if found.gpu_hours is not None:
        table.add_section()
        table.add_row("all", "", "", "", between_text(found.gpu_hours), "")
    return table


def _time(stage: StageEstimate) -> tuple[str, str, str]:
    hours, gpus = stage.gpu_hours, stage.gpus
    each = Between(hours.low / gpus, hours.high / gpus) if hours and gpus else None
    return str(gpus or ""), between_text(hours), between_text(each)


def _memory(found: Estimate) -> Table:
    limit = found.offer.memory
    gpu = any(stage.gpus for stage in found.stages.values())
    title = "GiB a GPU at the peak" if gpu else "GiB a process at the peak"
    # Without lines: the nine columns have to fit into 80 characters.
    table = Table("stage", title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("weights", "gradients", "optimiser", "activations", "KV cache", "other", "total"):
        table.add_column(column, justify="right")
    if limit is not None:
        table.add_column(f"of {limit / GIB:.0f}", justify="right")
    for stage in found.stages.values():
        for phase in stage.phases:
            kinds = [_gib(getattr(phase.memory, kind)) for kind in KINDS]
            fits = [_fits(phase, limit)] if limit is not None else []
            table.add_row(label_of(stage, phase), *kinds, f"[bold]{_gib(phase.memory.total)}[/]", *fits)
    return table


def label_of(stage: StageEstimate, phase: Phase) -> str:
    """The stage, and which of its phases where it has several."""
    return f"{stage.stage} {phase.name}" if len(stage.phases) > 1 else str(stage.stage)


def _fits(phase: Phase, limit: int) -> str:
    return "[green]fits[/]" if phase.needs <= limit else "[red]too much[/]"


def _gib(amount: int) -> str:
    return _tenths(amount / GIB) if amount else ""


def _tenths(value: float) -> str:
    return f"{value:,.1f}" if value >= 0.05 else "<0.1"


def between_text(found: Between | None) -> str:
    """Both ends, or one where they look alike; empty if not known."""
    if found is None:
        return ""
    low, high = _number(found.low), _number(found.high)
    return low if low == high else f"{low} - {high}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def notes(found: Estimate) -> list[str]:
    """What the figures were worked out from and take for granted, a line each."""
    lines = [f"model: {found.known.origin}"]
    if found.known.geometry is None:
        return [*lines, "memory, disk and hours are not known, as the shape of the model is not"]
    unknown = [f"data.{name}" for name, rows in vars(found.rows).items() if rows is None]
    if unknown:
        lines.append(f"rows of {', '.join(unknown)}: known once prepare has read them, or from maxRows")
    lines.append("memory: samples as long as they may be; prompts all pictures, samples of sft all response")
    lines.append("disk: models and two checkpoints of one pod; data and pictures come on top")
    if not any(stage.gpus for stage in found.stages.values()):
        return [*lines, "no GPU is named (scheduling.gpuMemory): processes on the CPU, and nothing is refused"]
    fastest = "fastest GPU allowed" if found.offer.products else "fastest GPU known of this size"
    return [
        *lines,
        f"a GPU's memory: {found.offer.origin}; other: CUDA, NCCL, gaps",
        f"hours from: {fastest} at 50 % of its peak, samples 1/4 of the longest,",
        "hours to: slowest one at 25 %, samples 1/2 of it; 3/4 of a prompt pictures, all rows usable",
        "hours without: loading models, queues, waiting for teacher and judge",
    ]


def as_data(line: Forecast, found: Estimate, refused: Sequence[Refusal]) -> dict[str, Any]:
    """One stage of ``-o json``: the forecast, with what the stage needs in bytes and hours beside it."""
    stage = found.stages.get(line.name)
    if stage is None:
        return vars(line)
    return {
        **vars(line),
        "gpus": stage.gpus,
        "gpu_bytes": found.offer.memory,
        "disk_bytes": stage.disk,
        "generations": stage.generations and vars(stage.generations),
        "gpu_hours": stage.gpu_hours and vars(stage.gpu_hours),
        "memory": [_phase_data(phase) for phase in stage.phases],
        "refused": next((str(one) for one in refused if one.phase.stage == line.name), None),
        "notes": notes(found),
    }


def _phase_data(phase: Phase) -> dict[str, Any]:
    parts: Memory = phase.memory
    return {"phase": phase.name, **vars(parts), "total": parts.total, "needs": phase.needs, **vars(phase.terms)}
