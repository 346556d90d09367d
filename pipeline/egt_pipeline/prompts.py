"""Prompts by id, and the verdict read back out of a response: pure text, no model.

The structure of ``egt-v1`` follows R1-Reward's (arXiv 2505.02835, Table 1): role, instruction to reason inside
<think>, a single digit inside <answer>, then the question and the two responses. ``plain-v1`` is one short line, for
models of a few hundred thousand weights. Images come first in the message, in the order of the row.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from egt_pipeline.contract.base import PromptId

_EGT_V1 = """You judge two responses to a question about the images above and say which one is better.
Compare them side by side: correctness, what the images show, completeness. A tie is not permitted.
Write your comparison inside <think></think>, then a single digit inside <answer></answer>: \
1 if Response 1 is better, 2 if Response 2 is better.

[Question]
{question}

[Response 1]
{answer_1}

[Response 2]
{answer_2}

Answer in the form <think>your comparison</think><answer>1 or 2</answer>."""

_TEMPLATES: Mapping[PromptId, str] = {
    "egt-v1": _EGT_V1,
    "plain-v1": "{question} Response 1: {answer_1} Response 2: {answer_2}",
}

# Tags and special tokens that would change the meaning of a prompt when they stand in somebody's answer.
_MARKUP = re.compile(r"<(?=/?(?:image|video|think|answer)>|\|[a-z_]+\|>)")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_FORMAT = re.compile(r"<think>.*?</think><answer>.*?</answer>", re.DOTALL)
FORBIDDEN_TOKENS = (
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>",
)  # a response that holds one of them breaks training: images and image tokens no longer match  # fmt: skip

VerdictStatus = Literal["ok", "no_answer", "many_answers", "bad_answer", "truncated"]


def escape(text: str) -> str:
    """``text`` with `<` written as `&lt;` wherever it would start a tag or a special token of ours."""
    return _MARKUP.sub("&lt;", text)


def render(prompt: PromptId, question: str, answer_1: str, answer_2: str) -> str:
    """The text of the user's message."""
    return _TEMPLATES[prompt].format(question=escape(question), answer_1=escape(answer_1), answer_2=escape(answer_2))


def messages(prompt: PromptId, question: str, answer_1: str, answer_2: str, image_count: int) -> list[dict[str, Any]]:
    """One user turn for a chat template: the images, then the text. No system prompt."""
    text = {"type": "text", "text": render(prompt, question, answer_1, answer_2)}
    return [{"role": "user", "content": [{"type": "image"}] * image_count + [text]}]


@dataclass(frozen=True)
class Verdict:
    """What a response decided. ``offset`` is where the answer's digit stands in the text; None unless status is ok."""

    status: VerdictStatus
    reason: str
    answer: Literal[1, 2] | None = None
    offset: int | None = None


def parse_verdict(response: str, *, truncated: bool = False) -> Verdict:
    """The answer of a response: one <answer> with 1 or 2 inside; everything else is a status with its reason."""
    if truncated:
        return Verdict("truncated", "cut at the longest length allowed")
    found = list(_ANSWER.finditer(response))
    if not found:
        return Verdict("no_answer", "no <answer>...</answer>")
    tags = max(response.count("<answer>"), response.count("</answer>"))
    if tags > 1:
        return Verdict("many_answers", f"{tags} <answer> tags")
    inside = found[0].group(1)
    if inside.strip() not in ("1", "2"):
        return Verdict("bad_answer", f"<answer> holds {inside.strip()[:40]!r}, not 1 or 2")
    digit = inside.strip()
    return Verdict("ok", "", 1 if digit == "1" else 2, found[0].start(1) + inside.index(digit))


def is_well_formed(response: str) -> bool:
    """True for <think>..</think><answer>..</answer>, each tag once and nothing between or around them (R_format)."""
    once = all(response.count(tag) == 1 for tag in ("<think>", "</think>", "<answer>", "</answer>"))
    return once and _FORMAT.fullmatch(response.strip()) is not None


def normalise_response(response: str) -> str:
    """The response in the form that is trained on: outer white space and the gap between the two parts removed."""
    return re.sub(r"</think>\s*<answer>\s*(.*?)\s*</answer>", r"</think><answer>\1</answer>", response.strip())
