"""Selection and order, against a second computation that shares no code with the first."""

import math
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egt_pipeline import curation
from egt_pipeline.contract.errors import TaskError
from egt_pipeline.contract.recipes import Keep

# Few distinct values, so that most scores tie; -0.0 equals 0.0.
FEW = st.sampled_from([0.0, -0.0, 1e-300, 0.1, 0.25, 0.6931471805599453])
SAMPLES = st.lists(st.tuples(FEW, FEW, st.sampled_from([1, 2])), min_size=1, max_size=40)
BANDS = st.sampled_from(["low", "mid", "high"])


def select(samples: list[tuple[float, float, int]], keep: Keep, balanced: bool) -> list[int]:
    score, sentence, predicted = (np.array(column, float) for column in zip(*samples, strict=True))
    kept, threshold = curation.amount(keep, score)
    members = [predicted == 1, predicted == 2] if balanced else [np.ones(len(score), bool)]
    found = curation.cuts(score, members, keep, kept, threshold)
    return list(curation.curriculum(found, score, sentence.__getitem__, ids_at))


def ids_at(places: np.ndarray) -> pa.StringArray:
    return pa.array([name(int(place)) for place in places], pa.string())


def name(place: int) -> str:
    """An id whose order is not that of the rows."""
    return f"{place * 7919 % 1009:04d}"


def recomputed(samples: list[tuple[float, float, int]], size: int, band: str) -> list[int]:
    table = pd.DataFrame(samples, columns=["score", "sentence", "predicted"]).assign(
        id=[name(i) for i in range(len(samples))]
    )
    ordered = list(table.sort_values(["score", "sentence", "id"]).index)
    start = {"low": 0, "mid": (len(samples) - size) // 2, "high": len(samples) - size}[band]
    return ordered[start : start + size]


@given(SAMPLES, BANDS, st.data())
def test_top_k_is_the_slice_of_a_full_sort(samples, band, data):
    size = data.draw(st.integers(1, len(samples)))
    assert select(samples, Keep(top_k=size, band=band), False) == recomputed(samples, size, band)


@given(SAMPLES, st.data())
def test_balanced_selection_is_the_head_of_the_interleaved_ranks(samples, data):
    size = data.draw(st.integers(1, len(samples)))
    table = pd.DataFrame(samples, columns=["score", "sentence", "predicted"]).assign(
        id=[name(i) for i in range(len(samples))]
    )
    table = table.sort_values(["score", "sentence", "id"])
    table["turn"] = table.groupby("predicted").cumcount()
    expected = list(table.sort_values(["turn", "predicted"], kind="stable").index[:size])
    assert select(samples, Keep(top_k=size), True) == expected


@given(SAMPLES, st.integers(1, 99))
def test_percentile_keeps_what_is_strictly_below_the_interpolated_value(samples, percent):
    scores = pd.Series([sample[0] for sample in samples])
    below = int((scores < scores.quantile(percent / 100)).sum())
    keep = Keep(percentile=percent)
    if below == 0:
        with pytest.raises(TaskError, match="strictly below percentile"):
            select(samples, keep, False)
    else:
        assert select(samples, keep, False) == recomputed(samples, below, "low")
        assert sorted(select(samples, keep, True)) == sorted(recomputed(samples, below, "low"))


@given(SAMPLES, BANDS, st.booleans(), st.data())
def test_bands_are_of_equal_size_ascending_and_without_repeats(samples, band, balanced, data):
    size = data.draw(st.integers(1, len(samples)))
    chosen = select(samples, Keep(top_k=size, band=band), balanced)
    assert len(chosen) == len(set(chosen)) == size
    for answer in (1, 2) if balanced else (None,):
        scores = [samples[place][0] for place in chosen if answer in (None, samples[place][2])]
        assert scores == sorted(scores)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=4), st.data())
def test_quotas_are_what_taking_turns_gives(sizes, data):
    kept = data.draw(st.integers(0, sum(sizes)))
    turns = sorted((turn, group) for group, size in enumerate(sizes) for turn in range(size))
    counted = Counter(group for _, group in turns[:kept])
    assert curation.quotas(sizes, kept) == [counted[group] for group in range(len(sizes))]


def test_a_share_counts_as_a_decimal():
    assert curation.amount(Keep(share=0.29), np.arange(100.0)) == (29, None)  # 0.29 * 100 is 28.999.. in float64
    assert curation.amount(Keep(share=0.15), np.arange(17_000.0)) == (2550, None)


def test_percentile_interpolates_between_neighbours():
    assert curation.percentile(np.array([*np.arange(10.0), np.nan]), 10, 15) == pytest.approx(1.35)
    assert curation.amount(Keep(percentile=15), np.arange(10.0))[0] == 2


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (Keep(top_k=4), "4 samples are asked for, but only 3"),
        (Keep(share=0.3), "0.3 of 3 samples"),
        (Keep(share=0.3), "leaves none"),
    ],
)
def test_an_impossible_amount_names_both_numbers(keep, words):
    with pytest.raises(TaskError, match=words):
        curation.amount(keep, np.array([0.1, 0.2, 0.3]))


def test_no_sample_at_all_is_a_task_error_for_every_kind_of_amount():
    for keep in (Keep(top_k=1), Keep(share=0.5), Keep(percentile=50)):
        with pytest.raises(TaskError):
            curation.amount(keep, np.empty(0))


def test_mix_is_the_product_in_float64():
    answer, sentence = np.array([1e-8, 0.5]), np.array([3.0, 0.25])
    assert list(curation.entropy_score(answer, sentence, "mix")) == [1e-8 * 3.0, 0.125]


def test_random_scores_follow_the_id_and_the_seed_only():
    ids = [f"pool-{n}" for n in range(2000)]
    scores = curation.random_scores(ids, seed=7)
    assert list(curation.random_scores(ids[::-1], seed=7)) == list(scores[::-1])
    assert not np.array_equal(curation.random_scores(ids, seed=8), scores)
    assert 0 <= scores.min() < 0.01
    assert 0.99 < scores.max() < 1
    assert abs(scores.mean() - 0.5) < 4 * (1 / 12 / 2000) ** 0.5


@given(st.lists(FEW | st.floats(0, 1e300), min_size=1, max_size=60), st.data())
def test_nth_is_the_value_at_that_place_of_a_sort(values, data):
    rank = data.draw(st.integers(0, len(values) - 1))
    with_nan = np.array([math.nan, *values, math.nan])
    assert curation.nth(with_nan, np.ones(len(with_nan), bool), rank) == sorted(values)[rank]


def test_tie_share_counts_every_member_of_a_tie():
    assert curation.tie_share(np.array([0.1, 0.2, 0.2, 0.3, 0.4, 0.4, 0.4])) == pytest.approx(5 / 7)
    assert curation.tie_share(np.empty(0)) == 0
