"""Inputs of the rl stage: a tiny model that already answers in form, preferences with pictures, a selection."""

import functools
import io
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from build_model import model_folder
from egt_pipeline.preferences import write_images, write_preferences
from egt_pipeline.prompts import messages

QUESTION = "Which digit is this?"
_THOUGHT = "<think>The first says four,{}. The second says 7,{}.</think><answer>{}</answer>"
RESPONSES = (_THOUGHT.format(" right", " wrong", 1), _THOUGHT.format(" wrong", " right", 2))
# Python runs this at the start of every process of a run: it changes our module once it is imported.
CHANGE = """
import importlib.abc, importlib.util, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "egt_pipeline.openrlhf_entry.training":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            change(module)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""
FORCE_OUTLIERS = """
def change(module):
    forward = module.PreClipLoss.forward
    def changed(self, log_probs, old_log_probs, advantages, **rest):
        old = old_log_probs.clone()
        old[0, :] -= 10.0  # a ratio of e^10, beyond the pre-clip's 1e3
        return forward(self, log_probs, old, advantages, **rest)
    module.PreClipLoss.forward = changed
"""
SHUFFLE = """
def change(module):
    from torch.utils.data import DataLoader
    module.InOrder = lambda data, **given: DataLoader(data, **{**given, "shuffle": True, "drop_last": False})
"""

NO_ENGINE = """
def change(module):
    import vllm
    def broken(*_, **__):
        raise RuntimeError("no kernel for this machine")
    vllm.AsyncLLMEngine.from_engine_args = broken
"""


def put_in_place(change: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every process of a run change our module so."""
    (folder / "change").mkdir()
    (folder / "change" / "sitecustomize.py").write_text(change + CHANGE)
    monkeypatch.setenv("PYTHONPATH", str(folder / "change"), prepend=os.pathsep)


_SELECTION = pa.schema(
    [
        ("row", pa.int64()),
        ("sample_id", pa.string()),
        ("rank", pa.int64()),
        ("score", pa.float64()),
        ("decision", pa.string()),
        ("reason", pa.string()),
    ]
)


def picture(shade: int) -> bytes:
    """A PNG of 28 x 28."""
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28), (shade, shade, shade)).save(buffer, format="PNG")
    return buffer.getvalue()


def build_rl_inputs(folder: Path, *, kept: int, dropped: int, model: Path) -> dict[str, Path]:
    """Inputs of the stage. Sample ids are ``s00``, ``s01``, ...; the ranks run against the rows, so ``s00`` is last."""
    data, selection, sft = folder / "data", folder / "selection", folder / "sft"
    for path in (data / "rl", selection, sft):
        path.mkdir(parents=True)
    (sft / "model").symlink_to(model)
    count = kept + dropped
    write_preferences(data / "rl", [_preference(row) for row in range(count)])
    write_images(data / "rl", ((f"image{row}", picture(20 * row)) for row in range(count)), file_bytes=2**20)
    rows = [
        {
            "row": row,
            "sample_id": f"s{row:02d}",
            "rank": count - 1 - row,
            "score": float(count - row),
            "decision": "dropped" if row < dropped else "kept",
            "reason": "",
        }
        for row in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=_SELECTION), selection / "selection.parquet")
    return {"data": data, "model": sft, "selection": selection}


def _preference(row: int) -> dict[str, object]:
    return {
        "row": row,
        "sample_id": f"s{row:02d}",
        "images": [f"image{row}"],
        "question": QUESTION,
        "answer_1": "four",
        "answer_2": "7",
        "label": 1 + row % 2,
        "source": "default",
        "strength": None,
        "answer_order": "12",
        "subset": None,
        "group": None,
        "response": None,
        "status": "ok",
        "reason": "",
    }


@functools.cache
def speaking_model() -> Path:
    """A tiny model that answers with one of ``RESPONSES``, by the toss of a coin; shared, so never write into it."""
    import torch
    from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

    from egt_pipeline.tiny_model import build_tiny_model

    folder = model_folder("speaking")
    build_tiny_model(folder, hidden=64)
    processor = AutoProcessor.from_pretrained(folder)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    prompt = processor.apply_chat_template(
        messages("plain-v1", QUESTION, "four", "7", 1), tokenize=False, add_generation_prompt=True
    )
    shades = [Image.open(io.BytesIO(picture(shade))) for shade in (0, 40, 80, 120)]
    texts = [prompt + response + "<|im_end|>" for response in RESPONSES for _ in shades]
    batch = processor(text=texts, images=shades * len(RESPONSES), padding=True, return_tensors="pt")
    start = len(processor(text=[prompt], images=shades[:1])["input_ids"][0])
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :start] = -100
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        loss = model(**batch, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(folder)
    return folder
