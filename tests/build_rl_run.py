"""Runs of the rl stage: what they are made of, how one is started, and what of it tests look at."""

import json
from pathlib import Path

import pyarrow.parquet as pq

from build_rl import build_rl_inputs
from egt_pipeline.context import Context
from egt_pipeline.contract.graph import StageName
from egt_pipeline.contract.recipes import RLRecipe
from egt_pipeline.contract.task import StoreRef
from egt_pipeline.stages import rl
from egt_pipeline.store import open_store

RECIPE = RLRecipe(
    epochs=2,
    batch_size=4,
    micro_batch_size=2,
    learning_rate=1e-3,
    max_new_tokens=40,
    max_prompt_tokens=100,
    zero_stage=2,
    freeze_vision=False,
    checkpoint_steps=3,
    prompt="plain-v1",
)
KEPT = [f"s{row:02d}" for row in range(12, 2, -1)]  # ten ids in the order of their ranks
PLAN = [
    (epoch, step, position, sample_id)
    for epoch in (1, 2)
    for step, batch in enumerate((KEPT[:4], KEPT[4:8], KEPT[8:]), start=3 * epoch - 2)
    for position, sample_id in enumerate(batch)
]


def context(folder: Path, attempt: int = 1, **given: object) -> Context:
    work = open_store(StoreRef(uri=f"file://{folder}/store")).work(StageName.RL, "0123456789abcdef")
    return Context(scratch=folder / f"scratch{attempt}", work=work, refs={}, attempt=attempt, **given)  # type: ignore[arg-type]


def order(folder: Path) -> list[tuple[object, ...]]:
    columns = ["epoch", "step", "position", "sample_id"]
    return [tuple(row.values()) for row in pq.read_table(folder / "order.parquet", columns=columns).to_pylist()]


def run(folder: Path, model: Path, recipe: RLRecipe = RECIPE, attempt: int = 1, **given: object) -> Path:
    """One attempt of the stage; its output."""
    out = folder / f"out{attempt}"
    out.mkdir()
    inputs = folder / "inputs"
    paths = (
        {"data": inputs / "data", "model": inputs / "sft", "selection": inputs / "selection"}
        if inputs.exists()
        else build_rl_inputs(inputs, kept=10, dropped=3, model=model)
    )
    result = rl.run(recipe, paths, out, context(folder, attempt, **given))
    (out / "metrics.json").write_text(json.dumps(dict(result.metrics)))
    return out


def check_model(trained: Path, start: Path) -> None:
    """The trained model loads, and differs from where it began."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(trained)
    assert hasattr(processor, "image_processor")
    before, after = (AutoModelForImageTextToText.from_pretrained(path, dtype="float32") for path in (start, trained))
    changed = [not a.equal(b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert all(weight.isfinite().all() for weight in after.parameters())
    assert any(changed)
