"""What a process that generates holds at its peak, in bytes: one pure function a formula, whose text is in formulas.py.

tests/operator/test_memory.py compares each with what the engines allocate on a CPU. A GPU's fused kernels keep fewer
copies than are counted here; what they hold instead, and the graphs that vLLM captures, cannot be measured without one.
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


def vllm_activations(geometry: Geometry, tokens: int, patches: int, logits: int, b: int) -> int:
    """One step of vLLM: its pictures, then the MLP of a layer, then ``logits`` bytes beside the last hidden states."""
    layer = b * (5 * geometry.hidden + 4 * geometry.intermediate) * tokens
    return max(vllm_vision(geometry, b) * patches, layer, logits + b * geometry.hidden * tokens)


def vllm_vision(geometry: Geometry, b: int) -> int:
    """Bytes a patch: three copies in float32 as a picture is normalised; or pixels, and attention or MLP of a block."""
    pixels, h, i = geometry.vision.patch_values, geometry.vision.hidden, geometry.vision.intermediate
    return max(12 * pixels, b * pixels + b * max(11 * h, 4 * h + 4 * i))


def probe_logits(geometry: Geometry, samples: int, b: int, *, on_gpu: bool) -> int:
    """Float32 logits and a copy, and what tokens are chosen by: shares, cumulated, in float64, of some at once.

    Without a GPU vLLM makes a float32 copy of the whole head at each step.
    """
    chosen = geometry.vocabulary * (8 * samples + 24 * min(samples, _CHOSEN_AT_ONCE))
    head = 0 if on_gpu or b == 4 else 4 * geometry.vocabulary * (samples + geometry.hidden)
    return max(chosen, head)


def rollout_logits(geometry: Geometry, samples: int, b: int) -> int:
    """Logits, and in float32 logits, log-probabilities, probabilities and random numbers: vLLM's own sampler."""
    return (b + 16) * samples * geometry.vocabulary
