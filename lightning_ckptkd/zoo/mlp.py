"""Perceptrons, which learn wrong labels by heart sooner than convolutional networks do."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import nn

from lightning_ckptkd.errors import ArgumentError


class MLP(nn.Sequential):
    """Linear layers with ReLU between them, on inputs laid out as vectors.

    Args:
        in_features: D, numbers of an input (N, ...) in all.
        hidden: Width of each hidden layer, one or more.
        num_classes: Number of classes K.

    Raises:
        ArgumentError: If a width is below 1, or there is none.
    """

    def __init__(self, in_features: int, hidden: Sequence[int], num_classes: int) -> None:
        if not hidden or min(hidden) < 1:
            raise ArgumentError(f"hidden should be one width or more, each 1 or more, such as [256], got {hidden!r}.")
        sizes = (in_features, *hidden)
        layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        super().__init__(nn.Flatten(), *layers, nn.Linear(sizes[-1], num_classes))
