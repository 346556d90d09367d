"""Builders of recipes: a test states only what matters to it."""

from typing import Any

from egt_pipeline.contract.base import Recipe
from egt_pipeline.contract.graph import STAGE_TYPES, StageName

CONTENT = {"model": "m0", "sft": "s0", "rl": "r0", "rl-unlabelled": "u0", "evaluate": "e0"}

_LEAST: dict[StageName, dict[str, Any]] = {
    StageName.PREPARE: {
        "model": {"source": "models/base"},
        "data": {"sft": {"source": "sft.jsonl"}, "rl": {"source": "rl.jsonl"}, "evaluate": [{"source": "held.jsonl"}]},
    },
    StageName.DISTILL: {"teacher": {"model": "teacher"}},
}


def make_recipes(*, without: tuple[str, ...] = (), **changes: dict[str, Any]) -> dict[StageName, Recipe]:
    """The recipes of a run with every stage but ``without``; ``curate={"seed": 3}`` changes a stage."""
    return {
        name: stage.recipe.model_validate({**_LEAST.get(name, {}), **changes.get(name, {})})
        for name, stage in STAGE_TYPES.items()
        if name not in without
    }
