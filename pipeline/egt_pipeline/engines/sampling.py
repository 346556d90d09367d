"""The next token: the same choice in every engine, so equal logits and seeds give equal samples."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK_ROWS = 32  # float64 of 32 rows of 152,064 tokens is 39 MB; a whole batch of 512 would take a GPU's spare memory


def draws(seed: int, place: int, steps: int) -> NDArray[np.float64]:
    """draws_T, uniform in [0, 1): a stream for each place of a batch, so that samples do not depend on each other."""
    return np.random.default_rng([seed, place]).random(steps)


def choose(logits_BV: Tensor, temperature: float, draws_B: Tensor, forbidden: Sequence[int]) -> Tensor:
    """tokens_B: the token whose share of the cumulated distribution is drawn; never a forbidden one."""
    blocks = zip(torch.split(logits_BV, _BLOCK_ROWS), torch.split(draws_B, _BLOCK_ROWS), strict=True)
    return torch.cat([_choose(logits, temperature, drawn, forbidden) for logits, drawn in blocks])


def _choose(logits_BV: Tensor, temperature: float, draws_B: Tensor, forbidden: Sequence[int]) -> Tensor:
    allowed = logits_BV.double().index_fill(-1, torch.tensor(forbidden, device=logits_BV.device), -torch.inf)
    cumulated_BV = (allowed / temperature).softmax(-1).cumsum(-1)
    # Below the last value, so that rounding cannot lead beyond the last token that has a probability.
    drawn_B1 = (draws_B[:, None] * cumulated_BV[:, -1:]).contiguous()
    return torch.searchsorted(cumulated_BV, drawn_B1, right=True)[:, 0].clamp_max(logits_BV.shape[-1] - 1)
