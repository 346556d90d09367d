"""How long the work of a stage takes on a GPU, in seconds, as a low and a high figure: pure functions of a Pace.

A floating-point operation is a multiplication or an addition: a weight costs 2 a token forward, 4 backward, and 2 more
where gradient checkpointing computes the layer again (Kaplan et al., arXiv 2001.08361, section 2.1). A decoding step
takes as long as reading all weights and the cache, or as computing: whichever is longer.
"""

from dataclasses import dataclass

from egt_operator.generation_memory import kv_cache
from egt_operator.geometry import Geometry
from egt_operator.gpus import Gpu


@dataclass(frozen=True)
class Pace:
    """One end of the range: the GPU, the shares of its peak that are reached, and how full samples are."""

    gpu: Gpu
    compute_share: float
    bandwidth_share: float
    layer_seconds: float  # of one layer in one decoding step, however small: the time to launch it
    length_share: float  # of the longest sample, that samples have on average


# 25 to 50 % of the peak is what published trainings and servers of such models reach. Lengths and launch times are
# guesses: transformers launches some 15 kernels a layer one by one, vLLM replays a recorded graph.
IMAGE_SHARE = 0.75  # of the tokens of a prompt
PATCHES = 4  # of a picture for one token
_LAUNCH_SECONDS = {"transformers": (2e-4, 1e-3), "vllm": (2e-5, 1e-4)}


def paces(speeds: tuple[Gpu, ...], engine: str) -> tuple[Pace, Pace]:
    """The fast end and the slow end for these GPUs and the engine that generates."""
    launch = _LAUNCH_SECONDS[engine]
    fast = max(speeds, key=lambda gpu: (gpu.tflops, gpu.bandwidth_tb))
    slow = min(speeds, key=lambda gpu: (gpu.tflops, gpu.bandwidth_tb))
    return Pace(fast, 0.5, 0.5, launch[0], 0.25), Pace(slow, 0.25, 0.25, launch[1], 0.5)


def forward_flops(geometry: Geometry, length: float, logits: float, pictures: float) -> float:
    """One sample forward: 2 a weight and token, causal attention 2nH t^2, the head where logits are, the tower."""
    language = 2 * geometry.layers * (geometry.layer_parameters * length + geometry.hidden * length**2)
    return language + 2 * geometry.head_parameters * logits + vision_flops(geometry, pictures)


def vision_flops(geometry: Geometry, picture_tokens: float) -> float:
    """The vision tower forward: 2 a weight and patch; its attention stays within small windows and is left out."""
    return 2 * geometry.vision_parameters * PATCHES * picture_tokens


def training_seconds(
    geometry: Geometry, pace: Pace, *, samples: int, length: int, vision_trains: bool, checkpointing: bool
) -> float:
    """One GPU's time to train on all ``samples``: 3 or, with gradient checkpointing, 4 times the forward pass.

    All tokens are counted with logits. In sft prompts have none, but the head is small beside the layers.
    """
    t, pictures = length * pace.length_share, length * pace.length_share * IMAGE_SHARE
    passes = 4 if checkpointing else 3
    tower = vision_flops(geometry, pictures)
    language = forward_flops(geometry, t, t, pictures) - tower
    flops = passes * language + tower * (passes if vision_trains else 1)
    return samples * flops / (pace.gpu.tflops * 1e12 * pace.compute_share)


def scoring_seconds(geometry: Geometry, pace: Pace, *, samples: int, length: int) -> float:
    """One GPU's time for one forward pass with all logits: the log-probabilities of rollouts."""
    t = length * pace.length_share
    flops = forward_flops(geometry, t, t, t * IMAGE_SHARE)
    return samples * flops / (pace.gpu.tflops * 1e12 * pace.compute_share)


def generation_seconds(
    geometry: Geometry, pace: Pace, *, samples: int, prompt: int, new: int, at_once: int, b: int
) -> float:
    """One GPU's time to generate ``samples`` responses, ``at_once`` together: prompts first, then token by token."""
    prompt_tokens, new_tokens = prompt * pace.length_share, new * pace.length_share
    flops, bandwidth = pace.gpu.tflops * 1e12 * pace.compute_share, pace.gpu.bandwidth_tb * 1e12 * pace.bandwidth_share
    prefill = forward_flops(geometry, prompt_tokens, 1, prompt_tokens * IMAGE_SHARE) / flops
    read = geometry.layers * geometry.layer_parameters + geometry.head_parameters
    cache = kv_cache(geometry, int(prompt_tokens + new_tokens / 2), b)
    step = max((b * read + at_once * cache) / bandwidth, 2 * read * at_once / flops)
    step += geometry.layers * pace.layer_seconds
    return samples * prefill + -(-samples // at_once) * new_tokens * step
