"""What RL trains on: the selection in the order of its ranks, and which of it is left out, and why."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from egt_pipeline.contract.errors import ArtifactError, TaskError
from egt_pipeline.contract.recipes import RLRecipe
from egt_pipeline.preferences import Images, Preference, read_preferences
from egt_pipeline.prompt_tokens import prompt_tokens
from egt_pipeline.prompts import messages

USED = "used"
SKIPPED = "skipped"
SAMPLES = pa.schema(
    [
        ("rank", pa.int64()),
        ("sample_id", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)


@dataclass(frozen=True)
class Selected:
    """``samples`` to train on, easy to hard, and one record (see ``SAMPLES``) for every kept row of the selection."""

    samples: list[Preference]
    records: list[dict[str, Any]]

    @property
    def ids(self) -> list[str]:
        """The samples' ids, in their order."""
        return [sample.sample_id for sample in self.samples]

    @property
    def skipped(self) -> int:
        """How many kept rows are left out."""
        return len(self.records) - len(self.samples)


def select(recipe: RLRecipe, processor: Any, data: Path, selection: Path, images: Images) -> Selected:
    """The kept samples whose prompts have room. Raises TaskError when none is left."""
    ranks, samples = _kept(data, selection)
    prompts = prompt_tokens(recipe.prompt, processor, samples, images)
    found = Selected([], [])
    for rank, sample, tokens in zip(ranks, samples, map(len, prompts), strict=True):
        # OpenRLHF would end the run at such a prompt, in the middle of an epoch.
        long = tokens > recipe.max_prompt_tokens
        reason = f"{tokens} prompt tokens, more than maxPromptTokens {recipe.max_prompt_tokens}" if long else ""
        if not long:
            found.samples.append(sample)
        named = {"rank": rank, "sample_id": sample.sample_id, "prompt_tokens": tokens}
        found.records.append({**named, "status": SKIPPED if long else USED, "reason": reason})
    if not found.samples:
        shortest = min(record["prompt_tokens"] for record in found.records)
        raise TaskError(
            f"rl.maxPromptTokens: {recipe.max_prompt_tokens} leaves none of {len(samples)} samples to train on; the "
            f"shortest prompt has {shortest} tokens"
        )
    return found


def _kept(data: Path, selection: Path) -> tuple[list[int], list[Preference]]:
    """Ranks and samples that the selection keeps, in the order of their ranks."""
    table = pq.read_table(selection / "selection.parquet", columns=["sample_id", "rank", "decision"])
    kept = sorted((row["rank"], row["sample_id"]) for row in table.to_pylist() if row["decision"] == "kept")
    if not kept:
        raise TaskError("curate.keep: no sample is left to train on; keep more")
    preferences = {row.sample_id: row for row in read_preferences(data, labelled=True)}
    missing = [sample_id for _, sample_id in kept if sample_id not in preferences]
    if missing:
        raise ArtifactError(f"selection.parquet: sample_id {missing[0]!r} is not among the prepared preferences")
    return [rank for rank, _ in kept], [preferences[sample_id] for _, sample_id in kept]


def write_dataset(folder: Path, samples: Sequence[Preference], images: Images, recipe: RLRecipe) -> Path:
    """OpenRLHF's prompts as JSON lines, in the order of ``samples``; labels carry what reward and records need."""
    pictures = folder / "images"
    pictures.mkdir()
    for image_id in {image_id for sample in samples for image_id in sample.images}:
        (pictures / image_id).write_bytes(images[image_id])
    path = folder / "prompts.jsonl"
    with path.open("w") as lines:
        for sample in samples:
            lines.write(json.dumps(_row(sample, pictures, recipe)) + "\n")
    return path


def _row(sample: Preference, pictures: Path, recipe: RLRecipe) -> Mapping[str, Any]:
    return {
        "prompt": messages(recipe.prompt, sample.question, sample.answer_1, sample.answer_2, len(sample.images)),
        "images": [str(pictures / image_id) for image_id in sample.images],
        "label": json.dumps({"sample_id": sample.sample_id, "label": sample.label}),
    }
