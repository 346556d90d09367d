"""Token ids as text, and where in it each token starts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for a part of a character
_LONGEST = 4  # a character has four bytes at most in UTF-8, so it spreads over four tokens at most


class TokenText:
    """Decodes the responses of one tokenizer, special tokens left out."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}

    def decode(self, tokens_T: Sequence[int]) -> tuple[str, NDArray[np.int64]]:
        """The text and, for each token, the place of its first character in it.

        Tokens that share a character all start where it starts.
        """
        text, bounds = self._decode(tokens_T), self._bounds(tokens_T)
        if bounds is None or bounds[-1] != len(text):
            # Broken characters, or a tokenizer that joins tokens in a way of its own: ask it for every prefix.
            bounds = [len(self._decode(tokens_T[:end]).rstrip(_INCOMPLETE)) for end in range(len(tokens_T) + 1)]
        return text, np.array(bounds[:-1], np.int64)

    def _bounds(self, tokens_T: Sequence[int]) -> list[int] | None:
        """Where each token starts and the last one ends, from the texts of single tokens; None if they do not tell."""
        bounds, place = [], 0
        pending: list[int] = []
        for token in tokens_T:
            bounds.append(place)
            pending.append(token)
            piece = self._piece(token) if len(pending) == 1 else self._decode(pending)
            if not piece.endswith(_INCOMPLETE):
                place += len(piece)
                pending = []
            elif len(pending) == _LONGEST:
                return None
        return None if pending else [*bounds, place]

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self._decode([token])
        return self._pieces[token]

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
