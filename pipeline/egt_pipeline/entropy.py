"""Entropy of next-token distributions over the full vocabulary, in nats (EGT eq. 3 and 4). Pure."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Measured at V = 152,064: blocks of 16 rows stay in the processor's cache, twice as fast as one block and 1/16 memory.
_BLOCK_ROWS = 16
# exp underflows to 0 far above this in float32 and float64 alike; -inf itself would give 0 * -inf = NaN.
LOWEST = -1e4


def entropy_nats(logits_NV: Tensor) -> Tensor:
    """H_N = -sum_k p_k ln p_k with p = softmax(logits) over all V (EGT eq. 3), in [0, ln V].

    Float64; computed in float32 unless the logits are float64, exact to 1e-6 at V = 152,064. A logit of -inf counts as
    probability 0. A row that holds NaN or +inf, or -inf only, gives NaN: it has no distribution.
    """
    return measure(logits_NV, ())[0]


def measure(logits_NV: Tensor, token_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """H_N as ``entropy_nats``, and p_NK: the probabilities of the K tokens, float64, from the same pass."""
    # Chosen by the device alone: no other form is as exact in one reading of the logits. That the compiled kernel is as
    # fast as the memory allows is for bench/entropy_kernel.py to show on a GPU; so far it has run on none.
    if logits_NV.is_cuda and logits_NV.dtype != torch.float64:
        from egt_pipeline.entropy_kernel import sums_in_one_pass

        entropies_N, log_sums_N = sums_in_one_pass(logits_NV)
    else:
        blocks = [_sums(block) for block in torch.split(logits_NV, _BLOCK_ROWS)]
        entropies_N, log_sums_N = (torch.cat(column) for column in zip(*blocks, strict=True))
    return entropies_N, (logits_NV[:, list(token_ids)].double() - log_sums_N[:, None]).exp()


def _sums(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Entropies and ln sum_k e^logit of each row."""
    x = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    highest_N1 = x.amax(-1, keepdim=True)
    z = (x - highest_N1).clamp_min(LOWEST)
    e = z.exp()
    s, ez = e.sum(-1).double(), e.mul_(z).sum(-1).double()
    # Both terms divide by the same sum: -sum(p log p) with a float32 softmax multiplies its error by the logits' size.
    return s.log() - ez / s, highest_N1[:, 0].double() + s.log()


def sentence_entropy_nats(entropies_T: NDArray[np.float64]) -> float:
    """The mean over the generated tokens (EGT eq. 4); NaN if there is none, or one of them is NaN."""
    return float(np.mean(entropies_T)) if len(entropies_T) else float("nan")
