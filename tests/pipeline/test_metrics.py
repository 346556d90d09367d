import math

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from egt_pipeline import metrics


def test_wilson_agrees_with_its_formula_and_stays_within_zero_and_one():
    # Wilson (1927): centre (k + z²/2) / (n + z²), half width z sqrt(k (n-k) / n + z²/4) / (n + z²).
    z, k, n = 1.959963984540054, 9, 10
    centre, half = (k + z**2 / 2) / (n + z**2), z * math.sqrt(k * (n - k) / n + z**2 / 4) / (n + z**2)
    found = metrics.wilson(k, n)
    assert (found.count, found.share) == (10, 0.9)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-9)
    assert metrics.wilson(0, 5).low == 0
    assert metrics.wilson(5, 5).high == 1
    assert metrics.wilson(5, 5).low < 0.6


def test_no_trials_have_no_share():
    assert math.isnan(metrics.accuracy([]).share)


def test_auc_agrees_with_scikit_learn_ties_included():
    random = np.random.default_rng(0)
    score, positive = random.integers(0, 20, 500), random.random(500) < 0.3
    assert metrics.auc(score, positive) == pytest.approx(roc_auc_score(positive, score), abs=1e-12)


def test_auc_of_constant_scores_is_one_half_and_of_one_class_nan():
    assert metrics.auc([1, 1, 1, 1], [True, False, True, False]) == 0.5
    assert math.isnan(metrics.auc([1, 2], [True, True]))


def test_spearman_agrees_with_scipy_and_is_nan_for_a_constant():
    random = np.random.default_rng(0)
    first, second = random.integers(0, 9, 200), random.integers(0, 9, 200)
    assert metrics.spearman(first, second) == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)
    assert math.isnan(metrics.spearman([1, 1, 1], [1, 2, 3]))
    assert math.isnan(metrics.spearman([1], [1]))


def test_bins_of_equal_frequency_hold_every_sample_once_in_ascending_order():
    score = np.array([5.0, 1.0, 3.0, 1.0, 2.0, 4.0, 0.0])
    bins = metrics.equal_frequency_bins(score, 3)
    assert [len(part) for part in bins] == [3, 2, 2]
    assert np.concatenate(bins).tolist() == [6, 1, 3, 4, 2, 5, 0]


def test_accuracy_by_bin_shows_where_the_errors_are():
    score, correct = np.arange(100.0), np.arange(100) < 50
    found = metrics.accuracy_by_bin(score, correct, 4)
    assert [one.accuracy.share for one in found] == [1, 1, 0, 0]
    assert [(one.lowest, one.highest) for one in found] == [(0, 24), (25, 49), (50, 74), (75, 99)]


def test_fewer_samples_than_bins_leave_no_empty_bin():
    assert len(metrics.accuracy_by_bin([1.0, 2.0], [True, False], 10)) == 2


def test_trend_is_minus_one_when_accuracy_falls_at_every_step():
    score = np.arange(1000.0)
    correct = np.arange(1000) % 10 >= score // 100
    assert metrics.bin_trend(score, correct, 10) == pytest.approx(-1)


def test_tie_share_counts_the_values_that_repeat_another():
    assert metrics.tie_share([1.0, 1.0, 1.0, 2.0]) == 0.5
    assert metrics.tie_share([]) == 0
