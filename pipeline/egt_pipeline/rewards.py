"""The reward of one response, and the rule-based judge of its logic: text in, numbers out.

R = R_acc · (1 + w_logic · R_logic) + w_format · R_format            R1-Reward, arXiv 2505.02835, section 4.3

accuracy  logic   R without format   R with format     (both weights 0.5)
0         any     0.0                0.5
1         -1      0.5                1.0
1          0      1.0                1.5
1         +1      1.5                2.0
"""

import re
from dataclasses import dataclass
from typing import Literal

from egt_pipeline.prompts import VerdictStatus, is_well_formed, parse_verdict

Logic = Literal[-1, 0, 1]
Answer = Literal[1, 2]

_THINK = re.compile(r"<think>(.*?)(?:</think>|<answer>|$)", re.DOTALL)
_SENTENCE = re.compile(r"[^.;!?\n]+")
_SIDE = re.compile(r"\b(?:response|answer|option|assistant) *(?:1|2|one|two|a|b)\b|\b(?:first|second)\b", re.IGNORECASE)
_FIRST = re.compile(r"(?:1|one|a|first)$", re.IGNORECASE)
_BETTER = re.compile(r"\b(?:better|best|superior|stronger|prefer\w*|more \w+)\b", re.IGNORECASE)
_WORSE = re.compile(r"\b(?:worse|worst|inferior|weaker|less \w+)\b", re.IGNORECASE)
_RIGHT = re.compile(r"\b(?:right|correct|true|accurate)\b", re.IGNORECASE)
_WRONG = re.compile(r"\b(?:wrong|incorrect|false|inaccurate)\b", re.IGNORECASE)
_NO_DECISION = re.compile(r"\b(?:both|neither|equally|not|\w+n't)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Grade:
    """What can be said of a response without a judge. ``accuracy`` and ``format`` are 0 or 1."""

    status: VerdictStatus
    answer: Answer | None
    accuracy: float
    format: float
    reasoning: str


def grade(response: str, label: int, *, truncated: bool) -> Grade:
    """The grade of ``response`` where answer ``label`` (1 or 2) is the better one; without a verdict it is wrong."""
    verdict = parse_verdict(response, truncated=truncated)
    return Grade(
        status=verdict.status,
        answer=verdict.answer,
        accuracy=float(verdict.answer == label),
        format=float(is_well_formed(response)),
        reasoning=reasoning_of(response),
    )


def reasoning_of(response: str) -> str:
    """The text inside <think>, or what stands before <answer> when there is none."""
    found = _THINK.search(response)
    return (found.group(1) if found else response.split("<answer>", maxsplit=1)[0]).strip()


def reward(accuracy: float, logic: float, well_formed: float, *, logic_weight: float, format_weight: float) -> float:
    """R of the module's formula. Where accuracy is 0 logic has no effect, so a judge need not be asked."""
    return accuracy * (1 + logic_weight * logic) + format_weight * well_formed


def rule_logic(reasoning: str, answer: Answer) -> Logic:
    """+1 if the last conclusion of ``reasoning`` is ``answer``, -1 if it is the other one, 0 if it comes to none."""
    conclusion = _conclusion(reasoning)
    if conclusion is None:
        return 0
    return 1 if conclusion == answer else -1


def _conclusion(reasoning: str) -> Answer | None:
    """Which response the sentences prefer at the end: by comparing, or by calling one right and the other wrong."""
    found: Answer | None = None
    called: dict[Answer, bool] = {}
    for sentence in _SENTENCE.findall(reasoning):
        if not _SIDE.search(sentence):
            continue
        if _NO_DECISION.search(sentence):
            found, called = None, {}
        elif (side := _subject(sentence, _WORSE)) is not None:
            found, called = _other(side), {}
        elif (side := _subject(sentence, _BETTER)) is not None:
            found, called = side, {}
        else:
            wrong, right = _subject(sentence, _WRONG), _subject(sentence, _RIGHT)
            called |= {side: False for side in [wrong] if side} | {side: True for side in [right] if side}
            found = _from_calls(called) if called else found
    return found


def _from_calls(called: dict[Answer, bool]) -> Answer | None:
    first, second = called.get(1), called.get(2)
    if first == second:
        return None
    if first is None or second is None:
        return 1 if first or second is False else 2
    return 1 if first else 2


def _subject(sentence: str, judgement: re.Pattern[str]) -> Answer | None:
    """Whom the sentence judges: the response named last before the judging word, else the first one after it."""
    word = judgement.search(sentence)
    if word is None:
        return None
    sides = list(_SIDE.finditer(sentence))
    before = [side for side in sides if side.end() <= word.start()]
    after = [side for side in sides if side.start() >= word.end()]
    nearest = before[-1:] or after[:1]
    return (1 if _FIRST.search(nearest[0].group()) else 2) if nearest else None


def _other(side: Answer) -> Answer:
    return 2 if side == 1 else 1
