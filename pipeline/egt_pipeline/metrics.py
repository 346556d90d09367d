"""Statistics of judgements and scores. Pure: arrays in, numbers out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, rankdata

_NAN = float("nan")


@dataclass(frozen=True)
class Proportion:
    """A share of ``count`` trials with the bounds of its 95 % Wilson interval; NaN when there were no trials."""

    count: int
    share: float
    low: float
    high: float


def wilson(successes: int, count: int) -> Proportion:
    """The Wilson score interval (Wilson 1927): stays within [0, 1] and is sound for shares near 0 and 1."""
    if count == 0:
        return Proportion(0, _NAN, _NAN, _NAN)
    interval = binomtest(int(successes), int(count)).proportion_ci(confidence_level=0.95, method="wilson")
    return Proportion(int(count), successes / count, float(interval.low), float(interval.high))


def accuracy(correct_N: ArrayLike) -> Proportion:
    """The share of true values."""
    correct = np.asarray(correct_N, bool)
    return wilson(int(correct.sum()), correct.size)


def auc(score_N: ArrayLike, positive_N: ArrayLike) -> float:
    """The probability that a positive scores higher than a negative, a tie counting half; NaN if either is missing."""
    positive = np.asarray(positive_N, bool)
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return _NAN
    ranks = rankdata(score_N)
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def spearman(first_N: ArrayLike, second_N: ArrayLike) -> float:
    """The correlation of the ranks, ties sharing their mean rank; NaN if one side is constant or has below 2 values."""
    first, second = rankdata(first_N), rankdata(second_N)
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return _NAN
    return float(np.corrcoef(first, second)[0, 1])


def equal_frequency_bins(score_N: ArrayLike, bins: int) -> list[NDArray[np.int64]]:
    """The positions of the samples by ascending score in ``bins`` parts whose sizes differ by one at most.

    Equal scores stay in the order they came. With fewer samples than bins the last parts are empty.
    """
    order = np.argsort(np.asarray(score_N), kind="stable")
    return np.array_split(order, bins)


@dataclass(frozen=True)
class Bin:
    """The samples with scores from ``lowest`` to ``highest``, and their accuracy."""

    lowest: float
    highest: float
    accuracy: Proportion


def accuracy_by_bin(score_N: ArrayLike, correct_N: ArrayLike, bins: int) -> list[Bin]:
    """Accuracy in bins of equal frequency, lowest scores first (EGT Fig. 2); empty bins are left out."""
    score, correct = np.asarray(score_N, float), np.asarray(correct_N, bool)
    parts = [part for part in equal_frequency_bins(score, bins) if len(part)]
    return [Bin(float(score[part].min()), float(score[part].max()), accuracy(correct[part])) for part in parts]


def bin_trend(score_N: ArrayLike, correct_N: ArrayLike, bins: int) -> float:
    """Spearman correlation of the bin's place with its accuracy: -1 when accuracy falls at every step."""
    accuracies = [found.accuracy.share for found in accuracy_by_bin(score_N, correct_N, bins)]
    return spearman(range(len(accuracies)), accuracies)


def tie_share(score_N: ArrayLike) -> float:
    """The share of values that repeat another one; 0 without values."""
    score = np.asarray(score_N)
    return 1 - len(np.unique(score)) / len(score) if len(score) else 0.0
