"""Labels that are wrong: how real data often are, and what a choice of teachers is for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError


def check_share(share: float) -> None:
    """Check a share of wrong labels.

    Raises:
        ArgumentError: If it is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise ArgumentError(f"wrong_labels should be a share in [0, 1], such as 0.4, got {share}.")


class Relabelled(Dataset[tuple[Any, int]]):
    """The same inputs with other labels.

    Args:
        samples: Pairs of an input and its label.
        labels: The new labels, one for each sample.

    Raises:
        ArgumentError: If there is another number of labels than of samples.
    """

    def __init__(self, samples: Dataset[Any], labels: Sequence[int]) -> None:
        if len(samples) != len(labels):  # type: ignore[arg-type]  # Dataset declares no length
            raise ArgumentError(
                f"labels: there are {len(labels)} for {len(samples)} samples. Give one for each, in their order."  # type: ignore[arg-type]
            )
        self.samples, self.labels = samples, list(labels)

    def __len__(self) -> int:
        return len(self.labels)

    @override
    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.samples[index][0], self.labels[index]


class WrongLabels(Dataset[tuple[Any, int]]):
    """Symmetric noise: each sample's label is, with a probability, one of the other classes, always the same one.

    Args:
        samples: Pairs of an input and its class index.
        share: The probability, in [0, 1].
        num_classes: K, two or more.
        seed: Of the draw.

    Raises:
        ArgumentError: If ``share`` can't be used.
    """

    def __init__(self, samples: Dataset[Any], share: float, num_classes: int, seed: int) -> None:
        check_share(share)
        generator = torch.Generator().manual_seed(seed)
        count = len(samples)  # type: ignore[arg-type]  # Dataset declares no length
        wrong = torch.rand(count, generator=generator) < share
        self.samples, self.num_classes = samples, num_classes
        self.shifts = torch.where(wrong, torch.randint(1, num_classes, (count,), generator=generator), 0).tolist()

    def __len__(self) -> int:
        return len(self.shifts)

    @override
    def __getitem__(self, index: int) -> tuple[Any, int]:
        x, y = self.samples[index]
        return x, (int(y) + self.shifts[index]) % self.num_classes
