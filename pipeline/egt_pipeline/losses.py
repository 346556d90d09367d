"""StableReinforce as the R1-Reward paper has it (arXiv 2505.02835, section 4.1, algorithm 1): tensors in and out.

Shapes: B sequences, T response tokens. ``mask_BT`` is 1 on response tokens. The paper's released code differs (its
filter compares standardised advantages with bounds around the raw mean); this follows the paper.
"""

import math

import torch
from torch import Tensor

_SMALLEST_VARIANCE = 1e-8  # equal rewards give advantages of 0, not of 0/0


def pre_clip(log_ratio: Tensor, bound: float) -> Tensor:
    """``log_ratio`` clamped to ±ln ``bound``, so that exp of it stays within 1/bound .. bound.

    The gradient is 0 where the clamp holds: a token whose probability jumped has no say. Section 4.1, "Pre-CLIP".
    """
    return log_ratio.clamp(-math.log(bound), math.log(bound))


def is_pre_clipped(log_ratio: Tensor, bound: float) -> Tensor:
    """True where ``pre_clip`` changes the value."""
    return log_ratio.abs() > math.log(bound)


def whiten(advantages_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """``advantages_BT`` less their mean, over their deviation; both over all response tokens of the batch."""
    count = mask_BT.sum()
    mean = (advantages_BT * mask_BT).sum() / count
    variance = ((advantages_BT - mean).square() * mask_BT).sum() / count
    return (advantages_BT - mean) * variance.clamp(min=_SMALLEST_VARIANCE).rsqrt()


def within_sigma(advantages: Tensor, sigma: float) -> Tensor:
    """True where a whitened advantage is within ``sigma`` deviations. Section 4.1, "advantage filter"."""
    return advantages.abs() <= sigma


def sigma_filter(advantages: Tensor, sigma: float) -> Tensor:
    """Whitened ``advantages``, 0 where they are outliers; such a sample stays in the batch and in its mean."""
    return torch.where(within_sigma(advantages, sigma), advantages, torch.zeros_like(advantages))


def policy_loss(
    log_probs_BT: Tensor,
    old_log_probs_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    pre_clip_bound: float,
    clip_epsilon: float,
) -> Tensor:
    """The scalar objective to minimise: PPO's clipped surrogate on the pre-clipped ratio (algorithm 1).

    ``advantages_BT`` are whitened and filtered. Each sequence's mean over its tokens, then the mean over sequences.
    """
    ratio = pre_clip(log_probs_BT - old_log_probs_BT, pre_clip_bound).exp()
    clipped = ratio.clamp(1 - clip_epsilon, 1 + clip_epsilon)
    token_loss = -torch.minimum(ratio * advantages_BT, clipped * advantages_BT) * mask_BT
    return (token_loss.sum(-1) / mask_BT.sum(-1).clamp(min=1)).mean()
