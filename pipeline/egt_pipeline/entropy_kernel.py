"""Entropy on a GPU in one pass over the logits: they are read once, and nothing of their size is written.

Checked by Triton's interpreter only, on a CPU, which has its arithmetic and not its compilation. On a GPU vLLM's
self-test compares two tokens of each start with vLLM's own log-probabilities, and bench/entropy_kernel.py with float64.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from egt_pipeline.entropy import LOWEST

_BLOCK = 4096  # logits a program holds at once: 16 kB in float32, within registers at eight warps


@triton.jit  # type: ignore[untyped-decorator]
def _sums(logits_ptr, entropy_ptr, log_sum_ptr, stride, size, FLOOR: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Shifted sums as in ``entropy._sums``, online: when the maximum moves, what was summed moves with it.

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
        d = tl.where(highest == new, 0.0, tl.maximum(highest - new, FLOOR))
        scale = tl.exp(d)
        z = tl.where(x == -float("inf"), FLOOR, tl.maximum(x - new, FLOOR))
        # tl.maximum drops a NaN, which has to reach the sum.
        z = tl.where(x == x, z, x)  # noqa: PLR0124
        e = tl.exp(z)
        t = (t + s * d) * scale + e * z
        s = s * scale + e
        highest = new
    total = tl.log(tl.sum(s, 0))
    # Without a finite maximum there is no distribution.
    none = (highest == -float("inf")) | (highest == float("inf"))
    tl.store(entropy_ptr + row, tl.where(none, float("nan"), total - tl.sum(t, 0) / tl.sum(s, 0)))
    tl.store(log_sum_ptr + row, tl.where(none, float("nan"), highest + total))


def sums_in_one_pass(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """As ``entropy._sums`` for float32, bfloat16 or float16 logits, in float32 throughout; both float64."""
    logits_NV = logits_NV if logits_NV.stride(-1) == 1 else logits_NV.contiguous()
    rows, size = logits_NV.shape
    out_2N = torch.empty((2, rows), dtype=torch.float32, device=logits_NV.device)
    if rows:
        _sums[(rows,)](logits_NV, out_2N[0], out_2N[1], logits_NV.stride(0), size, LOWEST, _BLOCK, num_warps=8)
    return out_2N[0].double(), out_2N[1].double()
