"""Sources of preferences as users bring them: a table, pictures beside it, and whatever is wrong with a row."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from egt_pipeline.contract.recipes import PrepareRecipe


def png(shade: int = 0, side: int = 8) -> bytes:
    """A grey picture."""
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (shade % 256, shade // 256 % 256, 0)).save(stream, "PNG")
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be this large and holds nothing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + body + b"\x00\x00\x00\x00IEND\xaeB`\x82"


def row(number: int, **changes: Any) -> dict[str, Any]:
    """A good row; a change to None removes nothing, ``...`` removes the column."""
    found = {
        "sample_id": f"s-{number:03d}",
        "images": [f"images/{number}.png"],
        "question": "Which digit is this?",
        "answer_1": f"first {number}",
        "answer_2": f"second {number}",
        "label": 1 + number % 2,
    }
    return {name: value for name, value in (found | changes).items() if value is not ...}


def write_source(folder: Path, rows: list[dict[str, Any] | str], name: str = "data.jsonl") -> Path:
    """The path of a JSONL source with a picture for each row; a text is written as the line it is."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in range(len(rows)):
        (folder / "images" / f"{number}.png").write_bytes(png(number))
    lines = (line if isinstance(line, str) else json.dumps(line) for line in rows)
    path = folder / name
    path.write_text("\n".join(lines))
    return path


def write_model(folder: Path) -> Path:
    """A directory that prepare takes for a model."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "vision_config": {"depth": 1}}))
    tokens = ("1", "2", "<|image_pad|>", "<|im_end|>", "?")
    words = {token: number for number, token in enumerate(tokens)}
    vocabulary = {"type": "WordLevel", "vocab": words, "unk_token": "?"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": vocabulary}))
    (folder / "processor_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    save_file({"weights": np.zeros(1)}, folder / "model.safetensors")
    return folder


def recipe_of(tmp_path: Path, source: Path, **changes: Any) -> PrepareRecipe:
    """A recipe that reads ``source`` as rl data, and a good small source as sft data."""
    good = write_source(tmp_path / "good", [row(number) for number in range(4)])
    rl = {"source": str(source), **changes.pop("rl", {})}
    data = {"sft": {"source": str(good), "answerOrder": "given"}, "rl": rl}
    return PrepareRecipe.model_validate(
        {"model": {"source": str(write_model(tmp_path / "model"))}, "data": data, "maxBadShare": 0.9, **changes}
    )
