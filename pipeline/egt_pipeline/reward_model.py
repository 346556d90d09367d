"""The reward model on disk: a Qwen2.5-VL-style model with its processor, found, verified and loaded."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from egt_pipeline.contract.data import ModelSource
from egt_pipeline.contract.errors import ArtifactError, TaskError, UnavailableError
from egt_pipeline.store import hash_file, safe_path

MODEL_FILE = "model.json"  # written by prepare
MODEL_FOLDER = "model"  # within the artifacts of sft and rl, and of prepare when it has fetched the model
# Weights as safetensors only: every other format is a pickle, which runs code when it is loaded.
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja"]


def resolve_model(prepared: Path) -> Path:
    """The local directory of the model that prepare recorded in ``prepared/model.json``; each file is verified.

    Raises ArtifactError naming the file that is missing or has changed since.
    """
    record = json.loads((prepared / MODEL_FILE).read_text())
    source = ModelSource(source=record["source"], revision=record["revision"])
    if source.source.startswith("hf://"):
        return _from_hub(source)
    folder = prepared / MODEL_FOLDER if record.get("kept") else Path(source.source.removeprefix("file://"))
    for file in record["files"]:
        path = folder / safe_path(file["path"])
        if not path.is_file():
            raise ArtifactError(f"{path}: is missing; prepare has read it, so bring it back or run prepare again")
        sha256, size = hash_file(path)
        if (sha256, size) != (file["sha256"], file["size_bytes"]):
            raise ArtifactError(f"{path}: changed since prepare read it (sha256 {sha256}, was {file['sha256']})")
    return folder


def _from_hub(source: ModelSource) -> Path:
    from huggingface_hub import snapshot_download

    with _hub(source) as name:
        return Path(snapshot_download(name, revision=source.revision, allow_patterns=_HUB_FILES))


def files_from_hub(source: ModelSource, files: Sequence[str]) -> Path:
    """The local directory with these files of a model on the hub, at its revision.

    Raises TaskError when there is no such model, revision or file for us, UnavailableError when the hub is silent.
    """
    from huggingface_hub import hf_hub_download

    with _hub(source) as name:
        paths = [hf_hub_download(name, file, revision=source.revision) for file in files]
    return Path(paths[0]).parent


@contextmanager
def _hub(source: ModelSource) -> Iterator[str]:
    """The hub's name of the model, and its errors as ours."""
    from httpx import HTTPError
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f"spec.model.source: {source.source} at {source.revision}"
    try:
        yield source.source.removeprefix("hf://")
    except LocalEntryNotFoundError as error:  # not in the cache, and the hub cannot be reached
        raise UnavailableError(f"{at}: {error}") from None
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HFValidationError) as error:
        raise TaskError(f"{at}: {error}") from None
    except (HTTPError, ConnectionError) as error:
        raise UnavailableError(f"{at}: {error}") from None


def load_processor(folder: Path) -> Any:
    """Tokenizer, chat template and image processor of the model in ``folder``.

    Raises ArtifactError if none loads, TaskError if it reads no images.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: no processor that loads: {error}") from error
    if getattr(processor, "image_processor", None) is None:
        raise TaskError(f"model: {folder} has a {type(processor).__name__}; a processor with image processor is needed")
    return processor


def load_model(folder: Path, precision: str) -> Any:
    """The model in ``folder`` with weights of type ``precision`` (float32, bfloat16, or auto: as stored), on the CPU.

    Raises ArtifactError if it has no safetensors, TaskError if its architecture is another.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    if not any(folder.glob("*.safetensors")):
        raise ArtifactError(f"{folder}: holds no *.safetensors; weights in any other format are not read")
    model = AutoModelForImageTextToText.from_pretrained(
        folder,
        dtype=precision if precision == "auto" else getattr(torch, precision),
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    if not hasattr(model.model, "get_rope_index"):
        raise TaskError(f"model: {type(model).__name__} is not supported; Qwen2_5_VLForConditionalGeneration is")
    return model
