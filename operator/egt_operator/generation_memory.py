"""What a process that generates holds at its peak, in bytes: one pure function a formula, whose text is in formulas.py.

tests/operator/test_memory.py compares each with what engines allocate on a CPU in bfloat16. What a GPU's own kernels
and the graphs that vLLM captures hold is not known here.
"""

from dataclasses import dataclass

from egt_operator.geometry import Geometry
from egt_operator.memory import Memory, vision_frozen

_CHOSEN_AT_ONCE = 32  # responses whose next token the probe chooses together, in float64: set by the pipeline


def kv_cache(geometry: Geometry, tokens: int, b: int) -> int:
    """Keys and values of all layers."""
    return 2 * geometry.layers * geometry.kv_width * b * tokens


@dataclass(frozen=True)
class Prompts:
    """What is generated at once: prompts of at most ``prompt`` tokens, responses of at most ``new``; patches of all."""

    count: int
    prompt: int
    new: int
    patches: int = 0


def prefill_activations(geometry: Geometry, prompts: Prompts, b: int) -> int:
    """What the prompts hold while the MLP of a layer computes, and a mask of length x length."""
    each = b * (5 * geometry.hidden + 3 * geometry.intermediate) + prompts.prompt
    return prompts.count * prompts.prompt * each


def generation(geometry: Geometry, prompts: Prompts, b: int) -> Memory:
    """The transformers engine: weights, a float32 head, the cache, and what two moments add to it.

    While prompts are read: their pictures or ``prefill_activations``, beside a cache that holds no response yet. At the
    last token: the keys of a layer anew beside the old ones, or keys and values of a layer repeated for all heads.
    """
    tokens = prompts.count * (prompts.prompt + prompts.new)
    cache, to_come = kv_cache(geometry, tokens, b), kv_cache(geometry, prompts.count * prompts.new, b)
    reading = max(prefill_activations(geometry, prompts, b), vision_frozen(geometry, b) * prompts.patches) - to_come
    repeated = 2 * b * geometry.hidden * tokens if geometry.kv_heads < geometry.heads else 0
    return Memory(
        weights=b * geometry.parameters + 4 * geometry.head_parameters,
        activations=max(reading, cache // (2 * geometry.layers), repeated),
        kv_cache=cache,
    )


def vllm_activations(geometry: Geometry, tokens: int, pictures: int, logits: int, b: int) -> int:
    """One step of vLLM on so many tokens, and on ``pictures`` tokens of these.

    It computes the pictures; then, beside what came of them, the MLP of a layer; then ``logits`` bytes beside the last
    hidden states.
    """
    seen, last = b * geometry.hidden * pictures, b * geometry.hidden * tokens
    layer = b * (5 * geometry.hidden + 4 * geometry.intermediate) * tokens
    return max(vllm_vision(geometry, b) * 4 * pictures, seen + max(layer, logits + last))


def vllm_vision(geometry: Geometry, b: int) -> int:
    """Bytes a patch: three copies in float32 as a picture is normalised; or pixels, and attention or MLP of a block."""
    pixels, h, i = geometry.vision.patch_values, geometry.vision.hidden, geometry.vision.intermediate
    return max(12 * pixels, b * pixels + b * max(11 * h, 4 * h + 4 * i))


def probe_logits(geometry: Geometry, samples: int, *, sampled: bool, casts_head: bool) -> int:
    """Float32 logits and a copy; where tokens are sampled, shares and their sums in float64 of some at once.

    ``casts_head``: without a GPU vLLM makes a float32 copy of a bfloat16 head at each step.
    """
    chosen = geometry.vocabulary * (8 * samples + (24 * min(samples, _CHOSEN_AT_ONCE) if sampled else 0))
    head = 4 * geometry.vocabulary * (samples + geometry.hidden) if casts_head else 0
    return max(chosen, head)


def rollout_logits(geometry: Geometry, samples: int, b: int) -> int:
    """Logits, and in float32 logits, log-probabilities, probabilities and random numbers: vLLM's own sampler."""
    return (b + 16) * samples * geometry.vocabulary
