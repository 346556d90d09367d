"""What the recipes of both trainings have in common: the batch, which weights move, and adapters."""

from typing import Literal, Self

from pydantic import Field, model_validator

from egt_pipeline.contract.base import PromptId, Recipe

Layer = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LoRA(Recipe):
    """Low-rank adapters (Hu et al., arXiv 2106.09685) in the blocks of the language model; all else is frozen."""

    rank: int = Field(default=16, ge=1, le=512)
    """Rank of each adapter: 16 adds about 1 % of weights to a model of 3 billion."""
    alpha: int = Field(default=32, ge=1)
    """An adapter counts alpha / rank times; twice is the usual choice, and changing the rank keeps the step size."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs dropped in training. In rl it makes the policy differ from the one that sampled."""
    targets: tuple[Layer, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    """Which linear layers get one. All of them, as QLoRA found (arXiv 2305.14314, fig. 2); fewer take less memory."""
    merge: bool = True
    """true: the artifact is a whole model. false: it is the adapter alone, a hundredth of the size; every stage that
    loads it merges it into its base first."""


class TrainingRecipe(Recipe):
    """What sft and rl share."""

    batch_size: int
    micro_batch_size: int = Field(default=8, ge=1)
    """Samples a process holds at once, the rest is accumulated; must divide batchSize."""
    freeze_vision: bool = True
    """Keep the vision tower as it is."""
    lora: LoRA | None = None
    """Train low-rank adapters instead of all weights, so that a model of 3 billion fits a GPU of 24 GB; null: all."""
    prompt: PromptId = "egt-v1"
    """Which prompt template is used."""

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(f"batchSize: {self.batch_size} is no multiple of microBatchSize {self.micro_batch_size}")
        return self

    @model_validator(mode="after")
    def _adapters_leave_vision_alone(self) -> Self:
        if self.lora is not None and not self.freeze_vision:
            raise ValueError("freezeVision: false is not accepted with lora, whose adapters are in the language model")
        return self
