"""Whether a model can be used at all, seen from its files: before a teacher is paid, and hours before sft.

Nothing is loaded: files are there and whole, and what stages look for stands in them.
"""

import json
from pathlib import Path
from typing import Any

from egt_pipeline.contract.data import MODEL_TYPE
from egt_pipeline.contract.errors import TaskError

# Of a model on the hub, what the check reads.
CHECKED_FILES = ["config.json", "tokenizer.json"]
_QUANTIZED = ("quantization_config", "compression_config")  # where vLLM and transformers look
_TOKENS = {
    "1": "which the answer is read from",
    "2": "which the answer is read from",
    "<|image_pad|>": "which stands for a picture",
    "<|im_end|>": "which ends a response",
}
# Any of them will do: names changed with transformers' versions.
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_IMAGE_PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def check_model(folder: Path, field: str) -> None:
    """Check the ``CHECKED_FILES``. Raises TaskError, beginning with ``field``, if no stage could use such a model."""
    config = _json(folder / "config.json", field)
    place = f"{field}: {folder}/config.json"
    if "auto_map" in config:
        raise TaskError(f"{place} has auto_map; models that bring their own code are not run")
    if (found := config.get("model_type")) != MODEL_TYPE:
        raise TaskError(f"{place} has model_type {found!r}; {MODEL_TYPE!r} is supported")
    if not isinstance(config.get("vision_config"), dict):
        raise TaskError(f"{place} has no vision_config that is an object; the model must see pictures")
    for part in (config, config.get("text_config") or {}):
        for name in _QUANTIZED:
            if part.get(name):
                raise TaskError(
                    f"{place} has a {name}; weights as they were trained are needed, as each engine has kernels of its "
                    "own for quantized ones, and rl trains none"
                )
    known = _vocabulary(folder, field)
    for token, use in _TOKENS.items():
        if token not in known:
            raise TaskError(f"{field}: {folder}/tokenizer.json has no token {token!r}, {use}")


def check_files(folder: Path, field: str) -> None:
    """Check what a folder must hold besides: weights that are whole, a chat template, an image processor.

    Raises TaskError, beginning with ``field``.
    """
    from safetensors import SafetensorError, safe_open

    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise TaskError(f"{field}: {folder} holds no *.safetensors; weights in any other format are not read")
    for path in weights:
        try:
            with safe_open(path, "np"):  # reads the header, and compares the file's length with it
                pass
        except SafetensorError as error:
            raise TaskError(f"{field}: {path} is damaged: {error}") from None
    # tokenizer.json is read already, and large.
    read = {path.name: _json(path, field) for path in sorted(folder.glob("*.json")) if path.name != "tokenizer.json"}
    if not any((folder / name).is_file() for name in _IMAGE_PROCESSORS):
        raise TaskError(f"{field}: {folder} has no image processor: none of {', '.join(_IMAGE_PROCESSORS)} is there")
    in_tokenizer = "chat_template" in read.get("tokenizer_config.json", {})
    if not in_tokenizer and not any((folder / name).is_file() for name in _TEMPLATES):
        raise TaskError(f"{field}: {folder} has no chat template: none of {', '.join(_TEMPLATES)} is there")


def _json(path: Path, field: str) -> dict[str, Any]:
    if not path.is_file():
        raise TaskError(f"{field}: {path.parent} has no {path.name} (relative paths start at {Path.cwd()})")
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise TaskError(f"{field}: {path} is damaged: {error}") from None
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
        raise TaskError(f"{field}: {path} is damaged: {error}") from None
    return found
