"""The API as types: ``EGTRun`` and its spec. CRD, field reference and editor schema are generated from them.

Every stage's block is its recipe, flat, beside what says where it runs. What is marked ``Placement`` may change while
a run lives; everything else is the identity of the run and is immutable in the cluster.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from egt_operator.api_parts import Metadata, PodTemplate, Resources, Retry, Scheduling, StoreSpec, TimeToLive
from egt_operator.api_status import EGTRunStatus
from egt_pipeline.contract.base import Endpoint, Placement, Recipe
from egt_pipeline.contract.data import Data, ModelSource
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.graph import STAGES, StageName, inputs_of
from egt_pipeline.contract.recipes import (
    CurateRecipe,
    DistillRecipe,
    EvaluateRecipe,
    PrepareOptions,
    PrepareRecipe,
    ProbeRecipe,
    RLRecipe,
    SFTRecipe,
)
from egt_pipeline.contract.tracking import Tracking

GROUP = "egt.dev"
VERSION = "v1alpha1"
KIND = "EGTRun"
MANAGER = "egt.dev/operator"

Processes = Annotated[int, Placement, Field(ge=1, le=1024)]
Deadline = Annotated[int | None, Placement, Field(ge=1)]


def _check_processes(block: "SFTStage | RLStage") -> None:
    if block.processes % block.pods:
        raise ValueError(f"pods: {block.pods} does not divide processes {block.processes}; every pod has as many")
    if (gpus := block.resources.gpu) not in (None, 0, each := block.processes // block.pods):
        said = f"the {each} processes of a pod have a GPU each: leave it out, or 0 for none"
        raise ValueError(f"resources.gpu: {gpus} is not accepted; {said}")
    if block.batch_size % (block.micro_batch_size * block.processes):
        raise ValueError(
            f"batchSize: {block.batch_size} is no multiple of "
            f"microBatchSize {block.micro_batch_size} x processes {block.processes}"
        )


class StageBlock(Recipe):
    """What every stage has besides its recipe."""

    resources: Annotated[Resources, Placement] = Resources()
    """What one pod of the stage asks for; may change while the stage waits."""


class OptionalStage(StageBlock):
    """A stage that can be left out."""

    recipe_type: ClassVar[type[Recipe]]

    enabled: bool = True
    """false leaves the stage out; refused while an enabled stage needs what it makes."""

    def recipe(self) -> Recipe:
        """The recipe alone: what to compute, without where it runs."""
        return self.recipe_type(**{name: getattr(self, name) for name in self.recipe_type.model_fields})


class PrepareStage(StageBlock, PrepareOptions):
    """Reads every row once, says which are bad and why, and writes them in one normal form. Always runs."""


class DistillStage(OptionalStage, DistillRecipe):
    """A teacher explains each preference without seeing the label. Optional: data.sft can bring its responses."""

    recipe_type = DistillRecipe

    teacher: Endpoint | None = None  # type: ignore[assignment]  # a disabled stage needs no teacher
    """The reasoning model that writes the trajectories; needed as long as the stage is enabled."""

    @model_validator(mode="after")
    def _has_a_teacher(self) -> Self:
        if self.enabled and self.teacher is None:
            raise ValueError("teacher: is missing; name {model, baseUrl}, or set distill.enabled: false")
        return self


class SFTStage(OptionalStage, SFTRecipe):
    """Fine-tunes the model on the trajectories whose answer was right."""

    recipe_type = SFTRecipe

    processes: Processes = 1
    """Ranks that train together, one GPU each where there are GPUs."""
    pods: Processes = 1
    """Pods that the ranks spread over, as many in each; no meaning on a machine without a cluster."""

    @model_validator(mode="after")
    def _processes_divide(self) -> Self:
        _check_processes(self)
        return self


class ProbeStage(OptionalStage, ProbeRecipe):
    """Measures the entropy of the fine-tuned model on each sample of data.rl."""

    recipe_type = ProbeRecipe

    workers: Processes = 1
    """Shards that work side by side; the outcome does not depend on their number."""


class CurateStage(OptionalStage, CurateRecipe):
    """Keeps the samples the model is sure of, and sorts them from easy to hard."""

    recipe_type = CurateRecipe


class RLStage(OptionalStage, RLRecipe):
    """Reinforcement learning on the kept samples, from easy to hard."""

    recipe_type = RLRecipe

    processes: Processes = 1
    """Ranks that train together, one GPU each where there are GPUs."""
    pods: Processes = 1
    """Pods that the ranks spread over, as many in each; no meaning on a machine without a cluster."""

    @model_validator(mode="after")
    def _processes_divide(self) -> Self:
        _check_processes(self)
        return self


class EvaluateStage(OptionalStage, EvaluateRecipe):
    """Scores every model of the run on each source of data.evaluate. Optional."""

    recipe_type = EvaluateRecipe


class EGTRunSpec(Recipe):
    """One run of the method: model, data, store, and a block for each stage."""

    model: ModelSource
    """The vision-language model that becomes the reward model."""
    data: Data
    """What is fine-tuned on, what is curated and trained on, what is scored on."""
    store: StoreSpec
    """Where every output of the run lies."""
    prepare: PrepareStage = PrepareStage()
    """Checks of the data before anything expensive starts."""
    distill: DistillStage
    """The teacher's trajectories: name a teacher, or set enabled: false and bring responses in data.sft."""
    sft: SFTStage = SFTStage()
    """Supervised fine-tuning."""
    probe: ProbeStage = ProbeStage()
    """The entropies."""
    curate: CurateStage = CurateStage()
    """The selection and its order."""
    rl: RLStage = RLStage()
    """Reinforcement learning."""
    evaluate: EvaluateStage = EvaluateStage()
    """The scores on held-out data."""
    scheduling: Annotated[Scheduling, Placement] = Scheduling()
    """Queue, priority and nodes of all pods; a change counts from the next attempt of a stage on."""
    pod_template: Annotated[PodTemplate, Placement] = PodTemplate()
    """What is laid over every pod; a change counts from the next attempt of a stage on."""
    backend: Literal["PyTorchJob"] = "PyTorchJob"
    """Which kind of job a stage becomes."""
    managed_by: Literal["egt.dev/operator", "kueue.x-k8s.io/multikueue"] = "egt.dev/operator"
    """Who reconciles the run; the operator leaves a run alone that is managed by another."""
    tracking: Annotated[Tracking | None, Placement] = None
    """Where the figures of sft and rl are shown besides TensorBoard, whose files are always written."""
    suspend: Annotated[bool, Placement] = False
    """true stops the run after its checkpoints; false goes on from them."""
    suspend_policy: Annotated[Literal["Immediate", "AfterStage"], Placement] = "Immediate"
    """Whether suspend ends the stage at work after a checkpoint, or lets it finish."""
    active_deadline_seconds: Deadline = None
    """The run fails when it has been active this long, time in the queue and suspended not counted; null: never."""
    queue_deadline_seconds: Deadline = None
    """The run fails when one stage has waited in the queue this long; null: never."""
    hang_deadline_seconds: Annotated[int, Placement, Field(ge=30)] = 3600
    """A stage that shows no progress for this long is ended and tried again; loading a large model shows none."""
    retry: Annotated[Retry, Placement] = Retry()
    """How often a stage starts again, by class of failure."""
    ttl: Annotated[TimeToLive, Placement] = TimeToLive()
    """When a finished run is removed from the cluster; its artifacts stay."""

    @model_validator(mode="after")
    def _stages_fit_together(self) -> Self:
        recipes = self.recipes
        try:
            for name in recipes:
                inputs_of(name, recipes)
        except TaskError as error:
            raise ValueError(str(error)) from None
        if self.evaluate.enabled and not self.data.evaluate:
            raise ValueError("data.evaluate: is empty; name a held-out source, or set evaluate.enabled: false")
        if self.curate.enabled and self.curate.baseline == "accuracy" and self.probe.generations < 2:
            raise ValueError(
                "curate.baseline: accuracy needs probe.generations >= 2 (the paper: 8), "
                f"got {self.probe.generations}; one greedy answer is right or wrong, which ranks nothing"
            )
        return self

    def stage(self, name: StageName) -> StageBlock:
        """The block of one stage."""
        block: StageBlock = getattr(self, name)
        return block

    @cached_property
    def recipes(self) -> Mapping[StageName, Recipe]:
        """The recipes of the enabled stages, in the order of the graph."""
        recipes: dict[StageName, Recipe] = {}
        for stage in STAGES:
            block = self.stage(stage.name)
            if not isinstance(block, OptionalStage):
                recipes[stage.name] = self._prepare_recipe()
            elif block.enabled:
                recipes[stage.name] = block.recipe()
        return recipes

    def _prepare_recipe(self) -> PrepareRecipe:
        options = {name: getattr(self.prepare, name) for name in PrepareOptions.model_fields}
        need_responses = self.sft.enabled and not self.distill.enabled
        return PrepareRecipe(model=self.model, data=self.data, need_responses=need_responses, **options)


class EGTRun(Recipe):
    """A run of entropy-guided training: reasoning distilled, a reward model tuned, data curated, RL, evaluation."""

    api_version: Literal["egt.dev/v1alpha1"]
    """Version of this API."""
    kind: Literal["EGTRun"]
    """Kind of the object."""
    metadata: Metadata
    """Name, namespace, labels and annotations."""
    spec: EGTRunSpec
    """What is wanted."""
    status: EGTRunStatus | None = None
    """What was seen; written by the operator."""

    @property
    def recipes(self) -> Mapping[StageName, Recipe]:
        """The recipes of the enabled stages, in the order of the graph."""
        return self.spec.recipes
