"""Work on blocks that fit a processor's cache, by one thread: each of torch's operations on them is too short to share.

Threads that wait for each other after each of thousands of short operations take many times as long where another
process has one of the cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_ckptkd.shapes import Shaped

AT_ONCE = 2**16  # numbers in float64 of a block


def blocks(values: Shaped[Tensor, "R K"]) -> Iterator[slice]:
    """The blocks of the rows of values (R, K), one after another."""
    size = max(1, AT_ONCE // max(1, values.shape[1]))
    for first in range(0, len(values), size):
        yield slice(first, first + size)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch's within, on the CPU."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)
