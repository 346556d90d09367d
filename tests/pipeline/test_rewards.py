"""The reward's value table, and the rule-based judge on sentences as teachers write them."""

import pytest

from egt_pipeline.rewards import grade, reasoning_of, reward, rule_logic

GOOD = "<think>The first says four, right. The second says 7, wrong.</think><answer>1</answer>"


@pytest.mark.parametrize(
    ("accuracy", "logic", "well_formed", "expected"),
    [
        (0, -1, 0, 0.0), (0, 0, 0, 0.0), (0, 1, 0, 0.0), (0, -1, 1, 0.5), (0, 0, 1, 0.5), (0, 1, 1, 0.5),
        (1, -1, 0, 0.5), (1, 0, 0, 1.0), (1, 1, 0, 1.5), (1, -1, 1, 1.0), (1, 0, 1, 1.5), (1, 1, 1, 2.0),
    ],
)  # fmt: skip
def test_the_reward_has_the_values_of_the_papers_formula(
    accuracy: float, logic: float, well_formed: float, expected: float
) -> None:
    assert reward(accuracy, logic, well_formed, logic_weight=0.5, format_weight=0.5) == expected


def test_weights_scale_their_terms_and_zero_takes_them_out() -> None:
    assert reward(1, -1, 1, logic_weight=0.0, format_weight=0.0) == 1.0
    assert reward(1, 1, 1, logic_weight=1.0, format_weight=0.25) == 2.25


@pytest.mark.parametrize(
    ("reasoning", "conclusion"),
    [
        ("Response 1 is better.", 1),
        ("Response 2 is better than Response 1.", 2),
        ("Compared to Response 1, Response 2 is more accurate.", 2),
        ("Response 1 misses the dog; response 2 is the better one.", 2),
        ("Response 1 is less accurate than Response 2.", 2),
        ("The second answer is worse.", 1),
        ("The better response is Response 1", 1),
        ("At first Response 1 seems better.\nOn a closer look Response 2 is superior.", 2),
        ("The first says four, right. The second says 7, wrong.", 1),
        ("The first says four, wrong. The second says 7, right.", 2),
        ("The picture shows nine. The first says nine, right. The second says one, wrong.", 1),
        ("The first says four, wrong.", 2),
        ("The first says four, right. The second says 4, right.", None),
        ("The first says four, wrong. The second says 7, wrong.", None),
        ("Both responses are correct. Response 1 and Response 2 are equally good.", None),
        ("Response 1 is better. But both Response 1 and Response 2 are wrong.", None),
        ("Response 1 is not better.", None),
        ("The picture shows a right turn and a better road.", None),
        ("I cannot tell.", None),
        ("", None),
    ],
)
def test_the_rule_judge_compares_the_last_conclusion_with_the_answer(reasoning: str, conclusion: int | None) -> None:
    expected = {None: (0, 0), 1: (1, -1), 2: (-1, 1)}[conclusion]
    assert (rule_logic(reasoning, 1), rule_logic(reasoning, 2)) == expected


def test_a_right_well_formed_response_has_full_marks() -> None:
    graded = grade(GOOD, 1, truncated=False)
    assert (graded.status, graded.answer, graded.accuracy, graded.format) == ("ok", 1, 1.0, 1.0)
    assert rule_logic(graded.reasoning, 1) == 1


def test_an_answer_that_is_not_the_label_is_wrong() -> None:
    assert grade(GOOD, 2, truncated=False).accuracy == 0.0


@pytest.mark.parametrize(
    "response",
    ["", "1", "<answer>1", "<answer>3</answer>", GOOD + "<answer>1</answer>", "<answer>1</answer><answer>2</answer>"],
)
def test_a_response_without_one_verdict_is_wrong_whatever_the_label(response: str) -> None:
    for label in (1, 2):
        graded = grade(response, label, truncated=False)
        assert (graded.accuracy, graded.answer, graded.format) == (0.0, None, 0.0)
        assert graded.status != "ok"


def test_a_truncated_response_is_wrong_even_with_a_verdict_in_it() -> None:
    graded = grade(GOOD, 1, truncated=True)
    assert (graded.status, graded.accuracy) == ("truncated", 0.0)


def test_white_space_between_the_parts_costs_the_format_reward_alone() -> None:
    graded = grade(GOOD.replace("</think><", "</think>\n<"), 1, truncated=False)
    assert (graded.accuracy, graded.format) == (1.0, 0.0)


def test_the_reasoning_is_what_stands_before_the_verdict() -> None:
    assert reasoning_of("<think> a b </think><answer>1</answer>") == "a b"
    assert reasoning_of("<think>a<answer>1</answer>") == "a"
    assert reasoning_of("a b<answer>1</answer>") == "a b"
