"""One frozen recipe a stage: *what* to compute, every field of it part of the output's name.

What depends on where a stage runs (endpoints, concurrency, checkpoint intervals) is marked ``Placement`` and stays
out of the digest; see ``contract.task.digest``.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel

from egt_pipeline.contract.base import Endpoint, Placement, PromptId, Recipe, Seed, Share
from egt_pipeline.contract.data import Data, ModelSource
from egt_pipeline.contract.training import TrainingRecipe

_Decay = Annotated[float, Field(ge=0, lt=1)]


class PrepareOptions(Recipe):
    """How the data are checked before anything expensive starts."""

    seed: Seed = 0
    """Seed of the answer order."""
    max_image_pixels: int = Field(default=50_000_000, ge=1)
    """An image with more pixels than this is refused before it is decoded (decompression bombs)."""
    max_bad_share: float = Field(default=0.05, ge=0, le=1)
    """Above this share of bad rows in one source the stage fails, so that a wrong column is found in seconds."""


class PrepareRecipe(PrepareOptions):
    """Everything prepare reads: the model and the data of the run, and how they are checked."""

    model: ModelSource
    """The model of the run."""
    data: Data
    """The data of the run."""
    need_responses: bool = False
    """True when distill is disabled: then data.sft must bring its own responses."""


class DistillRecipe(Recipe):
    """A teacher explains each preference without seeing the label (EGT section 2.2)."""

    teacher: Endpoint
    """The reasoning model that writes the trajectories."""
    attempts: int = Field(default=3, ge=1, le=16)
    """Tries per preference; the first whose answer equals the label is kept. Errors of the network are no tries."""
    temperatures: tuple[Annotated[float, Field(ge=0, le=2)], ...] = Field(default=(0.0, 0.7), min_length=1)
    """Temperature of each try, the last one repeated; at 0 throughout, tries would be alike."""
    max_tokens: int = Field(default=4096, ge=16)
    """Longest response of the teacher."""
    prompt: PromptId = "egt-v1"
    """Which prompt template is used."""
    max_failed_share: float = Field(default=0.2, ge=0, le=1)
    """Above this share of rows that the service never answered, the stage fails instead of going on with the rest."""


class SFTRecipe(TrainingRecipe):
    """Fine-tuning on the kept trajectories: negative log-likelihood of the response (EGT eq. 2)."""

    seed: Seed = 0
    """Seed of the order of samples and of dropout."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the data; ignored when maxSteps is given."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps in all."""
    batch_size: int = Field(default=256, ge=1)
    """Samples an optimiser step, over all processes."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises from 0."""
    min_learning_rate_share: float = Field(default=0.0, ge=0, le=1)
    """The cosine falls to this share of the peak."""
    adam_betas: tuple[_Decay, _Decay] = (0.9, 0.95)
    """Decay rates of AdamW: at least 0, below 1."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    max_length: int = Field(default=8192, ge=16)
    """Longest sample in tokens; longer ones are left out and counted."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Arithmetic of the forward and backward pass."""
    zero_stage: Literal[0, 2, 3] = 3
    """DeepSpeed ZeRO stage; 0 trains without DeepSpeed."""
    gradient_checkpointing: Annotated[bool, Placement] = True
    """Compute activations again in the backward pass instead of keeping them: a third more time, a fraction of the
    memory, the same losses."""
    checkpoint_steps: Annotated[int, Placement, Field(ge=1)] = 100
    """Steps between two checkpoints."""


class ProbeRecipe(Recipe):
    """One pass over the RL data that measures entropies (EGT eq. 3 and 4)."""

    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """Which engine generates; auto takes vllm on a GPU, transformers elsewhere. Both give the same entropies."""
    generations: int = Field(default=1, ge=1, le=64)
    """1: greedy. More: that many samples at temperature 1, as the accuracy baseline needs (the paper's Table 3: 8)."""
    seed: Seed = 0
    """Seed of the samples when generations > 1."""
    max_new_tokens: int = Field(default=1024, ge=4)
    """Longest response; a longer one is cut and has status `truncated`."""
    batch_size: int = Field(default=32, ge=1)
    """Samples generated together; on a GPU vllm is at its best with 256 and more."""
    chunk_rows: int = Field(default=128, ge=1)
    """Rows committed at once: what a lost worker has to do again."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Arithmetic of the model; the head and the softmax are float32 always."""
    prompt: PromptId = "egt-v1"
    """Which prompt template is used."""


class Keep(Recipe):
    """How much is kept: exactly one of share, topK, percentile, with or without a band."""

    share: Share | None = None
    """This share of the samples, rounded down, as an exact count."""
    top_k: int | None = Field(default=None, ge=1)
    """Exactly this many samples (the paper: 2,500)."""
    percentile: float | None = Field(default=None, gt=0, lt=100)
    """Scores strictly below this percentile, linearly interpolated (EGT section 2.3)."""
    band: Literal["low", "mid", "high"] = "low"
    """Which end of the ranking: the lowest, those around the median, or the highest (the paper's Table 5)."""

    @model_validator(mode="after")
    def _exactly_one_amount(self) -> Self:
        given = [n for n in ("share", "top_k", "percentile") if getattr(self, n) is not None]
        if len(given) != 1:
            names = [to_camel(n) for n in given] or "none"
            raise ValueError(f"keep: exactly one of share, topK, percentile is needed, got {names}")
        if self.percentile is not None and self.band != "low":
            raise ValueError(f"keep.band: percentile keeps the low end only, got band {self.band!r}")
        return self


class CurateRecipe(Recipe):
    """Which samples are trained on, and in which order (EGT section 2.3)."""

    score: Literal["answer", "sentence", "mix"] = "answer"
    """Answer-token entropy, mean entropy of the response, or their product (the paper's Table 4)."""
    baseline: Literal["random", "accuracy"] | None = None
    """Instead of a score: a seeded random order, or lowest correctness first (the paper's Table 3)."""
    keep: Keep = Keep(share=0.15)
    """How much is kept."""
    balance: Literal["none", "predicted"] = "none"
    """predicted: rank inside each predicted answer, then interleave, as low entropy goes with one answer."""
    seed: Seed = 0
    """Seed of the random baseline."""


class LogicJudge(Recipe):
    """Who says whether the reasoning supports the answer (R_logic in -1, 0, +1)."""

    kind: Literal["rule", "endpoint", "none"] = "rule"
    """rule: the conclusion of the reasoning read by rules. endpoint: an OpenAI-compatible judge. none: R_logic = 0."""
    endpoint: Endpoint | None = None
    """The judge, when kind is endpoint; its concurrency is divided among the engines, at least one request for each."""
    max_failed_share: Annotated[float, Placement, Field(ge=0, le=1)] = 0.2
    """Above this share of the last 1,024 questions, or of 32 at the start, that were not answered, the stage stops and
    goes on later: such a question counts 0."""

    @model_validator(mode="after")
    def _endpoint_is_given(self) -> Self:
        if (self.kind == "endpoint") != (self.endpoint is not None):
            raise ValueError(f"endpoint: given exactly when kind is 'endpoint'; kind is {self.kind!r}")
        return self


class RLRecipe(TrainingRecipe):
    """StableReinforce over the curated samples (EGT section 2.4; R1-Reward, arXiv 2505.02835, section 4)."""

    seed: Seed = 0
    """Seed of sampling and of the shuffled order."""
    order: Literal["sorted", "shuffled"] = "sorted"
    """sorted: ascending at each epoch, easy to hard. shuffled: a seeded order at each epoch."""
    epochs: int = Field(default=20, ge=1)
    """Passes over the curated samples."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after this many optimiser steps, even within an epoch."""
    batch_size: int = Field(default=224, ge=2)
    """Samples of a rollout and of an optimiser step: one on-policy step a rollout, so the order is exact."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Learning rate, after the warm-up constant."""
    warmup_share: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the learning rate rises."""
    temperature: float = Field(default=1.0, gt=0, le=2)
    """Sampling temperature of the rollouts."""
    max_new_tokens: int = Field(default=1024, ge=4)
    """Longest response."""
    max_prompt_tokens: int = Field(default=4096, ge=16)
    """Longest prompt, images included; samples with longer ones are left out and counted."""
    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the KL penalty against the start; 0 needs no reference model."""
    clip_epsilon: float = Field(default=0.2, gt=0, lt=1)
    """PPO's clip of the ratio."""
    pre_clip: float = Field(default=1e3, gt=1)
    """The probability ratio is clamped to 1/preClip .. preClip before it is exponentiated."""
    advantage_sigma: float = Field(default=3.0, gt=0)
    """Advantages beyond this many standard deviations are set to 0."""
    logic_weight: float = Field(default=0.5, ge=0)
    """Weight of R_logic within R = R_acc (1 + logicWeight R_logic) + formatWeight R_format."""
    format_weight: float = Field(default=0.5, ge=0)
    """Weight of R_format."""
    judge: LogicJudge = LogicJudge()
    """Who gives R_logic."""
    zero_stage: Literal[2, 3] = 3
    """DeepSpeed ZeRO stage."""
    checkpoint_steps: Annotated[int, Placement, Field(ge=1)] = 50
    """Optimiser steps between two checkpoints."""


class EvaluateRecipe(Recipe):
    """Free generation on held-out preferences by every model of the run."""

    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """Which engine generates; auto takes vllm on a GPU, transformers elsewhere. Both give the same entropies."""
    max_new_tokens: int = Field(default=4096, ge=4)
    """Longest response; a longer one counts as wrong."""
    batch_size: int = Field(default=32, ge=1)
    """Samples generated together; on a GPU vllm is at its best with 256 and more."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Arithmetic of the model."""
    prompt: PromptId = "egt-v1"
    """Which prompt template is used."""
