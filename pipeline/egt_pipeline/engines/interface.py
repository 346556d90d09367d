"""What every engine gives: a greedy or sampled response, and the exact entropies of each of its tokens."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
class Batch:
    """Requests whose responses are wanted together. ``seed`` and a request's place in it decide what is sampled."""

    requests: Sequence[Request]
    seed: int = 0


@dataclass(frozen=True)
class Generation:
    """One response.

    ``entropies_nats_T`` holds, for each generated token without the end-of-sequence token, the entropy of the
    full-vocabulary distribution it was drawn from (natural log, float32 softmax of raw logits). ``p_digits_T2`` holds
    the probabilities of the tokens "1" and "2" at each of these positions. ``offsets_T`` is where each token's text
    starts in ``text``. Where logits were NaN the response ends: its last entropy is NaN and has no token.
    """

    text: str
    truncated: bool
    token_ids_T: NDArray[np.int32]
    entropies_nats_T: NDArray[np.float64]
    p_digits_T2: NDArray[np.float64]
    offsets_T: NDArray[np.int64]


@dataclass(frozen=True)
class Refused:
    """A request that cannot be put before the model, as a picture that cannot be decoded; others go on."""

    reason: str


class Engine(Protocol):
    """A reward model that generates."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What computed the numbers: engine and version, precision, device, and what else could move them."""

    def generate(
        self, batches: Iterable[Batch], *, max_new_tokens: int, temperature: float
    ) -> Iterator[list[Generation | Refused]]:
        """The responses of each batch, in the order of the batches and of their requests.

        ``batches`` is read ahead as far as the engine has room, so nothing waits for the last response of a batch.
        ``temperature`` 0 is greedy; above, a sample depends on its request, the batch's seed and its place in it.
        """

    def close(self) -> None:
        """Give back the device's memory; nothing can be generated any more."""
