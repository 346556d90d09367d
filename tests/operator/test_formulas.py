"""The formulas that ``egt plan`` prints, evaluated with the symbols it prints, against the bytes it prints."""

import math
from typing import Any

import pytest

from build_manifest import manifest
from egt_operator.api import EGTRun
from egt_operator.formulas import SHAPE, WORK
from egt_operator.geometry import PUBLISHED
from egt_operator.stage_memory import Phase, Room, phases_of
from egt_pipeline.contract.graph import StageName

ROOMS = [Room(on_gpu=True, gpu_bytes=80 * 2**30), Room(on_gpu=True), Room(on_gpu=False)]
CHANGES: list[dict[str, Any]] = [
    {},
    {"sft__zeroStage": 2, "sft__processes": 4, "rl__zeroStage": 2, "rl__processes": 4},
    {"sft__zeroStage": 3, "sft__processes": 8, "rl__processes": 4, "sft__maxLength": 512, "rl__maxNewTokens": 16},
    {"sft__zeroStage": 0, "sft__processes": 2, "sft__precision": "float32", "rl__klCoefficient": 0.1},
    {"sft__zeroStage": 0, "sft__freezeVision": False, "rl__freezeVision": False, "rl__processes": 2},
    {"sft__gradientCheckpointing": False, "sft__freezeVision": False, "rl__klCoefficient": 0.1, "rl__zeroStage": 2},
    {"sft__lora": {"rank": 16}, "rl__lora": {"rank": 16}, "sft__zeroStage": 0, "probe__engine": "transformers"},
    {"sft__lora": {"rank": 8}, "sft__zeroStage": 2, "evaluate__engine": "transformers", "evaluate__batchSize": 1},
    {"probe__engine": "transformers", "probe__precision": "float32", "probe__maxNewTokens": 4096},
    {"probe__engine": "vllm", "probe__batchSize": 100, "probe__generations": 8, "evaluate__engine": "vllm"},
    {"probe__engine": "vllm", "probe__batchSize": 3, "probe__generations": 2, "probe__precision": "float32"},
]


def phases(changes: dict[str, Any], size: str, room: Room) -> list[Phase]:
    spec, geometry = EGTRun.model_validate(manifest(**changes)).spec, PUBLISHED[f"Qwen/Qwen2.5-VL-{size}-Instruct"]
    return [phase for stage in StageName for phase in phases_of(spec, stage, geometry, room)]


def values_of(phase: Phase) -> dict[str, float]:
    found: dict[str, float] = dict(phase.terms.symbols)
    for name, formula in phase.terms.formulas.items():
        found[name] = eval(formula, {"max": max, "min": min}, found)
    return found


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("size", ["3B", "7B"])
@pytest.mark.parametrize("changes", CHANGES)
def test_each_formula_gives_the_bytes_that_are_said(changes: dict[str, Any], size: str, room: Room) -> None:
    found = phases(changes, size, room)
    assert len(found) == 5
    for phase in found:
        values = values_of(phase)
        for kind, said in vars(phase.memory).items():
            assert math.isclose(values.get(kind, 0), said, rel_tol=1e-6, abs_tol=64), (phase.stage, phase.name, kind)


def test_every_symbol_that_is_printed_has_a_meaning() -> None:
    for phase in phases({}, "7B", ROOMS[0]):
        assert phase.terms.symbols.keys() <= SHAPE.keys() | WORK.keys()
