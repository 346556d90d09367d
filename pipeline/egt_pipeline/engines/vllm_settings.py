"""Every option of vLLM that could move a number: what it is told, and where a running worker says what it has.

Most values are vLLM's own defaults. They stand here because a default may depend on the device or the model (tokens
computed together, the type of the cache) and may change with a version, and because a worker is asked for each of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from egt_pipeline.contract.errors import TaskError


@dataclass(frozen=True)
class Setting:
    """One option: its value, its place in vLLM's own configuration, and what is read there unless it is the value."""

    value: Any
    path: str
    reads: str | None = None

    @property
    def expected(self) -> str:
        """What a worker that follows the option says."""
        return said(self.value) if self.reads is None else self.reads


def settings(*, precision: str, eager: bool, prefill_tokens: int) -> dict[str, Setting]:
    """By the names of ``EngineArgs``. What is named here is told, checked after the start, and recorded."""
    return {
        "dtype": Setting(precision, "model_config.dtype"),
        # bfloat16 logits have steps of 0.1, which makes entropies tie.
        "hf_overrides": Setting({"head_dtype": "float32"}, "model_config.head_dtype", "float32"),
        # None is whatever the model's own configuration says, and has to come out as None.
        "quantization": Setting(None, "model_config.quantization"),
        # The model's own type: vLLM has no other name for float32. A quantized cache reads differently.
        "kv_cache_dtype": Setting("auto", "cache_config.cache_dtype"),
        # vLLM's implementation of the model; "auto" may fall back to transformers', which the audit compares it with.
        "model_impl": Setting("vllm", "model_config.model_impl"),
        "load_format": Setting("safetensors", "load_config.load_format"),
        "generation_config": Setting("vllm", "model_config.generation_config"),  # none: Qwen2.5 ships a penalty
        "logprobs_mode": Setting("raw_logprobs", "model_config.logprobs_mode"),  # what the self-test compares with
        # All generations of a row have one prompt, whose keys are computed once. It moves results by rounding.
        "enable_prefix_caching": Setting(True, "cache_config.enable_prefix_caching"),
        "enable_chunked_prefill": Setting(True, "scheduler_config.enable_chunked_prefill"),
        "max_num_batched_tokens": Setting(prefill_tokens, "scheduler_config.max_num_batched_tokens"),
        "async_scheduling": Setting(False, "scheduler_config.async_scheduling"),  # a step has to know what came before
        "speculative_config": Setting(None, "speculative_config"),  # a guessed token has no measured distribution
        "tensor_parallel_size": Setting(1, "parallel_config.tensor_parallel_size"),  # sums are split among ranks
        "pipeline_parallel_size": Setting(1, "parallel_config.pipeline_parallel_size"),
        "data_parallel_size": Setting(1, "parallel_config.data_parallel_size"),
        "disable_cascade_attn": Setting(True, "model_config.disable_cascade_attn"),  # vLLM calls it less exact
        "mm_encoder_attn_dtype": Setting(None, "model_config.multimodal_config.mm_encoder_attn_dtype"),
        "mm_processor_kwargs": Setting(None, "model_config.multimodal_config.mm_processor_kwargs"),
        "enforce_eager": Setting(eager, "model_config.enforce_eager"),
    }


def said(value: Any) -> str:
    """A value as text that is the same for a type of torch, an enum and their names."""
    return str(getattr(value, "value", value)).removeprefix("torch.")


def check(wanted: Mapping[str, Setting], found: Mapping[str, str]) -> None:
    """Raises TaskError naming each option that a worker does not follow."""
    others = [
        f"{name} {found[name]} (told {one.expected})" for name, one in wanted.items() if found[name] != one.expected
    ]
    if others:
        raise TaskError(
            f"engine: vllm runs with {', '.join(others)}; nothing measured under other settings is kept. If "
            "the model's config.json asks for them, take them out, or use engine: transformers"
        )
