"""What a process that trains holds at its peak, by kind, in bytes: one pure function a formula, whose text is in
formulas.py. generation_memory.py has those of a process that generates.

Symbols are those of formulas.py. ZeRO: Rajbhandari et al., arXiv 1910.02054, section 5,
with the buffers of DeepSpeed 0.19. Activations are counted from the tensors that transformers' Qwen2.5-VL keeps for its
backward pass. tests/operator/test_memory.py compares each with what the real code allocates.
"""

from dataclasses import dataclass, replace
from typing import Literal, Self

from egt_operator.geometry import Geometry

ZeroStage = Literal[0, 2, 3]

# DeepSpeed's defaults: weights kept gathered at once, and weights fetched ahead of their use.
_MOST_GATHERED, _PREFETCHED = 10**9, 5 * 10**7
# Float32 gradients are made of at most this many weights at a time (ZeRO-3's sub_group_size).
_STEP_GROUP = 10**9
_ADAM_BYTES = 12  # a weight that trains: float32 copy, momentum, variance
# A GPU holds these besides tensors: CUDA context, kernels and NCCL about 1.5 GiB, the rest lost between allocations.
# An assumption: nothing of it can be measured without a GPU.
OVERHEAD = 2 * 2**30


@dataclass(frozen=True)
class Memory:
    """The peak of one process, by kind, in bytes."""

    weights: int = 0
    gradients: int = 0
    optimiser: int = 0
    activations: int = 0
    kv_cache: int = 0
    overhead: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimiser + self.activations + self.kv_cache + self.overhead

    def plus(self, **more: int) -> Self:
        """With more of some kinds."""
        return replace(self, **{kind: getattr(self, kind) + amount for kind, amount in more.items()})


@dataclass(frozen=True)
class Sharding:
    """How the states of a training lie on its ranks: ZeRO stage, ranks N, and elements of one reduce bucket."""

    stage: ZeroStage
    ranks: int
    bucket: int
    buckets: int = 1  # two when gradients are reduced while others are computed


@dataclass(frozen=True)
class MicroBatch:
    """What one process trains on at once: samples of ``length`` tokens, ``logits`` of which get logits."""

    samples: int
    length: int
    logits: int
    logit_bytes: int  # of all that hangs on one logit at the peak of the loss
    patches: int = 0  # of all pictures
    adapters: int = 0  # bytes a token and layer that ``adapters_kept`` says

    @property
    def tokens(self) -> int:
        """t: padding included, as every sample may be as long as the longest."""
        return self.samples * self.length


# Bytes on one logit at the worst moment, all float32. SFT: log-probabilities, the gradient of the loss, and that of the
# logits. RL: OpenRLHF's logits in float32, and a gradient each from logsumexp and gather, which are added up.
SFT_LOGIT_BYTES, RL_LOGIT_BYTES = 12, 16


def weights(geometry: Geometry, sharding: Sharding, b: int) -> int:
    """All of them; under ZeRO-3 a rank's share, and what is gathered, with the buffer it arrives in."""
    if sharding.stage < 3:
        return b * geometry.parameters
    live = min(geometry.parameters, _MOST_GATHERED)
    arriving = min(live, max(geometry.head_parameters, _PREFETCHED))
    return b * geometry.parameters // sharding.ranks + b * (live + arriving)


def gradients(trainable: int, sharding: Sharding, b: int) -> int:
    """Float32 under ZeRO-0, twice with DistributedDataParallel's buckets; else a rank's share and reduce buckets."""
    if sharding.stage == 0:
        return 4 * trainable * (2 if sharding.ranks > 1 else 1)
    return b * trainable // sharding.ranks + b * sharding.bucket * sharding.buckets


def optimiser(trainable: int, sharding: Sharding) -> int:
    """AdamW. Under ZeRO-0 two moments, as the weights are float32 already; else a rank's share, and those weights."""
    if sharding.stage == 0:
        return 8 * trainable
    return _ADAM_BYTES * trainable // sharding.ranks


def step_copy(trainable: int, sharding: Sharding, b: int) -> int:
    """Float32 gradients while the optimiser steps, when activations are gone: in groups under ZeRO-3; under ZeRO-2 all,
    laid side by side before.
    """
    share = trainable // sharding.ranks
    match sharding.stage:
        case 0:
            return 0
        case 2:
            return (4 + b) * share
    return 4 * min(share, _STEP_GROUP)


def layer_kept(geometry: Geometry, b: int) -> int:
    """Bytes a token that one decoder layer keeps for its backward pass.

    Two norms: a float32 copy of the input, the normed, the weighted. Attention: queries and output, keys and values,
    sums of its heads, rotary cosines and sines. MLP: gate, its SiLU, up, their product.
    """
    norms = (8 + 4 * b) * geometry.hidden
    attention = 2 * b * (geometry.hidden + geometry.kv_width + geometry.head_size) + 4 * geometry.heads
    return norms + attention + 4 * b * geometry.intermediate


def adapters_kept(geometry: Geometry, rank: int, adapter_bytes: int) -> int:
    """Bytes a token that adapters on all linear layers add to ``layer_kept``: 7 ranks; in float32 also 4I + 6H."""
    copies = 4 * geometry.intermediate + 6 * geometry.hidden if adapter_bytes == 4 else 0
    return 7 * adapter_bytes * rank + copies


def layer_backward(geometry: Geometry, b: int) -> int:
    """Bytes a token on top of ``layer_kept`` on the way back: gradients of output and MLP, tables of three axes."""
    return b * (geometry.hidden + 2 * geometry.intermediate + 6 * geometry.head_size)


def vision_frozen(geometry: Geometry, b: int) -> int:
    """Bytes a patch that a frozen vision tower holds: pixels twice, and the larger of attention and MLP of one block.

    In attention queries and keys are turned in float32, part by part, by tables.
    """
    h, i = geometry.vision.hidden, geometry.vision.intermediate
    tables = 24 * h // geometry.vision.heads
    return (4 + b) * geometry.vision.patch_values + tables + max(32 * h, 8 * h + 3 * b * i)


def vision_trained(geometry: Geometry, b: int, *, checkpointing: bool) -> int:
    """Bytes a patch of a vision tower that trains: pixels, inputs of all blocks, one block anew on its way back.

    A block is like a decoder layer, with 20h more for queries and keys that are turned in float32.
    """
    h, i, depth = geometry.vision.hidden, geometry.vision.intermediate, geometry.vision.depth
    block = (8 + 4 * b) * h + 20 * h + 4 * b * h + 4 * b * i
    kept = depth * b * h + block if checkpointing else depth * block
    return (4 + b) * geometry.vision.patch_values + kept + b * (h + 2 * i)


def training_activations(
    geometry: Geometry, batch: MicroBatch, b: int, *, checkpointing: bool, vision_trains: bool, reduced: bool
) -> int:
    """The larger of two moments of the backward pass, gradients under way included (``reduced``: they are not kept).

    At the loss: what all layers keep, the last norm, and all on the logits or, later, their gradient and that of the
    head. In the last layer: what all layers keep, one layer anew, and the gradient of its largest matrix.
    """
    t, hidden = batch.tokens, geometry.hidden
    one = (layer_kept(geometry, b) + batch.adapters) * t
    kept = geometry.layers * (b * hidden * t if checkpointing else one)
    last_norm = (4 + 2 * b) * hidden * t
    logits = batch.samples * batch.logits * geometry.vocabulary
    head, matrix = (b * geometry.head_parameters, b * hidden * geometry.intermediate) if reduced else (0, 0)
    at_loss = kept + last_norm + max(batch.logit_bytes * logits, b * logits + head)
    in_layer = kept + (one if checkpointing else 0) + layer_backward(geometry, b) * t + matrix
    # The gradient of a tied head waits for the one of the embedding, and both are added up.
    language = max(at_loss, in_layer, 3 * head if geometry.tied else 0)
    if vision_trains:
        return language + vision_trained(geometry, b, checkpointing=checkpointing) * batch.patches
    return max(language, vision_frozen(geometry, b) * batch.patches)


@dataclass(frozen=True)
class Training:
    """What one rank trains: a weight is kept in ``held`` bytes and used in ``b``."""

    geometry: Geometry
    sharding: Sharding
    batch: MicroBatch
    trainable: int
    b: int
    held: int
    checkpointing: bool
    vision_trains: bool
    adapter_bytes: int = 0  # of a weight that trains and is none of the model's own

    @property
    def adapters(self) -> int:
        """Bytes of them on one rank."""
        return self.adapter_bytes * self.trainable // (self.sharding.ranks if self.sharding.stage == 3 else 1)

    @property
    def reduced(self) -> bool:
        """Head and matrices have gradients, which adapters leave them without, and they leave as they come."""
        return self.sharding.stage > 0 and self.trainable >= self.geometry.language_parameters


def training(made: Training) -> Memory:
    """One rank of a training at its peak: in the backward pass, or while the optimiser steps."""
    sharding, b = made.sharding, made.b
    how = {"checkpointing": made.checkpointing, "vision_trains": made.vision_trains, "reduced": made.reduced}
    activations = training_activations(made.geometry, made.batch, b, **how)
    if made.held > b:
        activations += b * made.geometry.parameters  # the casts stay until the forward pass is over
    return Memory(
        weights=weights(made.geometry, sharding, made.held) + made.adapters,
        gradients=gradients(made.trainable, sharding, made.held),
        optimiser=optimiser(made.trainable, sharding),
        activations=max(activations, step_copy(made.trainable, sharding, b)),
    )
