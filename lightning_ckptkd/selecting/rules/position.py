"""Rules that go by the place in training alone: the baselines that any other has to beat."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from lightning_ckptkd.information.ranking import rank_half, rank_last, rank_spaced
from lightning_ckptkd.selecting.rules.base import PositionRule


class Full(PositionRule):
    """The last snapshot: the fully trained teacher."""

    short_name: ClassVar[str] = "full"
    num_teachers: ClassVar[int | str] = 1

    @override
    def order(self, steps: Tensor, count: int) -> Tensor:
        return rank_last(steps, count)


class Half(PositionRule):
    """The snapshot half-way through training: the paper's practical default."""

    short_name: ClassVar[str] = "half"
    num_teachers: ClassVar[int | str] = 1

    @override
    def order(self, steps: Tensor, count: int) -> Tensor:
        return rank_half(steps, count)


class Spaced(PositionRule):
    """Snapshots evenly over training, the last included."""

    short_name: ClassVar[str] = "spaced"

    @override
    def order(self, steps: Tensor, count: int) -> Tensor:
        return rank_spaced(steps, count)
