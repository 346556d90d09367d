"""What loads a reward model and generates with it: one interface, several implementations."""

import importlib.util
from pathlib import Path
from typing import Any

from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.recipes import EvaluateRecipe, ProbeRecipe
from egt_pipeline.engines.interface import Engine


def open_engine(recipe: ProbeRecipe | EvaluateRecipe, model_dir: Path, *, max_images: int) -> Engine:
    """The model of ``model_dir``, ready to generate; ``auto`` is vLLM on a machine with a GPU, else transformers.

    ``max_images`` is what no request has more of. Raises TaskError for an engine or an architecture that is not
    supported, ArtifactError if the model is incomplete.
    """
    settings: Any = {"precision": recipe.precision, "prompt": recipe.prompt, "batch_size": recipe.batch_size}
    # Here, as both take seconds to import and prepare or curate never need them.
    if recipe.engine == "vllm" or (recipe.engine == "auto" and _is_for_vllm()):
        if importlib.util.find_spec("vllm") is None:
            raise TaskError("engine: 'vllm' is not installed here; install egt[probe], or use 'transformers' or 'auto'")
        from egt_pipeline.engines.vllm_engine import VllmEngine

        return VllmEngine(model_dir, max_images=max_images, **settings)
    from egt_pipeline.engines.transformers_engine import TransformersEngine

    return TransformersEngine(model_dir, **settings)


def _is_for_vllm() -> bool:
    import torch

    return torch.cuda.is_available() and importlib.util.find_spec("vllm") is not None
