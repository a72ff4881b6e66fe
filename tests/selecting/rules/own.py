"""Rules as a user would write them."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_ckptkd.selecting.rules import PositionRule, RowRule


class Confidence(RowRule):
    """How sure a snapshot is of what it says."""

    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def values(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.softmax(1).amax(1) ** self.power


class Early(PositionRule):
    """The first snapshots from a step on."""

    def __init__(self, after: int = 0) -> None:
        self.after = after

    def order(self, steps: Tensor, count: int) -> Tensor:
        return torch.argsort((steps < self.after).double() * 1e9 + steps)[:count]


class Forgetful(RowRule):
    def __init__(self, power: float = 1.0) -> None:
        self._power = power

    def values(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits[:, 0]


class Wild(RowRule):
    def values(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits[:, 0] / 0
