"""The model and the data of a run: where they come from and how their parts are named."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from egt_pipeline.contract.base import Recipe

# A branch moves, and its name with it; a commit does not.
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


MODEL_TYPE = "qwen2_5_vl"  # of the config.json of every model that is supported
PLACES = ("file://", "s3://", "hf://")
NO_PLACE = "is neither a path, file://, s3:// nor hf://; a repository of huggingface.co is hf://organisation/name"


HUB_NAME = r"^hf://[\w.-]+/[\w.-]+$"
NO_HUB_NAME = "is no hf://organisation/name"


def _check_place(source: str) -> None:
    if "://" in source and not source.startswith(PLACES):
        raise ValueError(f"source: {source!r} {NO_PLACE}")
    if source.startswith("hf://") and not re.match(HUB_NAME, source):
        raise ValueError(f"source: {source!r} {NO_HUB_NAME}")


class ModelSource(Recipe):
    """The vision-language model that becomes the reward model."""

    source: str = Field(min_length=1)
    """A directory (a path, file://, or s3:// on the store's server), or hf://organisation/name."""
    revision: Commit | None = None
    """Commit of a hub model (40 hex digits). Hub models need it: a branch name is no identity."""

    @model_validator(mode="after")
    def _is_found_and_pinned(self) -> Self:
        _check_place(self.source)
        if self.source.startswith("hf://") and not self.revision:
            raise ValueError("revision: a hf:// model needs the commit it is pinned to (40 hex digits)")
        return self


class Columns(Recipe):
    """Names of the columns in the source that hold each part of a preference."""

    sample_id: str = "sample_id"
    """Identifier of the row, unique within the source."""
    images: str = "images"
    """One image or a list of images: paths relative to the source file, URIs, or bytes."""
    question: str = "question"
    """The question asked about the images."""
    answer_1: str = "answer_1"
    """The first candidate answer."""
    answer_2: str = "answer_2"
    """The second candidate answer."""
    label: str = "label"
    """Which answer is better: 1 or 2."""
    strength: str = "strength"
    """How much better, if the source says so; optional column."""
    subset: str = "subset"
    """A category that accuracies are reported by; optional column."""
    group: str = "group"
    """A second category, or the group whose pairs must all be right; optional column."""
    response: str = "response"
    """A reasoning trajectory that is already written; needed for data.sft when distill is disabled."""


class DataSource(Recipe):
    """A table of preferences: an image, a question, two answers, and which one is better."""

    name: str = Field(default="default", pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")
    """How reports call this source; names of data.evaluate must differ."""
    source: str = Field(min_length=1)
    """A .jsonl or .parquet file (a path, file://, or s3:// on the store's server), or hf://organisation/dataset."""
    format: Literal["auto", "jsonl", "parquet", "hub"] = "auto"
    """What the source is; auto reads it off the name."""
    revision: Commit | None = None
    """Commit of a hub dataset (40 hex digits)."""
    split: str = "train"
    """Split of a hub dataset."""
    columns: Columns = Columns()
    """Where the source keeps each part of a preference."""
    answer_order: Literal["balanced", "given"] = "balanced"
    """balanced: a seeded half of the rows is shown with its answers exchanged. given: as they come."""
    max_rows: int | None = Field(default=None, ge=1)
    """Read no more than this many rows; null reads all."""

    @model_validator(mode="after")
    def _is_found_and_pinned(self) -> Self:
        _check_place(self.source)
        if self.source.startswith("hf://") and not self.revision:
            raise ValueError("revision: a hf:// dataset needs the commit it is pinned to (40 hex digits)")
        return self


class Data(Recipe):
    """The three kinds of data: to fine-tune on, to curate and train on, to be scored on."""

    sft: DataSource
    """Preferences that the teacher explains and the model is fine-tuned on."""
    rl: DataSource
    """Preferences that are probed, curated and trained on."""
    evaluate: tuple[DataSource, ...] = ()
    """Held-out preferences; every model of the run is scored on each."""

    @model_validator(mode="after")
    def _evaluation_names_differ(self) -> Self:
        names = [source.name for source in self.evaluate]
        if len(set(names)) != len(names):
            raise ValueError(f"evaluate: each source needs a name of its own, got {names}")
        return self
