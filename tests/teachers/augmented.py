"""Real images under random transforms, as people augment them."""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from tests.projects import digits


def augmentation() -> v2.Compose:
    """Draws from torch's, Python's and NumPy's generators."""
    return v2.Compose([v2.RandomCrop(8, padding=2), v2.RandomHorizontalFlip(), v2.GaussianNoise(), python_and_numpy])


def python_and_numpy(image: Tensor) -> Tensor:
    return image * random.uniform(0.5, 1) + float(numpy.random.normal(0, 0.1))


class Augmented(Dataset[Any]):
    """Digits and their labels; ``transform`` as torchvision's datasets have it."""

    def __init__(self, size: int, transform: Any = None) -> None:
        self.images, self.labels = digits(0, size).tensors
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        return (image if self.transform is None else self.transform(image)), self.labels[index]


class Draws(Dataset[Any]):
    """What one generator gives, and nothing else."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.own = torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> float:
        if index == 5:
            raise ValueError("sample 5 can't be read")
        if self.source == "python":
            return random.gauss(0, 1)
        if self.source == "numpy":
            return float(numpy.random.normal())
        return float(torch.randn((), generator=self.own if self.source == "own" else None))
