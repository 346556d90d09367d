"""Tiny reward models for tests: a random one, and one that always answers in the right form."""

import functools
import shutil
import tempfile
from pathlib import Path

from egt_pipeline.tiny_model import build_tiny_model

# What the judge says, token by token; the last token of every prompt is the line break of the chat template.
_SPEECH = ("<think>", "</think>", "<answer>", None, "</answer>", "<|im_end|>")
_MODELS = tempfile.TemporaryDirectory(prefix="egt-models-")


def model_folder(name: str) -> Path:
    """Where a model lies that the tests of this process share; gone when the process ends."""
    return Path(_MODELS.name) / name


@functools.cache
def random_model() -> Path:
    """A random Qwen2.5-VL of 0.1 million weights; shared by all tests, so never write into it."""
    folder = model_folder("random")
    build_tiny_model(folder, hidden=64, vision_hidden=64, layers=1)
    return folder


@functools.cache
def judge_model() -> Path:
    """A model that says <think></think><answer>d</answer>, with d and its probability depending on the whole prompt.

    Each token of the speech has a direction of its own, which the head maps to the next token; what attention gathers
    from the prompt is added to it and decides between the two digits.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = copy_of(random_model(), model_folder("judge"))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    embedding, head = model.get_input_embeddings().weight.data, model.get_output_embeddings().weight.data
    digits = tokenizer.convert_tokens_to_ids(["1", "2"])
    now = [tokenizer.encode("\n")[-1]]
    head.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
    for place, token in enumerate(_SPEECH):
        following = digits if token is None else [tokenizer.convert_tokens_to_ids(token)]
        for id_ in now:
            embedding[id_] = 4 * torch.nn.functional.one_hot(torch.tensor(place), embedding.shape[1])
        head[following, place] += 6
        now = following
    head[digits[0]] = -head[digits[1]]
    # Both digits alike but for what was gathered; tuned so that about half of the answers are "1".
    head[digits, _SPEECH.index(None)] = torch.tensor([5.88, 6.0])
    for layer in model.model.language_model.layers:
        layer.self_attn.o_proj.weight.data *= 60
    model.save_pretrained(folder)
    return folder


def copy_of(model: Path, target: Path) -> Path:
    """A copy of ``model`` to change."""
    return shutil.copytree(model, target)
