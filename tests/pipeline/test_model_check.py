"""Models that can be used, and those of which small files say that they cannot."""

import json
from pathlib import Path
from typing import Any

import pytest

from build_model import random_model
from build_source import write_model
from egt_pipeline.contract.data import ModelSource
from egt_pipeline.contract.errors import TaskError, UnavailableError
from egt_pipeline.model_check import CHECKED_FILES, check_files, check_model
from egt_pipeline.reward_model import files_from_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def changed(folder: Path, file: str, **fields: Any) -> Path:
    """A model with one of its files changed; a field that is None is gone."""
    path = write_model(folder) / file
    found = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))
    return folder


def test_the_tests_own_model_passes() -> None:
    check_model(random_model(), "spec.model.source")
    check_files(random_model(), "spec.model.source")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"model_type": "qwen2"},
            r"spec\.model\.source: .*config\.json has model_type 'qwen2'; 'qwen2_5_vl' is supported",
        ),
        ({"vision_config": None}, r"has no vision_config that is an object; the model must see pictures"),
        ({"vision_config": "yes"}, r"has no vision_config that is an object"),
        ({"quantization_config": {"quant_method": "awq"}}, r"has a quantization_config; weights as they were trained"),
        ({"text_config": {"quantization_config": {"bits": 4}}}, r"has a quantization_config"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, r"has auto_map; models that bring their own code are not run"),
    ],
)
def test_a_model_of_another_kind_is_refused(tmp_path: Path, fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(TaskError, match=expected):
        check_model(changed(tmp_path, "config.json", **fields), "spec.model.source")


def test_a_tokenizer_without_the_answers_digits_is_refused(tmp_path: Path) -> None:
    words = {"type": "WordLevel", "vocab": {"1": 0, "?": 1}, "unk_token": "?"}
    with pytest.raises(TaskError, match=r"tokenizer\.json has no token '2', which the answer is read from"):
        check_model(changed(tmp_path, "tokenizer.json", model=words), "spec.model.source")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_damaged_file_is_named(tmp_path: Path, file: str) -> None:
    (write_model(tmp_path) / file).write_text("{")
    with pytest.raises(TaskError, match=rf"{file} is damaged"):
        check_model(tmp_path, "spec.model.source")


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (write_model(tmp_path) / "tokenizer.json").unlink()
    with pytest.raises(TaskError, match=r"has no tokenizer\.json"):
        check_model(tmp_path, "spec.model.source")


@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        ("model.safetensors", r"holds no \*\.safetensors"),
        ("processor_config.json", r"has no image processor: none of processor_config\.json"),
        ("chat_template.jinja", r"has no chat template: none of chat_template\.jinja"),
    ],
)
def test_a_model_that_misses_a_file_is_refused(tmp_path: Path, gone: str, expected: str) -> None:
    (write_model(tmp_path) / gone).unlink()
    with pytest.raises(TaskError, match=rf"spec\.model\.source: .*{expected}"):
        check_files(tmp_path, "spec.model.source")


@pytest.mark.parametrize("cut", ["model.safetensors", "processor_config.json"])
def test_a_file_that_was_cut_short_is_named(tmp_path: Path, cut: str) -> None:
    path = write_model(tmp_path) / cut
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TaskError, match=rf"{cut} is damaged"):
        check_files(tmp_path, "spec.model.source")


def test_a_chat_template_may_stand_in_the_tokenizers_file(tmp_path: Path) -> None:
    (write_model(tmp_path) / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    check_files(tmp_path, "spec.model.source")


def test_a_name_that_the_hub_cannot_have_is_an_error_of_the_task() -> None:
    with pytest.raises(TaskError, match=r"spec\.model\.source: hf://a/b\.\.c at"):
        files_from_hub(ModelSource(source="hf://a/b..c", revision=COMMIT), CHECKED_FILES)


def test_a_model_of_the_hub_is_checked_by_its_small_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_cache(monkeypatch, tmp_path)
    write_model(tmp_path / "models--org--model" / "snapshots" / COMMIT)
    check_model(
        files_from_hub(ModelSource(source="hf://org/model", revision=COMMIT), CHECKED_FILES), "spec.model.source"
    )


def test_a_hub_that_does_not_answer_is_tried_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_cache(monkeypatch, tmp_path)
    with pytest.raises(UnavailableError, match=r"spec\.model\.source: hf://org/model at 0123456"):
        files_from_hub(ModelSource(source="hf://org/model", revision=COMMIT), CHECKED_FILES)


def in_cache(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have the hub's library know what lies in ``folder`` only."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
