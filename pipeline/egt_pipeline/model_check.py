"""Whether a model can be used at all, seen from its small files: before a teacher is paid, and hours before sft."""

import json
from pathlib import Path
from typing import Any

from egt_pipeline.contract.errors import TaskError

# Of a model on the hub, what the check reads.
CHECKED_FILES = ["config.json", "tokenizer.json"]
_SUPPORTED = "qwen2_5_vl"
_QUANTIZED = ("quantization_config", "compression_config")  # where vLLM and transformers look
_DIGITS = ("1", "2")  # one of them is the answer, and a token


def check_model(folder: Path, field: str) -> None:
    """Raises TaskError, beginning with ``field``, for a model that no stage could train or measure."""
    config = _config(folder, field)
    if "auto_map" in config:
        raise TaskError(f"{field}: {folder}/config.json has auto_map; models that bring their own code are not run")
    if (found := config.get("model_type")) != _SUPPORTED:
        raise TaskError(f"{field}: {folder}/config.json has model_type {found!r}; {_SUPPORTED!r} is supported")
    if not config.get("vision_config"):
        raise TaskError(f"{field}: {folder}/config.json has no vision_config; the model must see pictures")
    for part in (config, config.get("text_config") or {}):
        for name in _QUANTIZED:
            if part.get(name):
                raise TaskError(
                    f"{field}: {folder}/config.json has a {name}; weights as they were trained are needed, as each "
                    "engine has kernels of its own for quantized ones, and rl trains none"
                )
    missing = [digit for digit in _DIGITS if digit not in _vocabulary(folder, field)]
    if missing:
        raise TaskError(
            f"{field}: {folder}/tokenizer.json has no token for {missing}, which the answer is read from; each of "
            f"{list(_DIGITS)} must be a token"
        )


def _config(folder: Path, field: str) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise TaskError(f"{field}: {folder} has no config.json (relative paths start at {Path.cwd()})")
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TaskError(f"{field}: {path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise TaskError(f"{field}: {path} holds no JSON object")
    return found


def _vocabulary(folder: Path, field: str) -> dict[str, int]:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TaskError(f"{field}: {folder} has no tokenizer.json")
    try:
        found: dict[str, int] = Tokenizer.from_file(str(path)).get_vocab()
    except Exception as error:  # the library raises no narrower kind
        raise TaskError(f"{field}: {path} cannot be read: {error}") from None
    return found
