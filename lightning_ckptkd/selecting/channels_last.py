"""Channels last: how weights lie in memory where convolutions and BatchNorm take a CPU less time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ckptkd.selecting.network_stack import REFUSALS, are_close, state_of
from lightning_ckptkd.tasks.batch import tensors_in
from lightning_ckptkd.trainer.seeding import RandomState

_TOLERANCE = 1e-5  # of the largest output: what teachers' faster ways are allowed


@contextmanager
def channels_last(module: nn.Module, run: Callable[[], Any]) -> Iterator[bool]:
    """Lay a network's weights out channels last until the end of the block, where it says the same so.

    Only weights are laid out: convolutions take their inputs as their weights lie, and what follows takes it from them.
    A network that can't run so, or gives something else, stays as it is. Afterwards weights are in their own memory.

    Args:
        module: In eval mode.
        run: Makes a forward pass of it without gradients, on which both ways are compared; random numbers stay as
            they are.

    Yields:
        Whether weights lie so.
    """
    tensors = [tensor for tensor in state_of(module).values() if tensor.dim() == 4]
    own = [tensor.data for tensor in tensors]
    laid = gains(module) and _says_the_same(tensors, own, run)
    try:
        yield laid
    finally:
        if laid:
            _take_back(tensors, own)


def gains(module: nn.Module) -> bool:
    """Whether a network has convolutions of images in float32 on a CPU that oneDNN runs."""
    weights = [tensor for tensor in module.parameters() if tensor.dim() == 4]
    here = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
    return bool(weights) and here and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def _laid_out(weight: Tensor) -> Tensor:
    """A copy of a convolution's weight (C_out, C_in, H, W), channels last by its strides also where C_in is 1."""
    return torch.empty_like(weight, memory_format=torch.channels_last).copy_(weight)


def _says_the_same(tensors: list[Tensor], own: list[Tensor], run: Callable[[], Any]) -> bool:
    state = RandomState.of("cpu")
    before = tensors_in(run())
    state.restore()
    try:
        for tensor, mine in zip(tensors, own, strict=True):
            tensor.data = _laid_out(mine)
        same = bool(before) and are_close(tensors_in(run()), before, _TOLERANCE)
    except REFUSALS:  # such as a view() of what now lies otherwise
        same = False
    state.restore()
    if not same:
        _take_back(tensors, own)
    return same


def _take_back(tensors: list[Tensor], own: list[Tensor]) -> None:
    for tensor, mine in zip(tensors, own, strict=True):
        mine.copy_(tensor.data)
        tensor.data = mine
