"""Prompts and verdicts: what goes in cannot pass for markup, what comes out is read by rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egt_pipeline.prompts import (
    FORBIDDEN_TOKENS,
    escape,
    is_well_formed,
    messages,
    normalise_response,
    parse_verdict,
    render,
)

MARKUP = [*FORBIDDEN_TOKENS, "<image>", "<video>", "<think>", "</think>", "<answer>", "</answer>", "<|im_end|>"]
texts = st.lists(st.sampled_from([*MARKUP, "a", "<", " ", "1", "&lt;"])).map("".join)


@given(texts)
def test_no_tag_and_no_special_token_survives_in_an_answer(text: str) -> None:
    assert not any(markup in escape(text) for markup in MARKUP)


@given(st.text(alphabet=st.characters(exclude_characters="<")))
def test_text_without_markup_is_left_alone(text: str) -> None:
    assert escape(text) == text


def test_both_answers_stand_in_every_prompt_in_their_order() -> None:
    for prompt in ("egt-v1", "plain-v1"):
        text = render(prompt, "question?", "the first", "the second")
        assert text.index("question?") < text.index("the first") < text.index("the second")


def test_pictures_come_before_the_text() -> None:
    (turn,) = messages("plain-v1", "q", "a", "b", 2)
    assert [part["type"] for part in turn["content"]] == ["image", "image", "text"]


@pytest.mark.parametrize(
    ("response", "status"),
    [
        ("<think>x</think><answer>1</answer>", "ok"),
        ("<think>x</think>\n<answer> 2 </answer>", "ok"),
        ("", "no_answer"),
        ("answer 1", "no_answer"),
        ("<answer>1", "no_answer"),
        ("<answer>1</answer><answer>1</answer>", "many_answers"),
        ("<answer><answer>1</answer>", "many_answers"),
        ("<answer>3</answer>", "bad_answer"),
        ("<answer>12</answer>", "bad_answer"),
        ("<answer>１</answer>", "bad_answer"),
        ("<answer>first</answer>", "bad_answer"),
        ("<answer></answer>", "bad_answer"),
    ],
)
def test_a_verdict_is_one_digit_in_one_pair_of_tags(response: str, status: str) -> None:
    verdict = parse_verdict(response)
    assert verdict.status == status
    assert (verdict.answer is None) == (status != "ok")
    assert bool(verdict.reason) == (status != "ok")


def test_a_response_that_was_cut_has_no_verdict_whatever_it_says() -> None:
    assert parse_verdict("<think>x</think><answer>1</answer>", truncated=True).status == "truncated"


@given(st.text(), st.sampled_from(["1", "2"]), st.sampled_from(["", " ", "\n"]))
def test_the_offset_points_at_the_digit(thought: str, digit: str, gap: str) -> None:
    response = f"<think>{escape(thought)}</think><answer>{gap}{digit}{gap}</answer>"
    verdict = parse_verdict(response)
    assert verdict.offset is not None
    assert response[verdict.offset] == digit == str(verdict.answer)


@given(st.text(alphabet="ab 12", min_size=1), st.sampled_from(["", " ", "\n\n"]))
def test_a_normalised_response_is_well_formed_and_stays_so(thought: str, gap: str) -> None:
    response = normalise_response(f" <think>{thought}</think>{gap}<answer>{gap}1{gap}</answer>{gap}")
    assert is_well_formed(response)
    assert normalise_response(response) == response


@pytest.mark.parametrize(
    "response",
    [
        "<think>x</think> <answer>1</answer>",
        "<answer>1</answer>",
        "<think>x</think><answer>1</answer> and more",
        "<think><think>x</think><answer>1</answer>",
    ],
)
def test_anything_between_or_around_the_two_parts_is_not_well_formed(response: str) -> None:
    assert not is_well_formed(response)
