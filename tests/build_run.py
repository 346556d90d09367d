"""A whole run as local folders: made-up tables whose figures are plausible, and the manifests that name them."""

import hashlib
import io
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from build_recipes import make_recipes
from egt_pipeline.context import Context
from egt_pipeline.contract.graph import STAGES, StageName
from egt_pipeline.contract.recipes import CurateRecipe, Keep
from egt_pipeline.contract.task import FileEntry, Manifest, Producer
from egt_pipeline.preferences import write_images, write_preferences
from egt_pipeline.stages import curate

KINDS = {
    "clean": 0.55,
    "both_right": 0.08,
    "both_wrong": 0.07,
    "style_biased": 0.16,
    "ambiguous_flip": 0.08,
    "uniform_flip": 0.06,
}
# Mean of the made-up answer entropy by kind: uniform flips look like clean samples.
_MEAN = {
    "clean": 0.2,
    "both_right": 0.6,
    "both_wrong": 0.55,
    "style_biased": 0.4,
    "ambiguous_flip": 0.36,
    "uniform_flip": 0.2,
}
_STARTED = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)


def build_run(
    folder: Path, *, rows: int = 600, seed: int = 0, question: str = "Which digit is this?"
) -> dict[StageName, Path]:
    """The folders of the seven stages below ``folder``; ``folder/truth.parquet`` is the truth."""
    draw = np.random.default_rng(seed)
    folders = {stage.name: folder / str(stage.name) for stage in STAGES}
    for place in folders.values():
        place.mkdir(parents=True)
    kinds = draw.choice(list(KINDS), rows, p=list(KINDS.values()))
    gold = draw.integers(1, 3, rows)
    wrong = np.isin(kinds, ("ambiguous_flip", "uniform_flip")) | ((kinds == "style_biased") & (draw.random(rows) < 0.5))
    labels = np.where(wrong, 3 - gold, gold)
    for part, count in (("sft", 80), ("rl", rows), ("evaluate/heldout", 200)):
        _prepare(folders[StageName.PREPARE] / part, part.partition("/")[0], count, labels, question, draw)
    _table(folder / "truth.parquet", _truth(kinds, gold))
    _probe(folders[StageName.PROBE], kinds, gold, draw)
    curate.run(
        CurateRecipe(keep=Keep(share=0.3), balance="predicted"),
        {"entropies": folders[StageName.PROBE]},
        folders[StageName.CURATE],
        Context(scratch=folder, work=_NoWork(), refs={}),
    )
    selection = pq.read_table(folders[StageName.CURATE] / "selection.parquet").sort_by("rank")
    _other_tables(folders, selection.filter(pc.equal(selection["decision"], "kept"))["sample_id"].to_pylist(), draw)
    return folders


class _NoWork:
    """curate keeps nothing between attempts."""


def manifests_of(folders: Mapping[StageName, Path], *, run: str = "made-up") -> dict[StageName, Manifest]:
    """A manifest a stage, with the real checksums of its files."""
    recipes = make_recipes(curate={"keep": {"share": 0.3}, "balance": "predicted"})
    found = {}
    for number, (stage, folder) in enumerate(folders.items()):
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = tuple(_entry(path, folder) for path in paths)
        tables = [path for path in paths if path.name == "preferences.parquet"]
        metrics = {f"{path.parent.relative_to(folder)}.rows": pq.read_metadata(path).num_rows for path in tables}
        found[stage] = Manifest(
            stage=stage,
            digest=hashlib.sha256(stage.encode()).hexdigest()[:16],
            revision=1,
            recipe=recipes[stage].model_dump(mode="json", by_alias=True),
            inputs={},
            files=files,
            metrics=metrics,
            producer=Producer(
                run=run if stage != StageName.PREPARE else "earlier",
                attempt=1,
                host="node-3",
                started=_STARTED + timedelta(seconds=60 * number),
                finished=_STARTED + timedelta(seconds=60 * number + 41.5),
                versions={"python": "3.11.7", "torch": "2.13.0"},
            ),
        )
    return found


def _entry(path: Path, folder: Path) -> FileEntry:
    data = path.read_bytes()
    name = str(path.relative_to(folder))
    return FileEntry(path=name, key=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _prepare(folder: Path, part: str, count: int, labels: np.ndarray, question: str, draw: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    pictures = [(f"picture-{n}", _picture(draw)) for n in range(12)]
    write_images(folder, iter(pictures), file_bytes=1 << 20)
    rows = [
        {
            "row": row,
            "sample_id": f"{part}-{row:05d}",
            "images": [f"picture-{row % 12}"],
            "question": question,
            "answer_1": "four",
            "answer_2": "7",
            "label": int(labels[row % len(labels)]),
            "source": "default",
            "answer_order": "12",
            "status": "ok" if row != 7 else "bad_image",
            "reason": "" if row != 7 else "picture is truncated",
        }
        for row in range(count)
    ]
    write_preferences(folder, rows)


def _picture(draw: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw.integers(0, 255, (28, 28), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def _truth(kinds: np.ndarray, gold: np.ndarray) -> list[dict[str, Any]]:
    undecidable = np.isin(kinds, ("both_right", "both_wrong"))
    return [
        {"sample_id": f"rl-{row:05d}", "split": "rl", "kind": str(kind), "gold": None if none else int(right)}
        for row, (kind, right, none) in enumerate(zip(kinds, gold, undecidable, strict=True))
    ]


def _probe(folder: Path, kinds: np.ndarray, gold: np.ndarray, draw: np.random.Generator) -> None:
    rows = []
    for row, (kind, right) in enumerate(zip(kinds, gold, strict=True)):
        entropy = float(np.clip(draw.normal(_MEAN[kind], 0.08), 0.01, 0.6931))
        predicted = int(right) if draw.random() > entropy * 0.4 else 3 - int(right)
        ok = row != 7
        rows.append(
            {
                "row": row,
                "sample_id": f"rl-{row:05d}",
                "generation": 0,
                "answer_order": "12",
                "answer_entropy_nats": entropy if ok else None,
                "sentence_entropy_nats": entropy * 0.2 + float(draw.normal(0.2, 0.02)) if ok else None,
                "p_answer_1": 0.9 if predicted == 1 else 0.1,
                "p_answer_2": 0.1 if predicted == 1 else 0.9,
                "predicted": predicted if ok else None,
                "response_tokens": 30,
                "response": f"<think>The picture shows four.</think><answer>{predicted}</answer>" if ok else None,
                "status": "ok" if ok else "bad_image",
                "reason": "" if ok else "picture is truncated",
            }
        )
    _table(folder / "entropies.parquet", rows)


def _other_tables(folders: Mapping[StageName, Path], kept_ids: list[str], draw: np.random.Generator) -> None:
    kept = {"attempts": 1, "response": "r", "tokens_in": 9, "tokens_out": 30, "status": "kept", "reason": ""}
    _table(
        folders[StageName.DISTILL] / "trajectories.parquet",
        [{"row": n, "sample_id": f"sft-{n:05d}", **kept} for n in range(80)],
    )
    losses = [{"step": n, "loss": 0.2 + 2 * float(np.exp(-n / 60)) + float(draw.random()) * 0.1} for n in range(1, 301)]
    _table(folders[StageName.SFT] / "losses.parquet", losses)
    rewards = [
        {"step": n, "reward": 1.4 + n * 0.002 + float(draw.normal(0, 0.04)), "entropy_nats": 0.3 - n * 0.002}
        for n in range(1, 101)
    ]
    _table(folders[StageName.RL] / "losses.parquet", rewards)
    order = [
        {"epoch": 0, "step": n // 32 + 1, "position": n % 32, "sample_id": name, "attempt": 1}
        for n, name in enumerate(kept_ids)
    ]
    _table(folders[StageName.RL] / "order.parquet", order)
    predictions = []
    for model, rate in (("sft", 0.97), ("final", 0.96)):
        for row in range(200):
            correct = bool(draw.random() < rate)
            predictions.append(
                {
                    "row": row,
                    "sample_id": f"evaluate-{row:05d}",
                    "model": model,
                    "benchmark": "heldout",
                    "subset": "clear" if row % 2 else "degraded",
                    "group": "word" if row % 4 < 2 else "digit",
                    "vote": 0,
                    "answer_order": "12",
                    "label": 1 + row % 2,
                    "predicted": 1 + row % 2 if correct else 2 - row % 2,
                    "correct": correct,
                    "response": "r",
                    "status": "ok",
                    "reason": "",
                }
            )
    _table(folders[StageName.EVALUATE] / "predictions.parquet", predictions)


def _table(path: Path, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)
