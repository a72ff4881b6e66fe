"""Rows: outputs and targets of a batch, one for each thing that is predicted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Outputs and targets of a batch as losses and metrics see them.

    Attributes:
        student: Shape (R, K).
        teachers: Shape (M, R, K); None where no teacher ran.
        targets: Shape (R,): class indices; or (R, K), shares of the classes or numbers.
    """

    student: Tensor
    teachers: Tensor | None
    targets: Tensor


@dataclass(frozen=True)
class Labelled:
    """The rows that have a target: what estimators of I(Y;F) and losses that read the target may look at.

    Attributes:
        places: Of these among the P rows of the output, shape (R,).
        targets: Of each, shape (R,) or (R, K).
        samples: The sample that each belongs to, shape (R,).
        units: What each is about, shape (R,), where a sample has several things to tell of (its labels); else None.
    """

    places: Tensor
    targets: Tensor
    samples: Tensor
    units: Tensor | None

    def __len__(self) -> int:
        return len(self.places)

    def take(self, chosen: Tensor) -> Labelled:
        """Some of them: ``chosen`` indexes the R rows."""
        units = None if self.units is None else self.units[chosen]
        return Labelled(self.places[chosen], self.targets[chosen], self.samples[chosen], units)


def rows_of_samples(targets: Tensor, rows: int) -> Tensor:
    """The sample of each row, shape (N * rows,), where each sample of targets (N, ...) has as many rows."""
    return torch.arange(len(targets), device=targets.device).repeat_interleave(rows)


def without_ones(tensor: Tensor) -> tuple[int, ...]:
    """The shape without dimensions of size 1, but with N: (N,) and (N, 1) hold the same."""
    return (len(tensor), *(size for size in tensor.shape[1:] if size != 1)) if tensor.dim() else ()
