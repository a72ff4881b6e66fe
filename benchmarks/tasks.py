"""The studies on real data: what is trained on what, and for how long."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR

from lightning_ckptkd.zoo import CIFAR100DataModule, CIFARResNet, DigitsDataModule, FashionMNISTDataModule
from lightning_ckptkd.zoo.images import ImageDataModule


@dataclass(frozen=True)
class Task:
    """Data, networks and budgets of one study.

    Attributes:
        data: Makes the data module; gets the data folder where there is one.
        channels: Of the images.
        classes: Number of classes K.
        student: Depth and width of the student; the teacher is a ResNet-14 of width 16.
        epochs: Of the teacher, and of each student.
        tried: Epochs of the harvest, from 0, whose snapshots teach.
        schedule: ``step``: the learning rate falls to a tenth after a third and after two thirds of training;
            ``cosine``: to zero.
        views: Students train on a cache of their teachers' logits with so many views; None: on live teachers.
        title: What the study is, in words.
    """

    data: Callable[..., ImageDataModule]
    channels: int
    classes: int
    student: tuple[int, int]
    epochs: tuple[int, int]
    tried: tuple[int, ...]
    schedule: str = "step"
    views: int | None = None
    title: str = ""

    def network(self, depth: int, width: int) -> CIFARResNet:
        """A network for the task's images."""
        return CIFARResNet(depth, self.classes, width, self.channels)

    def teacher(self) -> CIFARResNet:
        """A teacher that is not trained."""
        return self.network(14, 16)

    def lr_scheduler(self, epochs: int) -> Callable[[torch.optim.Optimizer], LRScheduler]:
        """The course of the learning rate over a training."""
        if self.schedule == "cosine":
            return partial(CosineAnnealingLR, T_max=epochs)
        return partial(StepLR, step_size=max(1, math.floor(epochs / 3)), gamma=0.1)


_digits = partial(DigitsDataModule, train_size=300)
_fashion = partial(FashionMNISTDataModule, num_workers=0)
_cifar = partial(CIFAR100DataModule, num_workers=0)

TASKS = {
    "digits": Task(
        _digits,
        1,
        10,
        (8, 4),
        (30, 30),
        (0, 2, 4, 6, 9, 11, 14, 19, 24, 29),
        title="scikit-learn's digits, 300 images, StepLR",
    ),
    "fashion_mnist": Task(partial(_fashion, train_size=5000), 1, 10, (8, 8), (20, 10), (0, 1, 3, 6, 8, 11, 14, 19)),
    "cifar100": Task(partial(_cifar, train_size=10000), 3, 100, (8, 8), (24, 6), (0, 2, 4, 7, 9, 12, 16, 23)),
    "fashion_step": Task(
        partial(_fashion, train_size=10000),
        1,
        10,
        (8, 8),
        (20, 8),
        (1, 3, 5, 6, 8, 11, 14, 19),
        views=1,
        title="Fashion-MNIST, 10,000 images, no augmentation, StepLR",
    ),
    "fashion_cosine": Task(
        partial(_fashion, train_size=10000, augment=True),
        1,
        10,
        (8, 8),
        (20, 8),
        (1, 3, 5, 8, 11, 14, 16, 19),
        schedule="cosine",
        views=4,
        title="Fashion-MNIST, 10,000 images, crops and flips, cosine",
    ),
    "cifar100_step": Task(
        partial(_cifar, train_size=20000, augment=False),
        3,
        100,
        (8, 8),
        (24, 8),
        (1, 3, 5, 7, 9, 12, 16, 19, 23),
        views=1,
        title="CIFAR-100, 20,000 images, no augmentation, StepLR",
    ),
    "cifar100_cosine": Task(
        partial(_cifar, train_size=20000),
        3,
        100,
        (8, 8),
        (24, 8),
        (1, 3, 5, 8, 11, 14, 17, 20, 23),
        schedule="cosine",
        views=4,
        title="CIFAR-100, 20,000 images, crops and flips, cosine",
    ),
}
