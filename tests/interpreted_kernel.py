"""The GPU kernel by Triton's interpreter, in a process of its own.

Triton decides once, when it is imported, whether it interprets; a process that has it from something else compiles.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

from torch import Tensor

Sums = Callable[[Tensor], tuple[Tensor, Tensor]]


@contextmanager
def interpreted() -> Iterator[Sums]:
    """``entropy_kernel.sums_in_one_pass``, interpreted."""
    with ProcessPoolExecutor(1, get_context("spawn"), _interpret) as process:
        yield lambda logits_NV: process.submit(_sums, logits_NV).result()


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"


def _sums(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    from egt_pipeline.entropy_kernel import sums_in_one_pass

    return sums_in_one_pass(logits_NV)
