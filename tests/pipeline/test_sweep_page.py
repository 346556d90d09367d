"""The page of a sweep: what it says, what it escapes, and that it needs nothing but itself."""

import html
import re

import pytest

from build_sweep import scored
from egt_pipeline.metrics import Bin, wilson
from egt_pipeline.sweep_page import build_page
from egt_pipeline.sweep_results import ByEntropy, Layout, Outcome, Reference, compare
from page_elements import Elements

EVIL = '<script>alert("1")</script> $x_1$'


def outcome(arms: dict[str, list[float]], reference: dict[str, float], x: str | None = None) -> Outcome:
    """Of one table whose rows are called as their arms, with the accuracy of each arm's runs."""
    runs = [scored(arm, seed, share) for arm, shares in arms.items() for seed, share in enumerate(shares)]
    figures = {("Table 2", arm): {"overall": share} for arm, share in reference.items()}
    layout = Layout("Table 2", EVIL, x, {arm: arm for arm in arms})
    return Outcome(
        name="grid",
        base="base.yaml",
        varied=["rl.seed"],
        seeds=[0, 1],
        runs=2 * len(arms),
        scored=runs,
        comparisons=[compare(layout, {"overall": "accuracy"}, runs, Reference("Somebody, 2026.", figures))],
        by_entropy=[ByEntropy("abc", [Bin(0.0, 0.1, wilson(9, 10)), Bin(0.1, 0.2, wilson(5, 10))])],
        source="Somebody, 2026.",
    )


@pytest.fixture(scope="module")
def page() -> str:
    return build_page(outcome({"low": [0.90, 0.91], "high": [0.7], EVIL: []}, {"low": 0.77, "high": 0.68, "mid": 0.6}))


def text_of(page: str) -> str:
    """The page as it is read: no tags, spaces once."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<svg.*?</svg>|<[^>]*>", "", page, flags=re.DOTALL)))


def test_the_page_is_well_formed_and_loads_nothing_from_outside(page: str) -> None:
    elements = Elements(page)
    assert elements.open == []
    assert all(value.startswith("#") for value in elements.loads)
    assert "url(" not in page.replace("url(#", "")


def test_names_that_a_user_chose_are_escaped(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_an_arm_s_mean_stands_with_its_interval_and_the_reference_beside_it(page: str) -> None:
    # n = 2: half width t(0.975, 1) s / sqrt(2) = 12.7062 * .00707 / 1.4142 = .0635
    assert "90.50 (84.15 to 96.85)77.00" in text_of(page)
    interval = wilson(700, 1000)
    assert f"70.00 ({100 * interval.low:.2f} to {100 * interval.high:.2f}, one run)68.00" in text_of(page)


def test_rows_that_are_not_run_say_so(page: str) -> None:
    assert "midnot part of this sweep0" in text_of(page)
    assert "3 of 6 runs are evaluated" in text_of(page)


def test_agreement_with_the_reference_is_said(page: str) -> None:
    assert "orders 1 pair of these rows by overall. Here 1 holds (low > high), 0 are reversed, and 0" in text_of(page)


def test_points_of_a_curve_are_drawn_over_their_numbers() -> None:
    page = build_page(outcome({"0": [0.8], "15": [0.9], "5": []}, {"0": 0.69}, x="share (%)"))
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == 2
    assert "share (%)" in plots[0]
    assert all("var(--ink)" in plot and "#01010" not in plot for plot in plots)
