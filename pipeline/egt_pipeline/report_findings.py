"""What a report says in numbers: the gate, what other shares would keep, which known noise the score finds. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from egt_pipeline import curation
from egt_pipeline.contract.recipes import CurateRecipe, Keep
from egt_pipeline.metrics import Proportion, accuracy, auc, bin_trend, wilson
from egt_pipeline.report_data import Mask, Probed

SHARES = (0.05, 0.10, 0.15, 0.30, 0.50)
BINS = 10
UNDECIDABLE = ("both_right", "both_wrong")
NOISE = {
    "undecidable": UNDECIDABLE,
    "style-biased": ("style_biased",),
    "ambiguous flip": ("ambiguous_flip",),
    "uniform flip": ("uniform_flip",),
}
# Lower and upper bound of the AUC of answer entropy against clean samples; measured on the digits of `egt data digits`.
_AUC_BOUNDS = {
    "undecidable": (0.85, 1.0),
    "style-biased": (0.75, 1.0),
    "ambiguous flip": (0.65, 1.0),
    "uniform flip": (0.4, 0.6),
}
_CLEAR_ACCURACY = 0.95
_TREND = -0.85


@dataclass(frozen=True)
class Check:
    """One condition of the gate; ``passed`` is None when the run has nothing to measure it on."""

    name: str
    value: float
    wanted: str
    passed: bool | None
    from_: str


def gate(probed: Probed, clear: Proportion | None) -> list[Check]:
    """The conditions under which entropies are informative; ``clear`` is the accuracy on clear held-out samples."""
    share = clear.share if clear is not None else float("nan")
    held_out = _check("free-generation accuracy, clear held-out samples", share, _CLEAR_ACCURACY, 1.0, "predictions")
    chosen = probed.ranked
    trend = bin_trend(probed.answer_N[chosen], probed.agrees[chosen], BINS) if chosen.sum() >= BINS else float("nan")
    falling = _check("Spearman(decile of answer entropy, agreement with labels)", trend, -1.0, _TREND, "entropies")
    known = [
        _check(f"AUC of answer entropy, {name} against clean", row.auc_answer, *_AUC_BOUNDS[name], "truth")
        for name, row in ((row.name, row) for row in recovery(probed))
    ]
    return [held_out, falling, *known]


def _check(name: str, value: float, low: float, high: float, from_: str) -> Check:
    wanted = f"≤ {high:g}" if low == -1.0 else f"≥ {low:g}" if high == 1.0 else f"{low:g} to {high:g}"
    return Check(name, value, wanted, None if np.isnan(value) else bool(low <= value <= high), from_)


def verdict(checks: Sequence[Check]) -> str:
    """ "entropies informative", or that they are not yet, with the conditions that are missed or cannot be measured."""
    missed = [f"{check.name} is {check.value:.3f}, wanted {check.wanted}" for check in checks if check.passed is False]
    unknown = [f"{check.name} could not be measured" for check in checks if check.passed is None]
    if not missed and not unknown:
        return "entropies informative"
    return "entropies not informative yet, because " + "; ".join(missed + unknown)


@dataclass(frozen=True)
class WhatIf:
    """What keeping a share would mean: agreement with the labels and noise, kept and dropped."""

    share: float
    kept: int
    highest_score: float
    agreement_kept: Proportion
    agreement_dropped: Proportion
    predicted_1: float
    noise_kept: float
    noise_dropped: float


def what_if(probed: Probed, recipe: CurateRecipe) -> list[WhatIf]:
    """The run's own score and balance at other shares, low end; shares that keep nothing are left out."""
    ranked = np.flatnonzero(probed.ranked)
    return [_what_if(probed, recipe, share) for share in SHARES if int(share * len(ranked)) > 0]


def _what_if(probed: Probed, recipe: CurateRecipe, share: float) -> WhatIf:
    ranked = probed.ranked
    members = [ranked]
    if recipe.balance == "predicted":
        members = [ranked & (probed.predicted_N == answer) for answer in (1, 2)]
    kept, threshold = curation.amount(Keep(share=share), probed.score_N)
    found = curation.cuts(probed.score_N, members, Keep(share=share), kept, threshold)
    order = curation.curriculum(
        found,
        probed.score_N,
        lambda at: probed.sentence_N[at],
        lambda at: pa.array([probed.ids[place] for place in at], pa.string()),
    )
    chosen = np.zeros(len(ranked), bool)
    chosen[order] = True
    dropped = ranked & ~chosen
    noisy = ~np.isin(probed.kind, ("clean", ""))
    known = bool((probed.kind != "").any())
    return WhatIf(
        share=share,
        kept=kept,
        highest_score=float(probed.score_N[order].max()),
        agreement_kept=accuracy(probed.agrees[chosen]),
        agreement_dropped=accuracy(probed.agrees[dropped]),
        predicted_1=float(np.mean(probed.predicted_N[chosen] == 1)),
        noise_kept=_share(noisy, chosen) if known else float("nan"),
        noise_dropped=_share(noisy, dropped) if known else float("nan"),
    )


@dataclass(frozen=True)
class Recovery:
    """How well each entropy separates one kind of known noise from clean samples."""

    name: str
    count: int
    auc_answer: float
    auc_sentence: float
    share_kept: float
    share_dropped: float


def recovery(probed: Probed) -> list[Recovery]:
    """One entry a kind of noise; empty without truth."""
    if not (probed.kind != "").any():
        return []
    clean = probed.ranked & (probed.kind == "clean")
    rows = []
    for name, kinds in NOISE.items():
        noisy = probed.ranked & np.isin(probed.kind, kinds)
        both = clean | noisy
        rows.append(
            Recovery(
                name,
                int(noisy.sum()),
                auc(probed.answer_N[both], noisy[both]),
                auc(probed.sentence_N[both], noisy[both]),
                _share(noisy, probed.kept_N),
                _share(noisy, probed.ranked & ~probed.kept_N),
            )
        )
    return rows


@dataclass(frozen=True)
class Disagreement:
    """What "confident and disagreeing" flags: answer entropy in the lowest ``share``, prediction other than the label.

    ``precision``: the flagged whose label is wrong; ``recall``: the uniform flips that are flagged.
    """

    share: float
    flagged: int
    precision: Proportion
    recall: Proportion


def disagreements(probed: Probed) -> list[Disagreement]:
    """The rule at the lowest 30 % and 50 % of answer entropies; empty without truth. It reads labels."""
    if not (probed.kind != "").any():
        return []
    found = []
    uniform = probed.ranked & (probed.kind == "uniform_flip")
    wrong = (probed.gold_N > 0) & (probed.gold_N != probed.label_N)
    for share in (0.3, 0.5):
        limit = np.quantile(probed.answer_N[probed.ranked], share)
        flagged = probed.ranked & (probed.answer_N <= limit) & ~probed.agrees
        precision = wilson(int((flagged & wrong).sum()), int(flagged.sum()))
        recall = wilson(int((flagged & uniform).sum()), int(uniform.sum()))
        found.append(Disagreement(share, int(flagged.sum()), precision, recall))
    return found


def cuts(probed: Probed, recipe: CurateRecipe) -> dict[str, float]:
    """The highest score kept, or with balance that of each predicted answer; empty unless the low end is kept."""
    if recipe.keep.band != "low":
        return {}
    groups = {"all samples": probed.kept_N}
    if recipe.balance == "predicted":
        groups = {f"predicted {answer}": probed.kept_N & (probed.predicted_N == answer) for answer in (1, 2)}
    return {name: float(probed.score_N[kept].max()) for name, kept in groups.items() if kept.any()}


def examples(probed: Probed, each: int) -> dict[str, list[int]]:
    """Positions of the samples with the lowest scores, around the cut, and with the highest; no sample twice."""
    order = np.flatnonzero(probed.ranked)
    order = order[np.argsort(probed.score_N[order], kind="stable")]
    last_kept = int(np.flatnonzero(probed.kept_N[order]).max(initial=0))
    middle = range(max(0, last_kept + 1 - each // 2), min(len(order), last_kept + 1 + each // 2))
    places = {
        "lowest": range(min(each, len(order))),
        "at the cut": middle,
        "highest": range(len(order) - each, len(order)),
    }
    seen: set[int] = set()
    chosen: dict[str, list[int]] = {}
    for name, wanted in places.items():
        chosen[name] = [int(order[place]) for place in wanted if place >= 0 and place not in seen]
        seen |= set(wanted)
    return chosen


def _share(of: Mask, among: Mask) -> float:
    return float(of[among].mean()) if among.any() else float("nan")
