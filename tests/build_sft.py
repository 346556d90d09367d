"""Training of the sft stage on ten rows with pictures, by a random model."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from build_model import random_model
from egt_pipeline.context import Context
from egt_pipeline.contract.recipes import SFTRecipe
from egt_pipeline.contract.task import Progress
from egt_pipeline.preferences import write_images, write_preferences
from egt_pipeline.stages import sft
from egt_pipeline.store_file import FileWork

ROWS = 10
SPEECH = "The picture shows four. The first says four, right. The second says seven, wrong."
WORDS = SPEECH.split()
RECIPE = SFTRecipe(
    max_steps=5,  # of 4 samples out of 10: two epochs, the third batch reaches over the end of the first
    batch_size=4,
    micro_batch_size=4,
    learning_rate=1e-2,
    precision="float32",
    zero_stage=0,
    freeze_vision=False,
    prompt="plain-v1",
)


def response(number: int) -> str:
    """Responses of different lengths, so that a mean over processes is not a mean over tokens."""
    return f"<think>{' '.join(WORDS[: 1 + number])}</think>\n<answer> {1 + number % 2} </answer>"


def inputs_of(folder: Path, **changes: dict[int, Any]) -> dict[str, Path]:
    """A prepare artifact with rows of one picture each, of two sizes; ``changes`` maps columns to values by row."""
    (folder / "sft").mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps({"source": str(random_model()), "revision": None, "files": []}))
    generator = np.random.default_rng(0)
    pictures, rows = {}, []
    for number in range(ROWS):
        data = io.BytesIO()
        pixels = generator.integers(0, 256, (28, 28 + 28 * (number % 2), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data, "PNG")
        pictures[f"picture-{number}"] = data.getvalue()
        row = {"row": number, "sample_id": f"s-{number}", "images": [f"picture-{number}"], "question": "Which digit?"}
        row |= {
            "answer_1": "four",
            "answer_2": "7",
            "label": 1 + number % 2,
            "answer_order": "12",
            "status": "ok",
            "reason": "",
        }
        row |= {"response": response(number)} | {name: by[number] for name, by in changes.items() if number in by}
        rows.append(row)
    write_preferences(folder / "sft", rows)
    write_images(folder / "sft", iter(pictures.items()), file_bytes=2**20)
    return {"model": folder, "data": folder}


def train(
    folder: Path,
    recipe: SFTRecipe = RECIPE,
    *,
    inputs: dict[str, Path] | None = None,
    processes: int = 1,
    stop_after: int | None = None,
) -> tuple[Path, list[int]]:
    """Run one attempt of the stage; its output, and the steps it told of. Attempts in one folder share their work."""
    steps: list[int] = []

    def progress(told: Progress) -> None:
        steps.append(int(told.done))

    attempt = len(list(folder.glob("out-*")))
    out, scratch = folder / f"out-{attempt}", folder / f"scratch-{attempt}"
    out.mkdir(parents=True)
    scratch.mkdir()
    context = Context(
        scratch=scratch,
        work=FileWork(folder / "work"),
        refs={},
        processes=processes,
        progress=progress,
        stopping=lambda: stop_after is not None and bool(steps) and steps[-1] >= stop_after,
    )
    sft.run(recipe, inputs or inputs_of(folder / f"inputs-{attempt}"), out, context)
    return out, steps


def losses(out: Path) -> list[float]:
    """The losses of the steps that led to an artifact."""
    found: list[float] = pq.read_table(out / "losses.parquet")["loss"].to_pylist()
    return found


def zero(stage: int, recipe: SFTRecipe = RECIPE) -> SFTRecipe:
    """The recipe under a ZeRO stage, in micro-batches that two processes can share."""
    return SFTRecipe.model_validate({**recipe.model_dump(), "zero_stage": stage, "micro_batch_size": 2})
