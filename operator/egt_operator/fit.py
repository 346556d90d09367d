"""Does every stage fit its GPUs, and what would make it fit? Settings are tried, not guessed. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from egt_operator.api import EGTRunSpec
from egt_operator.estimate import Estimate
from egt_operator.geometry import Geometry
from egt_operator.stage_memory import Phase, Room, phases_of
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.training import LoRA

GIB = 2**30
# What may be changed; at the same price the first goes first.
_KNOBS = {
    StageName.SFT: ("micro_batch_size", "gradient_checkpointing", "zero_stage", "processes", "max_length", "lora"),
    StageName.RL: ("micro_batch_size", "zero_stage", "processes", "max_new_tokens", "max_prompt_tokens", "lora"),
    StageName.PROBE: ("batch_size", "precision", "max_new_tokens"),
    StageName.EVALUATE: ("batch_size", "precision", "max_new_tokens"),
}
# What one step of a knob costs: nothing but time, twice the GPUs, rounding, samples, or training something else.
_PRICES = {
    "micro_batch_size": 1,
    "gradient_checkpointing": 1,
    "batch_size": 1,
    "zero_stage": 1,
    "processes": 2,
    "precision": 2,
    "lora": 6,
}
_PRICE_OF_SAMPLES = 3
_GROWING = ("processes", "zero_stage")
_MOST_PROCESSES = 64  # more than that is a decision about the cluster, not a setting
_MOST_IN_A_POD = 8  # GPUs that one node has; a pod that asks for more is never scheduled
_SHORTEST = 512  # tokens: below, hardly a sample is left
_CHANGED_AT_ONCE = 3

Setting = int | str | LoRA
# Settings of two values: the one that needs more memory, and the one that is tried in its place.
_SWITCHES: dict[str, tuple[Any, Setting]] = {
    "lora": (None, LoRA()),
    "gradient_checkpointing": (False, True),
    "precision": ("float32", "bfloat16"),
}


@dataclass(frozen=True)
class Refusal:
    """A phase that does not fit: what it needs, what the GPU has, and the settings that make it fit, if any do."""

    phase: Phase
    gpu_bytes: int
    settings: dict[str, Setting]

    def __str__(self) -> str:
        name, needs = self.phase.stage, -(-self.phase.needs * 10 // GIB) / 10
        share = self.phase.terms.symbols.get("u")
        taken = "" if share is None else f" (vLLM takes {share:.0%} of one)"
        has = f"a GPU has {self.gpu_bytes / GIB:.1f} GiB"
        verb = "need" if self.phase.name == "rollouts" else "needs"
        said = f"{name}: {self.phase.name} {verb} {needs:.1f} GiB a GPU{taken}, and {has}"
        if not self.settings:
            return f"{said}; no setting of {name} makes it fit: take larger GPUs or a smaller model"
        changes = " and ".join(f"{name}.{to_camel(knob)}: {_shown(value)}" for knob, value in self.settings.items())
        return f"{said}; it fits with {changes}"


def refusals(spec: EGTRunSpec, found: Estimate) -> list[Refusal]:
    """One for each stage that does not fit, of the phase that needs most; none where a limit is unknown."""
    limit, geometry = found.offer.memory, found.known.geometry
    if limit is None or geometry is None:
        return []
    refused = []
    for name, stage in found.stages.items():
        if stage.gpus and stage.phases:
            most = max(stage.phases, key=lambda phase: phase.needs)
            if most.needs > limit:
                refused.append(Refusal(most, limit, settings_that_fit(spec, name, geometry, limit)))
    return refused


def too_few_rows(spec: EGTRunSpec, found: Estimate) -> list[str]:
    """What curate would say after sft and probe, if that many rows cannot be kept; none where rows are not known."""
    asked, rows = spec.curate.keep.top_k, found.rows.rl
    if StageName.CURATE not in found.stages or asked is None or rows is None or asked <= rows:
        return []
    return [f"spec.curate.keep.topK: {asked} samples are asked for, but data.rl has {rows} at most"]


def check_fits(refused: Sequence[Refusal]) -> None:
    """Raises TaskError with a line for each refusal, if there are any."""
    if refused:
        raise TaskError("\n".join(map(str, refused)))


def settings_that_fit(spec: EGTRunSpec, stage: StageName, geometry: Geometry, gpu_bytes: int) -> dict[str, Setting]:
    """The cheapest changes of the stage with which all its phases fit; empty: none do."""
    block, room = spec.stage(stage), Room(on_gpu=True, gpu_bytes=gpu_bytes)
    for moves in _cheapest_first({knob: list(_values(knob, getattr(block, knob))) for knob in _KNOBS[stage]}):
        settings = _in_pods(block, moves)
        other = _changed(spec, stage, settings)
        phases = phases_of(other, stage, geometry, room) if other else []
        if phases and all(phase.needs <= gpu_bytes for phase in phases):
            return settings
    return {}


def _cheapest_first(knobs: dict[str, list[Setting]]) -> list[dict[str, Setting]]:
    """Every combination of up to three knobs, each at every value, by what their steps cost together."""
    found = []
    for count in range(1, _CHANGED_AT_ONCE + 1):
        for chosen in combinations(knobs, count):
            for places in product(*(range(len(knobs[knob])) for knob in chosen)):
                moves = list(zip(chosen, places, strict=True))
                price = sum(_PRICES.get(knob, _PRICE_OF_SAMPLES) * (place + 1) for knob, place in moves)
                found.append((price, {knob: knobs[knob][place] for knob, place in moves}))
    return [settings for _, settings in sorted(found, key=lambda one: one[0])]


def _in_pods(block: Any, settings: dict[str, Setting]) -> dict[str, Setting]:
    """With more pods where more processes than one pod may have are tried: 8, or as many as it has now."""
    processes = settings.get("processes")
    if not isinstance(processes, int):
        return settings
    most = max(_MOST_IN_A_POD, block.processes // block.pods)
    pods = next(pods for pods in range(block.pods, processes + 1) if processes % pods == 0 and processes <= pods * most)
    return settings if pods == block.pods else {**settings, "pods": pods}


def _shown(value: Setting) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{{rank: {value.rank}}}" if isinstance(value, LoRA) else str(value)


def _values(knob: str, now: Any) -> Iterator[Setting]:
    """What a knob is tried at, nearest first."""
    if knob in _SWITCHES:
        before, after = _SWITCHES[knob]
        yield from (after,) if now == before else ()
        return
    if knob == "zero_stage":
        yield from (stage for stage in (2, 3) if stage > now)
        return
    value = now
    while True:
        value = value * 2 if knob in _GROWING else value // 2
        least = _SHORTEST if knob.startswith("max_") else 1
        if value < least or (knob in _GROWING and value > _MOST_PROCESSES):
            return
        yield value


def _changed(spec: EGTRunSpec, stage: StageName, settings: dict[str, Setting]) -> EGTRunSpec | None:
    """The run with these settings of the stage; None if they are not accepted, as a batch that nothing divides."""
    block = spec.stage(stage)
    try:
        return spec.model_copy(update={str(stage): type(block).model_validate({**dict(block), **settings})})
    except ValidationError:
        return None
