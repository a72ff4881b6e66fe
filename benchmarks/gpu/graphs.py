"""A forward pass as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def graphed(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Record what a call does on the GPU, to be started again as one.

    Args:
        run: Always the same work on the same memory, without gradients.

    Returns:
        Gives the same tensor each time, written anew.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # cuDNN chooses its algorithms, which can't be recorded
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()

    def replay() -> Tensor:
        graph.replay()
        return found

    return replay
