"""What loads a reward model and generates with it: one interface, several implementations."""

import importlib.util
from pathlib import Path
from typing import Literal

from egt_pipeline.contract.base import PromptId
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.engines.interface import Engine

EngineKind = Literal["auto", "transformers", "vllm"]
Precision = Literal["float32", "bfloat16"]


def open_engine(
    kind: EngineKind, model_dir: Path, precision: Precision, prompt: PromptId, *, batch_size: int, max_images: int
) -> Engine:
    """The model of ``model_dir``, ready to generate; ``auto`` is vLLM on a machine with a GPU, else transformers.

    Raises TaskError for an engine or an architecture that is not supported, ArtifactError if the model is incomplete.
    """
    # Here, as both take seconds to import and prepare or curate never need them.
    if kind == "vllm" or (kind == "auto" and _is_for_vllm()):
        if importlib.util.find_spec("vllm") is None:
            raise TaskError("engine: 'vllm' is not installed here; install egt[probe], or use 'transformers' or 'auto'")
        from egt_pipeline.engines.vllm_engine import VllmEngine

        return VllmEngine(model_dir, precision=precision, prompt=prompt, batch_size=batch_size, max_images=max_images)
    from egt_pipeline.engines.transformers_engine import TransformersEngine

    return TransformersEngine(model_dir, precision=precision, prompt=prompt, batch_size=batch_size)


def _is_for_vllm() -> bool:
    import torch

    return torch.cuda.is_available() and importlib.util.find_spec("vllm") is not None
