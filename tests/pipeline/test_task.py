"""Digests: what names an output, and what does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from build_recipes import CONTENT, make_recipes
from egt_pipeline.contract.base import Recipe
from egt_pipeline.contract.chain import chain
from egt_pipeline.contract.errors import excerpt
from egt_pipeline.contract.graph import STAGES, StageName
from egt_pipeline.contract.recipes import CurateRecipe, Keep, ProbeRecipe, SFTRecipe
from egt_pipeline.contract.task import SUMMARY_BYTES, Summary, content_digest, digest

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6000)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, min_size=2))
def test_the_order_of_keys_does_not_change_a_digest(data: dict[str, object]) -> None:
    assert content_digest(data) == content_digest(dict(reversed(data.items())))


@given(st.dictionaries(st.sampled_from("abc"), st.text()), st.dictionaries(st.sampled_from("abc"), st.text()))
def test_different_inputs_give_different_digests(one: dict[str, str], other: dict[str, str]) -> None:
    recipe = CurateRecipe()
    same = digest(StageName.CURATE, 1, recipe, one) == digest(StageName.CURATE, 1, recipe, other)
    assert same == (one == other)


def test_a_new_revision_of_the_code_gives_a_new_digest() -> None:
    recipe = ProbeRecipe()
    assert digest(StageName.PROBE, 1, recipe, {}) != digest(StageName.PROBE, 2, recipe, {})


def test_how_often_a_checkpoint_is_written_is_no_part_of_the_name() -> None:
    often, rarely = SFTRecipe(checkpoint_steps=5), SFTRecipe(checkpoint_steps=500)
    assert digest(StageName.SFT, 1, often, {}) == digest(StageName.SFT, 1, rarely, {})


def test_a_default_written_out_is_the_same_recipe() -> None:
    assert digest(StageName.SFT, 1, SFTRecipe(), {}) == digest(StageName.SFT, 1, SFTRecipe(weight_decay=0.0), {})


def test_a_recipe_survives_json_with_its_digest() -> None:
    for stage in STAGES:
        recipe = make_recipes()[stage.name]
        again = stage.recipe.model_validate_json(recipe.model_dump_json(by_alias=True))
        assert again.identity == recipe.identity


@given(texts, st.dictionaries(st.text("abc", max_size=30), st.floats(0, 1), max_size=300))
def test_a_summary_fits_a_termination_message_with_the_end_of_what_it_says(
    said: str, metrics: dict[str, float]
) -> None:
    said = f"rl: OpenRLHF exited with 1; {said}; RuntimeError: no kernel for this machine"
    summary = Summary(stage=StageName.RL, digest="0123456789abcdef", phase="Failed", exit_code=1, message=said,
                      metrics=metrics)  # fmt: skip
    found = Summary.model_validate_json(summary.fitting().model_dump_json())
    assert len(found.model_dump_json().encode()) <= SUMMARY_BYTES
    assert found.message.startswith("rl: OpenRLHF exited with 1; ")
    assert found.message.endswith("RuntimeError: no kernel for this machine")
    assert found.message == said or not found.metrics


@given(st.text(max_size=300), st.integers(20, 300))
def test_an_excerpt_has_the_beginning_and_the_end_and_no_more_characters_than_asked(text: str, characters: int) -> None:
    found = excerpt(text, characters)
    assert len(found) == min(len(text), characters)
    assert text.startswith(found[: (characters - 5) // 4])
    assert text.endswith(found[-3 * (characters - 5) // 4 :])


def test_every_stage_reads_only_stages_before_it() -> None:
    links = chain(make_recipes(), source_fingerprint="f", prepared=CONTENT)
    places = list(links)
    for name, link in links.items():
        assert all(places.index(ref.stage) < places.index(name) for ref in (link.inputs or {}).values())


@pytest.mark.parametrize(
    ("recipe", "fields", "message"),
    [
        (Keep, {}, "exactly one of share, topK, percentile"),
        (Keep, {"share": 0.1, "topK": 3}, "exactly one of share, topK, percentile"),
        (Keep, {"percentile": 15, "band": "high"}, "percentile keeps the low end only"),
        (SFTRecipe, {"batchSize": 10, "microBatchSize": 4}, "batchSize: 10 is no multiple of microBatchSize 4"),
        (SFTRecipe, {"learningRat": 0.1}, "learningRat"),
        (SFTRecipe, {"learningRate": float("nan")}, "learningRate"),
        (ProbeRecipe, {"generations": 0}, "generations"),
    ],
)
def test_an_impossible_recipe_is_refused_by_the_name_of_its_field(
    recipe: type[Recipe], fields: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe.model_validate(fields)
