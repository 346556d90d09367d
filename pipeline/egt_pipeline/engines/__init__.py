"""What loads a reward model and generates with it: one interface, several implementations."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.recipes import EvaluateRecipe, ProbeRecipe
from egt_pipeline.engines.interface import Engine


def open_engine(recipe: ProbeRecipe | EvaluateRecipe, model_dir: Path, *, max_images: int) -> Engine:
    """The model of ``model_dir``, ready to generate; ``auto`` is vLLM on a machine with a GPU, else transformers.

    ``max_images`` is what no request has more of. Raises TaskError for an engine or an architecture that is not
    supported and for a quantized model, ArtifactError if the model is incomplete.
    """
    _refuse_quantized(model_dir)
    settings: Any = {"precision": recipe.precision, "prompt": recipe.prompt, "batch_size": recipe.batch_size}
    # Here, as both take seconds to import and prepare or curate never need them.
    if recipe.engine == "vllm" or (recipe.engine == "auto" and _is_for_vllm()):
        if importlib.util.find_spec("vllm") is None:
            raise TaskError("engine: 'vllm' is not installed here; install egt[probe], or use 'transformers' or 'auto'")
        from egt_pipeline.engines.vllm_engine import VllmEngine

        return VllmEngine(model_dir, max_images=max_images, **settings)
    from egt_pipeline.engines.transformers_engine import TransformersEngine

    return TransformersEngine(model_dir, **settings)


def _refuse_quantized(model_dir: Path) -> None:
    """Each engine has kernels of its own for quantized weights, which differ by more than rounding; rl trains none."""
    file = model_dir / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}  # what is missing is for the loader to say
    for part in (config, config.get("text_config") or {}):
        for name in ("quantization_config", "compression_config"):  # where vLLM and transformers look
            if part.get(name):
                method = part[name].get("quant_method", "of an unnamed method")
                raise TaskError(
                    f"model: its config.json has a {name} ({method}); weights as they were trained are needed"
                )


def _is_for_vllm() -> bool:
    import torch

    return torch.cuda.is_available() and importlib.util.find_spec("vllm") is not None
