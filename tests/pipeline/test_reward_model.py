import hashlib
import json
from pathlib import Path

import pytest

from build_model import copy_of, random_model
from egt_pipeline.contract.errors import ArtifactError
from egt_pipeline.reward_model import load_model, load_processor, resolve_model


def _prepared(model: Path, folder: Path) -> Path:
    """A prepare artifact with the record of ``model``."""
    files = [
        {
            "path": path.relative_to(model).as_posix(),
            "size_bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(model.rglob("*"))
    ]
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps({"source": str(model), "revision": None, "files": files}))
    return folder


def test_a_model_as_prepare_saw_it_is_found_and_loads(tmp_path: Path) -> None:
    model = resolve_model(_prepared(random_model(), tmp_path / "prepared"))
    assert load_processor(model).tokenizer.convert_tokens_to_ids("<|im_end|>") is not None
    assert {str(weight.dtype) for weight in load_model(model, "bfloat16").parameters()} == {"torch.bfloat16"}


def test_one_flipped_bit_in_the_weights_is_named(tmp_path: Path) -> None:
    model = copy_of(random_model(), tmp_path / "model")
    prepared = _prepared(model, tmp_path / "prepared")
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(ArtifactError, match=r"model\.safetensors: changed since prepare read it"):
        resolve_model(prepared)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    model = copy_of(random_model(), tmp_path / "model")
    prepared = _prepared(model, tmp_path / "prepared")
    (model / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: is missing"):
        resolve_model(prepared)


def test_a_record_cannot_point_outside_of_the_model(tmp_path: Path) -> None:
    file = {"path": "../secret", "size_bytes": 1, "sha256": "0"}
    (tmp_path / "model.json").write_text(json.dumps({"source": str(tmp_path), "revision": None, "files": [file]}))
    with pytest.raises(ArtifactError, match="not a plain relative path"):
        resolve_model(tmp_path)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    model = copy_of(random_model(), tmp_path / "model")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=r"holds no \*\.safetensors"):
        load_model(model, "float32")


def test_a_model_without_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no processor that loads"):
        load_processor(tmp_path)
