"""Prepared data, inputs and contexts for the stages that let a model judge."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from build_model import judge_model
from build_pictures import png
from egt_pipeline.context import Context
from egt_pipeline.preferences import write_images, write_preferences
from egt_pipeline.store_file import FileWork

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def row(number: int, **other: Any) -> dict[str, Any]:
    """A usable row of preferences.parquet whose picture is ``png(number)``."""
    found = {
        "row": number,
        "sample_id": f"s-{number:04d}",
        "images": [image_id(png(number))],
        "question": "Which digit is this?",
        "answer_1": WORDS[number * 7 % 10],
        "answer_2": str(number % 10),
        "label": 1 + number % 2,
        "source": "default",
        "strength": None,
        "answer_order": "12" if number % 3 else "21",
        "subset": "clear" if number % 4 < 2 else "degraded",
        "group": "word",
        "response": None,
        "status": "ok",
        "reason": "",
    }
    return found | other


def image_id(image: bytes) -> str:
    """The id of a picture: the SHA-256 of its bytes."""
    return hashlib.sha256(image).hexdigest()


def write_prepared(folder: Path, rows: list[dict[str, Any]], images: Mapping[str, bytes] | None = None) -> Path:
    """``folder`` with these rows and the pictures ``row`` gives them, or other ``images``."""
    folder.mkdir(parents=True)
    write_preferences(folder, rows)
    found = images or {image_id(image): image for image in (png(one["row"]) for one in rows)}
    write_images(folder, iter(found.items()), file_bytes=1 << 20)
    return folder


def model_artifact(folder: Path, model: Path | None = None) -> Path:
    """An artifact of sft or rl around ``model``, the judge unless told otherwise."""
    folder.mkdir(parents=True)
    (folder / "model").symlink_to(model or judge_model())
    return folder


def context(base: Path, worker: int = 0, workers: int = 1, stopping: Callable[[], bool] = lambda: False) -> Context:
    """A worker of an attempt; all contexts of one ``base`` share their work."""
    scratch = base / "scratch" / f"worker-{worker}"
    scratch.mkdir(parents=True, exist_ok=True)
    return Context(scratch, FileWork(base / "work"), {}, worker=worker, workers=workers, stopping=stopping)
