"""The tiny model loads as the large one does, and sees a digit as one token."""

import json

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

from build_model import random_model
from egt_pipeline.prompts import messages
from egt_pipeline.tiny_model import build_tiny_model

_RESPONSE = (
    "<think>The picture shows zero. The first says zero, right. The second says three, wrong.</think><answer>1</answer>"
)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(random_model(), local_files_only=True)


def test_a_picture_of_28_pixels_is_one_token(processor):
    text = processor.apply_chat_template(
        messages("plain-v1", "Which digit is this?", "four", "7", 1), add_generation_prompt=True, tokenize=False
    )
    assert text.count("<|vision_start|><|image_pad|><|vision_end|>") == 1
    batch = processor(text=[text], images=[Image.new("RGB", (28, 28))], return_tensors="pt")
    image_token = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert (batch["input_ids"] == image_token).sum() == 1


def test_the_model_generates_from_a_picture(processor):
    model = AutoModelForImageTextToText.from_pretrained(random_model(), local_files_only=True)
    text = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Which digit is this?<|im_end|>\n"
    batch = processor(text=[text], images=[Image.new("RGB", (28, 28))], return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert ids.shape[1] == batch["input_ids"].shape[1] + 4
    assert model.dtype == torch.float32


def test_tags_and_digits_are_single_tokens_and_survive_decoding(processor):
    tokenizer = processor.tokenizer
    ids = tokenizer.encode(_RESPONSE)
    assert tokenizer.decode(ids, skip_special_tokens=True) == _RESPONSE
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens[-3:] == ["<answer>", "1", "</answer>"]
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("1234")) == ["1", "2", "3", "4"]
    assert len(ids) <= 48


def test_generation_ends_at_the_end_of_the_turn(processor):
    settings = json.loads((random_model() / "generation_config.json").read_text())
    assert processor.tokenizer.convert_tokens_to_ids("<|im_end|>") in settings["eos_token_id"]


def test_equal_seeds_give_equal_bytes_and_another_seed_other_weights(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        build_tiny_model(tmp_path / name, hidden=64, layers=1, seed=seed)
    a, b, c = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in "abc")
    assert a == b
    assert a["model.safetensors"] != c["model.safetensors"]
    assert a["tokenizer.json"] == c["tokenizer.json"]
    with safe_open(tmp_path / "a" / "model.safetensors", framework="pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float32}  # noqa: SIM118
