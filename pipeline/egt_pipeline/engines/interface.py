"""What every engine gives: a greedy or sampled response, and the exact entropies of each of its tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Request:
    """One prompt: text for the user's turn as ``prompts.messages`` builds it, and the pictures' bytes."""

    question: str
    answer_1: str
    answer_2: str
    images: tuple[bytes, ...]


@dataclass(frozen=True)
class Generation:
    """One response.

    ``entropies_nats_T`` holds, for each generated token without the end-of-sequence token, the entropy of the
    full-vocabulary distribution it was drawn from (natural log, float32 softmax of raw logits). ``p_digits_T2`` holds
    the probabilities of the tokens "1" and "2" at each of these positions. ``offsets_T`` is where each token's text
    starts in ``text``. Where logits were NaN the response ends, and its last entropy is NaN.
    """

    text: str
    truncated: bool
    entropies_nats_T: NDArray[np.float64]
    p_digits_T2: NDArray[np.float64]
    offsets_T: NDArray[np.int64]


@dataclass(frozen=True)
class Refused:
    """A request that cannot be put before the model, as a picture that cannot be decoded; others go on."""

    reason: str


class Engine(Protocol):
    """Generates responses; the order of the results is the order of the requests."""

    def generate(
        self, requests: Sequence[Request], *, max_new_tokens: int, temperature: float, seed: int
    ) -> list[Generation | Refused]:
        """One response a request. ``temperature`` 0 is greedy.

        A sample at ``temperature`` > 0 depends on its request, on ``seed`` and on its place among the requests.
        """
