"""A source that cannot be read: prepare names its field as `egt plan` does, the value, and what would be accepted."""

import re
from pathlib import Path

import pytest

from build_context import make_context
from build_source import recipe_of, row, write_source
from egt_pipeline.contract.data import DataSource
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.recipes import PrepareRecipe
from egt_pipeline.stages import prepare


def prepare_it(tmp_path: Path, recipe: PrepareRecipe) -> None:
    (tmp_path / "out").mkdir()
    prepare.run(recipe, {}, tmp_path / "out", make_context(tmp_path))


def test_a_wrong_column_name_is_said_with_those_that_exist(tmp_path: Path) -> None:
    recipe = recipe_of(
        tmp_path, write_source(tmp_path / "rl", [row(0), row(1)]), rl={"columns": {"answer_1": "chosen"}}
    )
    with pytest.raises(
        TaskError, match=r"^data\.rl\.source: .*data\.jsonl: no column chosen; it has answer_1, answer_2"
    ):
        prepare_it(tmp_path, recipe)


def test_a_missing_source_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"^data\.rl\.source: .*none\.jsonl does not exist"):
        prepare_it(tmp_path, recipe_of(tmp_path, tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bad.parquet", "is no Parquet file: "),
        ("table.csv", "is neither .jsonl, .parquet nor hf://"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused_with_its_field(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_text("no table")
    recipe = recipe_of(tmp_path, write_source(tmp_path / "rl", [row(0), row(1)]), rl={"source": str(tmp_path / name)})
    with pytest.raises(TaskError, match=rf"^data\.rl\.source: .*{re.escape(said)}"):
        prepare_it(tmp_path, recipe)


def test_a_source_to_be_scored_on_is_named_by_its_place_as_egt_plan_names_it(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, write_source(tmp_path / "rl", [row(0), row(1)]))
    absent = DataSource(name="held", source=str(tmp_path / "none.jsonl"))
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"evaluate": (absent,)})})
    with pytest.raises(TaskError, match=r"^data\.evaluate\[0\]\.source: .*none\.jsonl does not exist"):
        prepare_it(tmp_path, recipe)
