"""Which samples RL trains on, and which are left out."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from build_model import random_model
from build_rl import build_rl_inputs
from egt_pipeline.contract.errors import ArtifactError, TaskError
from egt_pipeline.contract.recipes import RLRecipe
from egt_pipeline.preferences import PREFERENCES_FILE, Images, read_preferences, write_preferences
from egt_pipeline.prompt_tokens import prompt_tokens
from egt_pipeline.reward_model import load_processor
from egt_pipeline.rl_samples import Selected, select, write_dataset


def selected(folder: Path, *, max_prompt_tokens: int, long: tuple[str, ...] = ()) -> Selected:
    """The selection of four rows of which the last three are kept; the questions of ``long`` are a hundred words."""
    inputs = build_rl_inputs(folder, kept=3, dropped=1, model=random_model())
    data = inputs["data"] / "rl"
    rows = pq.read_table(data / PREFERENCES_FILE).to_pylist()
    write_preferences(data, [row | ({"question": "many " * 100} if row["sample_id"] in long else {}) for row in rows])
    recipe = RLRecipe(prompt="plain-v1", max_prompt_tokens=max_prompt_tokens)
    return select(recipe, load_processor(random_model()), data, inputs["selection"], Images(data))


def test_kept_samples_come_in_the_order_of_their_ranks(tmp_path: Path) -> None:
    assert selected(tmp_path, max_prompt_tokens=1000).ids == ["s03", "s02", "s01"]


def test_a_prompt_that_is_too_long_is_left_out_and_says_why(tmp_path: Path) -> None:
    found = selected(tmp_path, max_prompt_tokens=100, long=("s02",))
    assert found.ids == ["s03", "s01"]
    assert found.skipped == 1
    assert [(record["sample_id"], record["status"]) for record in found.records] == [
        ("s03", "used"), ("s02", "skipped"), ("s01", "used"),
    ]  # fmt: skip
    record = found.records[1]
    assert record["reason"] == f"{record['prompt_tokens']} prompt tokens, more than maxPromptTokens 100"


def test_a_limit_that_leaves_nothing_is_named_with_the_shortest_prompt(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"rl\.maxPromptTokens: 16 leaves none of 3 samples .* has \d+ tokens"):
        selected(tmp_path, max_prompt_tokens=16)


def test_nothing_selected_is_an_error_of_the_task(tmp_path: Path) -> None:
    inputs = build_rl_inputs(tmp_path, kept=0, dropped=3, model=random_model())
    with pytest.raises(TaskError, match="no sample is left"):
        select(RLRecipe(), None, inputs["data"] / "rl", inputs["selection"], Images(inputs["data"] / "rl"))


def test_a_selected_sample_that_prepare_never_saw_is_named(tmp_path: Path) -> None:
    inputs = build_rl_inputs(tmp_path / "in", kept=3, dropped=0, model=random_model())
    other = build_rl_inputs(tmp_path / "other", kept=5, dropped=0, model=random_model())
    with pytest.raises(ArtifactError, match="'s04'"):
        select(RLRecipe(), None, inputs["data"] / "rl", other["selection"], Images(inputs["data"] / "rl"))


def test_tokens_are_those_of_the_processor_itself(tmp_path: Path) -> None:
    inputs = build_rl_inputs(tmp_path / "inputs", kept=2, dropped=0, model=random_model())
    data, processor = inputs["data"] / "rl", load_processor(random_model())
    rows, images = read_preferences(data, labelled=True), Images(data)
    path = write_dataset(tmp_path, rows, images, RLRecipe(prompt="plain-v1"))
    from PIL import Image

    for line, ids in zip(
        path.read_text().splitlines(), prompt_tokens("plain-v1", processor, rows, images), strict=True
    ):
        asked = json.loads(line)
        text = processor.apply_chat_template(asked["prompt"], tokenize=False, add_generation_prompt=True)
        pictures = [Image.open(picture) for picture in asked["images"]]
        assert processor(text=[text], images=pictures)["input_ids"][0] == ids
