"""How far training is: in optimiser steps, or in batches where nobody counts the steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_ckptkd.snapshots.dtensor import is_dtensor

_TENSORS, _ELEMENTS = 64, 64  # that a sample looks at: of each tensor the first elements


@dataclass
class StepClock:
    """Lightning's ``global_step``, plus the batches that stand for steps which it did not count.

    An optimiser that is stepped without Lightning's wrapper, or weights that are changed by hand, leave ``global_step``
    where it is. Once the weights are seen to have moved all the same, the batches since then are counted. Where
    Lightning counts, the clock shows ``global_step``, whatever is accumulated in between.

    Attributes:
        global_step: Lightning's number when it last moved.
        batches: Training batches since the run began, when the clock last moved.
        uncounted: Batches that were counted instead of steps.
    """

    global_step: int = 0
    batches: int = 0
    uncounted: int = 0

    @property
    def position(self) -> int:
        """What the clock shows; never less than before, and more whenever steps or batches were counted."""
        return self.global_step + self.uncounted

    def tick(self, global_step: int, batches: int) -> bool:
        """Take over Lightning's numbers after a batch. Whether a step was counted."""
        if global_step <= self.global_step:
            return False
        self.global_step, self.batches = global_step, batches
        return True

    def ahead(self, batches: int) -> int:
        """What the clock would show if the batches since it last moved were counted."""
        return self.position + max(batches - self.batches, 0)

    def count_batches(self, batches: int) -> None:
        """Count the batches since the clock last moved."""
        self.uncounted = self.ahead(batches) - self.global_step
        self.batches = batches


class WeightSample:
    """Some elements of a module's weights, by which to see whether they have moved.

    It looks at parameters that are trained, or at all where none are, or at buffers where there are no parameters. A
    step of any optimiser moves most elements, so that a few thousand tell.

    Args:
        module: The module; of sharded weights this rank's part is looked at.
    """

    def __init__(self, module: nn.Module) -> None:
        self._elements = _sample(module)

    def differs(self, module: nn.Module) -> bool:
        """Whether the module's weights have moved since the sample was taken."""
        found = _sample(module)
        return len(found) != len(self._elements) or not all(map(torch.equal, found, self._elements))


def _sample(module: nn.Module) -> list[Tensor]:
    parameters: list[Tensor] = list(module.parameters())
    watched = [value for value in parameters if value.requires_grad] or parameters or list(module.buffers())
    stride = -(-len(watched) // _TENSORS) or 1
    return [_head(value) for value in watched[::stride]]


def _head(value: Tensor) -> Tensor:
    """The bytes of the first elements in memory: NaN equals itself. On their device, so that nothing waits for it."""
    if torch.nn.parameter.is_lazy(value):
        return torch.empty(0, dtype=torch.uint8)
    value = value.detach()
    local = value.to_local() if is_dtensor(value) else value
    if local.is_meta or local.layout != torch.strided or local.numel() == 0:
        return torch.empty(0, dtype=torch.uint8)
    room = local.untyped_storage().nbytes() // local.itemsize - local.storage_offset()
    count = min(local.numel(), room, _ELEMENTS)
    return torch.as_strided(local, (count,), (1,), local.storage_offset()).clone().view(torch.uint8)
