"""What loads a reward model and generates with it: one interface, several implementations."""

from pathlib import Path
from typing import Literal

from egt_pipeline.contract.base import PromptId
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.engines.interface import Engine

EngineKind = Literal["auto", "transformers", "vllm"]
Precision = Literal["float32", "bfloat16"]


def open_engine(kind: EngineKind, model_dir: Path, precision: Precision, prompt: PromptId, batch_size: int) -> Engine:
    """The model of ``model_dir``, ready to generate.

    Raises TaskError for an engine or an architecture that is not supported, ArtifactError if the model is incomplete.
    """
    if kind == "vllm":
        raise TaskError("engine: 'vllm' is not supported yet; use 'transformers' or 'auto'")
    # Here, as it takes seconds to import and prepare or curate never need it.
    from egt_pipeline.engines.transformers_engine import TransformersEngine

    return TransformersEngine(model_dir, precision=precision, prompt=prompt, batch_size=batch_size)
