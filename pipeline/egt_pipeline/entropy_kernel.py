"""Entropy on a GPU in one pass over the logits: they are read once, and nothing of their size is written."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096  # logits a program holds at once: 16 kB in float32, within registers at eight warps


@triton.jit  # type: ignore[untyped-decorator]
def _entropy(logits_ptr, out_ptr, stride, size, LOWEST: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Shifted sums as in ``entropy._entropy``, online: when the maximum moves, what was summed moves with it.

    With z = x - max, s = sum e^z and t = sum e^z z, a new maximum at distance d <= 0 makes s e^d and (t + s d) e^d.
    """
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    highest = -float("inf")
    # One sum for each lane: 40 additions instead of 152,064 are what rounding gets to work on.
    s = tl.zeros([BLOCK], tl.float32)
    t = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        x = tl.load(logits_ptr + row * stride + start + lanes, start + lanes < size, -float("inf")).to(tl.float32)
        new = tl.maximum(highest, tl.max(x, 0))
        d = tl.where(highest == new, 0.0, tl.maximum(highest - new, LOWEST))
        scale = tl.exp(d)
        z = tl.where(x == -float("inf"), LOWEST, tl.maximum(x - new, LOWEST))
        # tl.maximum drops a NaN, which has to reach the sum.
        z = tl.where(x == x, z, x)  # noqa: PLR0124
        e = tl.exp(z)
        t = (t + s * d) * scale + e * z
        s = s * scale + e
        highest = new
    total = tl.sum(s, 0)
    entropy = tl.log(total) - tl.sum(t, 0) / total
    # Without a finite maximum there is no distribution.
    entropy = tl.where((highest == -float("inf")) | (highest == float("inf")), float("nan"), entropy)
    tl.store(out_ptr + row, entropy)


def entropy_nats(logits_NV: Tensor, lowest: float) -> Tensor:
    """As ``entropy.entropy_nats`` for float32, bfloat16 or float16 logits, in float32 throughout; H_N is float64."""
    logits_NV = logits_NV if logits_NV.stride(-1) == 1 else logits_NV.contiguous()
    out_N = torch.empty(len(logits_NV), dtype=torch.float32, device=logits_NV.device)
    if len(logits_NV):
        grid = (len(logits_NV),)
        _entropy[grid](logits_NV, out_N, logits_NV.stride(0), logits_NV.shape[1], lowest, _BLOCK, num_warps=8)
    return out_N.double()
