"""Low-rank adapters: put on a model, kept on disk, merged into the weights they were trained beside.

An artifact of sft or rl holds ``model/``, or with ``lora.merge: false`` the ``adapter/`` alone. Its base is what the
stage started from, an input of the same chain with a digest of its own, so both verify. Who loads a model asks
``trained_model`` for its folder and always gets a whole one.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egt_pipeline.contract.errors import ArtifactError
from egt_pipeline.contract.training import LoRA
from egt_pipeline.reward_model import MODEL_FOLDER, load_model, load_processor, resolve_model

ADAPTER_FOLDER = "adapter"  # within the artifacts of sft and rl
_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def targets(lora: LoRA) -> str:
    """What peft takes for a regular expression of the layers to adapt: those of the language model's blocks only."""
    return rf".*\blanguage_model\..*\.({'|'.join(lora.targets)})"


def adapted(model: Any, lora: LoRA, start: Path | None) -> Any:
    """``model`` frozen, with trainable adapters: new ones, which change nothing yet, or those saved in ``start``."""
    from peft import LoraConfig, PeftModel, get_peft_model

    if start is not None:
        return PeftModel.from_pretrained(model, _checked(start), is_trainable=True)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets(lora), bias="none"
    )
    return get_peft_model(model, config)


def finish(out: Path, base: Path, lora: LoRA) -> None:
    """Leave in the artifact ``out``, which holds the adapter of ``base``, what the recipe asks for."""
    adapter = out / ADAPTER_FOLDER
    if lora.merge:
        merge(base, adapter, out / MODEL_FOLDER)
        shutil.rmtree(adapter)
        return
    # Peft writes the path of the base into both; elsewhere it means nothing, and the chain names the base.
    (adapter / "README.md").unlink(missing_ok=True)
    config = json.loads((adapter / _CONFIG).read_text())
    (adapter / _CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": None}, indent=1) + "\n")


def trained_model(artifact: Path, base: Path | None, scratch: Path) -> Path:
    """The folder of the whole model that an artifact of sft or rl stands for.

    Where it holds an adapter, that is a model below ``scratch``: ``base`` with the adapter merged.
    Raises ArtifactError if the artifact holds neither.
    """
    if (artifact / MODEL_FOLDER).is_dir():
        return artifact / MODEL_FOLDER
    if base is None or not (artifact / ADAPTER_FOLDER).is_dir():
        raise ArtifactError(f"{artifact}: holds neither {MODEL_FOLDER}/ nor an {ADAPTER_FOLDER}/ whose base is known")
    target = scratch / "merged" / artifact.name
    if not target.is_dir():
        merge(base, artifact / ADAPTER_FOLDER, target)
    return target


def base_of(inputs: Mapping[str, Path]) -> Path | None:
    """The folder of the model that sft started from, where the chain says that it is needed."""
    return resolve_model(inputs["base"]) if "base" in inputs else None


def merge(base: Path, adapter: Path, target: Path) -> None:
    """Write the model ``base`` with ``adapter`` added to its weights, and its processor, to ``target``.

    Weights keep the type they are stored in; in bfloat16 the sum is rounded to 8 bits. Raises ArtifactError for
    adapters that are incomplete or not finite.
    """
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_model(base, "auto"), _checked(adapter))
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ArtifactError(f"{adapter}: cannot be merged: {error}") from error
    merged.save_pretrained(target)
    load_processor(base).save_pretrained(target)


def _checked(adapter: Path) -> Path:
    """``adapter``, which holds safetensors: peft would go on to a pickle, and then to the hub."""
    if not (adapter / _WEIGHTS).is_file():
        raise ArtifactError(f"{adapter}: holds no {_WEIGHTS}; adapters in any other format are not read")
    return adapter
