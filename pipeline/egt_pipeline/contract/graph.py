"""The stage graph: the only registry of stages, their recipes, revisions and inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from egt_pipeline.contract.base import Recipe
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.recipes import (
    CurateRecipe,
    DistillRecipe,
    EvaluateRecipe,
    PrepareRecipe,
    ProbeRecipe,
    RLRecipe,
    SFTRecipe,
)


class StageName(StrEnum):
    """A stage is called the same in the spec, the recipe, the module, the command, the tests and the store."""

    PREPARE = "prepare"
    DISTILL = "distill"
    SFT = "sft"
    PROBE = "probe"
    CURATE = "curate"
    RL = "rl"
    EVALUATE = "evaluate"


@dataclass(frozen=True)
class StageType:
    """What is known of a stage before any run: ``revision`` is raised by hand when the meaning of its code changes."""

    name: StageName
    recipe: type[Recipe]
    revision: int
    sharded: bool = False
    gpu: bool = False


@dataclass(frozen=True)
class Need:
    """An input: the artifact of ``stage``, known by its own digest, or by the digest of one ``output`` of its content.

    Outputs of prepare are ``model``, ``sft``, ``rl``, ``rl-unlabelled`` and ``evaluate``; equal rows have equal digests
    wherever they came from. ``rl-unlabelled`` leaves the label out, so nothing before rl can depend on it.
    """

    stage: StageName
    output: str | None = None


STAGES: tuple[StageType, ...] = (
    StageType(StageName.PREPARE, PrepareRecipe, revision=1),
    StageType(StageName.DISTILL, DistillRecipe, revision=1),
    StageType(StageName.SFT, SFTRecipe, revision=2, gpu=True),
    StageType(StageName.PROBE, ProbeRecipe, revision=2, sharded=True, gpu=True),
    StageType(StageName.CURATE, CurateRecipe, revision=1),
    StageType(StageName.RL, RLRecipe, revision=2, gpu=True),
    StageType(StageName.EVALUATE, EvaluateRecipe, revision=3, gpu=True),
)
STAGE_TYPES: Mapping[StageName, StageType] = {stage.name: stage for stage in STAGES}
PREPARED_OUTPUTS = ("model", "sft", "rl", "rl-unlabelled", "evaluate")


def inputs_of(name: StageName, recipes: Mapping[StageName, Recipe]) -> dict[str, Need]:
    """The inputs of a stage by name, given the recipes of the enabled stages.

    Raises TaskError when an enabled stage needs one that is disabled.
    """
    prepared = {output: Need(StageName.PREPARE, output) for output in PREPARED_OUTPUTS}
    needs = _inputs(name, recipes, prepared)
    for need in needs.values():
        if need.stage not in recipes:
            raise TaskError(
                f"spec.{need.stage}.enabled: is false, but {name} needs it; enable {need.stage} or disable {name} too"
            )
    return needs


def _inputs(name: StageName, recipes: Mapping[StageName, Recipe], prepared: Mapping[str, Need]) -> dict[str, Need]:
    s = StageName
    match name:
        case s.PREPARE:
            return {}
        case s.DISTILL:
            return {"data": prepared["sft"]}
        case s.SFT:
            optional = {"trajectories": Need(s.DISTILL)} if s.DISTILL in recipes else {}
            return {"model": prepared["model"], "data": prepared["sft"], **optional}
        case s.PROBE:
            return {"data": prepared["rl-unlabelled"], "model": Need(s.SFT), **_base(recipes, prepared)}
        case s.CURATE:
            recipe = recipes.get(s.CURATE)
            labelled = isinstance(recipe, CurateRecipe) and recipe.baseline == "accuracy"
            labels = {"labels": prepared["rl"]} if labelled else {}
            return {"entropies": Need(s.PROBE), **labels}
        case s.RL:
            selection = {"selection": Need(s.CURATE)}
            return {"data": prepared["rl"], "model": Need(s.SFT), **selection, **_base(recipes, prepared)}
        case s.EVALUATE:
            final = {"final": Need(s.RL)} if s.RL in recipes else {}
            return {"data": prepared["evaluate"], "sft": Need(s.SFT), **final, **_base(recipes, prepared)}


def _base(recipes: Mapping[StageName, Recipe], prepared: Mapping[str, Need]) -> dict[str, Need]:
    """The model that sft started from, needed beside its artifact where that holds an adapter alone."""
    recipe = recipes.get(StageName.SFT)
    kept = isinstance(recipe, SFTRecipe) and recipe.lora is not None and not recipe.lora.merge
    return {"base": prepared["model"]} if kept else {}
