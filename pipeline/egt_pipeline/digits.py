"""Real small data: preferences over the 1,797 handwritten digits that ship inside scikit-learn.

Each pair shows a picture and two claims about it, "four" or "7". The annotator of the labels is wrong in four ways, and
the truth about it goes to ``truth.parquet``, which no stage is ever given:

* ``both_right``, ``both_wrong``: undecidable pairs; the label is a guess
* ``style_biased``: the label follows the style (the spelled-out word) the more, the more the picture is degraded
* ``ambiguous_flip``: the label is flipped as often as a weak reader confuses the two digits in this picture
* ``uniform_flip``: the label is flipped at random; no score without labels can see these
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egt_pipeline.digit_pictures import WORDS, Reader, degradation_of, picture_split, render, write_png

_UNDECIDABLE_SHARE = {"sft": 0.20, "rl": 0.15, "heldout": 0.0}
_CLEAR_SHARE = {"sft": 0.5, "rl": 0.3}
_UNIFORM_SHARE = 0.05
# The chance of a style-biased label is this times the degradation, up to 1: clear pictures are never touched.
_BIAS = 1.5
QUESTION = "Which digit is this?"


@dataclass(frozen=True)
class Pair:
    """One drawn pair with everything that is known about it; only ``row`` of it is ever shown to a stage."""

    source_picture: int
    digit: int
    degradation: float
    claims: tuple[int, int]
    spelled: tuple[bool, bool]
    gold: int | None
    label: int
    kind: str
    biased: bool
    p_flip: float

    @property
    def answers(self) -> tuple[str, str]:
        """The two claims as they are written."""
        first, second = (
            WORDS[claim] if spelled else str(claim) for claim, spelled in zip(self.claims, self.spelled, strict=True)
        )
        return first, second

    @property
    def right_style(self) -> str:
        """The style of the better answer, by which held-out accuracies are reported."""
        return "word" if self.gold is not None and self.spelled[self.gold - 1] else "digit"


class Digits:
    """Draws pairs; everything follows from ``seed``. The split of the pictures is the same for every seed."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    @cached_property
    def weak_reader(self) -> Reader:
        """The annotator's eyes: a small network trained on degraded pictures of the sft split."""
        return Reader.train(picture_split()["sft"], hidden=(64,), renderings=4, seed=0)

    def draw(self, split: str, count: int) -> tuple[list[Pair], list[NDArray[np.uint8]]]:
        """``count`` pairs of a split and their pictures (28 x 28, grey), in random order."""
        rng = self._rng
        sources = picture_split()[split]
        chosen = [int(rng.choice(sources)) for _ in range(count)]
        strength = [self._degradation(split, number) for number in range(count)]
        pictures = [render(source, d, rng) for source, d in zip(chosen, strength, strict=True)]
        seen_CK = self.weak_reader.probabilities(pictures)
        draw = self._held_out if split == "heldout" else self._annotated
        pairs = [
            draw(split, number, source, d, seen_K)
            for number, (source, d, seen_K) in enumerate(zip(chosen, strength, seen_CK, strict=True))
        ]
        order = rng.permutation(count)
        return [pairs[i] for i in order], [pictures[i] for i in order]

    def _degradation(self, split: str, number: int) -> float:
        if split == "heldout":
            return 0.0 if number % 2 == 0 else degradation_of(self._rng)
        return 0.0 if self._rng.random() < _CLEAR_SHARE[split] else degradation_of(self._rng)

    def _held_out(self, _split: str, number: int, source: int, strength: float, _seen_K: NDArray[Any]) -> Pair:
        """Decidable, gold labels; position, style of the right answer and degradation balanced exactly (8 cells)."""
        gold = number // 2 % 2 + 1
        right_is_word = number // 4 % 2 == 0
        digit = Reader.digit_of(source)
        wrong = self._other_than(digit)
        claims = (digit, wrong) if gold == 1 else (wrong, digit)
        spelled = (right_is_word, not right_is_word) if gold == 1 else (not right_is_word, right_is_word)
        return Pair(source, digit, strength, claims, spelled, gold, gold, "clean", biased=False, p_flip=0.0)

    def _annotated(self, split: str, number: int, source: int, strength: float, seen_K: NDArray[Any]) -> Pair:
        rng = self._rng
        digit = Reader.digit_of(source)
        first_spelled = bool(rng.integers(2))
        # In the rl data every pair has one word and one digit, so that style can decide.
        second_spelled = not first_spelled if split == "rl" or rng.random() < 0.5 else first_spelled
        spelled = (first_spelled, second_spelled)
        kind_draw = rng.random()
        by_style = split == "rl" and rng.random() < min(1.0, _BIAS * strength)
        word = 1 if first_spelled else 2
        if kind_draw < _UNDECIDABLE_SHARE[split]:
            both_right = kind_draw < _UNDECIDABLE_SHARE[split] / 2
            wrong = self._other_than(digit)
            claims = (digit, digit) if both_right else (wrong, self._other_than(digit, wrong))
            if both_right:
                spelled = (first_spelled, not first_spelled)  # "4" and "four": different answers, both right
            # A pair that nothing else decides is always decided by style, where there is a style to follow.
            biased = split == "rl"
            label = word if biased else int(rng.integers(1, 3))
            kind = "both_right" if both_right else "both_wrong"
            return Pair(source, digit, strength, claims, spelled, None, label, kind, biased, 0.5)
        gold = number % 2 + 1
        wrong = self._other_than(digit)
        claims = (digit, wrong) if gold == 1 else (wrong, digit)
        p_flip = float(seen_K[wrong] / (seen_K[digit] + seen_K[wrong]))
        kind, label = "clean", gold
        if by_style:
            kind, label = "style_biased", word
        elif rng.random() < p_flip:
            kind, label = "ambiguous_flip", 3 - gold
        elif split == "rl" and rng.random() < _UNIFORM_SHARE:
            kind, label = "uniform_flip", 3 - gold
        return Pair(source, digit, strength, claims, spelled, gold, label, kind, by_style, p_flip)

    def _other_than(self, *digits: int) -> int:
        return int(self._rng.choice([digit for digit in range(10) if digit not in digits]))


def write_digits(out: Path, *, sft: int, rl: int, heldout: int, seed: int) -> dict[str, dict[str, int]]:
    """Write the three sources, the pictures and ``truth.parquet`` to ``out``; rows by split and kind of noise."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    digits = Digits(seed)
    truth: list[dict[str, Any]] = []
    counts: dict[str, dict[str, int]] = {}
    for split, count in (("sft", sft), ("rl", rl), ("heldout", heldout)):
        pairs, pictures = digits.draw(split, count)
        (out / "images" / split).mkdir(parents=True, exist_ok=True)
        names = [f"{split}-{number:05d}" for number in range(count)]
        _write_rows(out, split, names, pairs, pictures)
        truth += [{"sample_id": name, "split": split, **asdict(pair)} for name, pair in zip(names, pairs, strict=True)]
        kinds = [pair.kind for pair in pairs]
        counts[split] = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    pq.write_table(pa.Table.from_pylist(truth), out / "truth.parquet")
    return counts


def _write_rows(
    out: Path, split: str, names: Sequence[str], pairs: Sequence[Pair], pictures: Sequence[NDArray[np.uint8]]
) -> None:
    with (out / f"{split}.jsonl").open("w") as lines:
        for name, pair, picture in zip(names, pairs, pictures, strict=True):
            image = f"images/{split}/{name}.png"
            write_png(out / image, picture)
            row: dict[str, Any] = {
                "sample_id": name,
                "images": [image],
                "question": QUESTION,
                "answer_1": pair.answers[0],
                "answer_2": pair.answers[1],
                "label": pair.label,
            }
            if split == "heldout":
                row |= {"subset": "degraded" if pair.degradation > 0 else "clear", "group": pair.right_style}
            lines.write(json.dumps(row) + "\n")
