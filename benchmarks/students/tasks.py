"""The studies on real data: what is trained on what, and for how long."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR
from torch.utils.data import Dataset

from benchmarks.students.cifar10n import CIFAR10N
from lightning_ckptkd.trainer.optimizers import LRSchedulerCallable
from lightning_ckptkd.zoo import (
    CIFAR100DataModule,
    CIFARResNet,
    DigitsDataModule,
    FashionMNISTDataModule,
    ImageFolderDataModule,
    WideResNet,
)
from lightning_ckptkd.zoo.images import ImageDataModule


@dataclass(frozen=True)
class Task:
    """Data, networks and budgets of one study.

    Attributes:
        title: What the study is, in words.
        data: Makes the data module; gets the data folder where there is one.
        teacher: Makes a teacher that is not trained.
        student: Makes a student that is not trained.
        epochs: Of the teacher, and of each student.
        tried: Epochs of the harvest, from 0, whose snapshots teach.
        schedules: Of the teacher, and of each student: a name in ``SCHEDULES``.
        views: Students train on a cache of their teachers' logits with so many views, and all images are decoded
            beforehand (:func:`decode`), cropped and flipped if there are several views. None: on live teachers.
        every_n_epochs: Of the harvest.
    """

    title: str
    data: Callable[..., ImageDataModule]
    teacher: Callable[[], nn.Module]
    student: Callable[[], nn.Module]
    epochs: tuple[int, int]
    tried: tuple[int, ...]
    schedules: tuple[str, str] = ("step", "step")
    views: int | None = None
    every_n_epochs: int = 1

    def lr_scheduler(self, whose: int) -> LRSchedulerCallable:
        """The course of the learning rate over a training.

        Args:
            whose: 0: the teacher's; 1: a student's.
        """
        return SCHEDULES[self.schedules[whose]](self.epochs[whose])

    def open_data(self, root: Path | None) -> ImageDataModule:
        """The images.

        Args:
            root: Of the data module; None is where it looks by itself.
        """
        data = self.data() if root is None else self.data(root=root)
        if self.views is not None:
            decode(data, augment=self.views > 1)
        return data


class Decoded(Dataset[tuple[Tensor, int]]):
    """Images as normalised float32 (C, H, W), held in memory.

    Args:
        images: Are read once.
        padding: Pixels of mean colour around each image, of which a random crop of its size, flipped at random, is
            taken each time: what torchvision's ``RandomCrop`` and ``RandomHorizontalFlip`` do, in less time. 0 leaves
            the images as they are.
    """

    def __init__(self, images: Dataset[tuple[Tensor, int]], padding: int = 0) -> None:
        pairs = [images[index] for index in range(len(images))]  # type: ignore[arg-type]  # Dataset declares no length
        self._images = [pad(image.as_subclass(Tensor), [padding] * 4) for image, _ in pairs]
        self._labels = [label for _, label in pairs]
        self._padding = padding

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self._images[index]
        if self._padding:
            top, left = torch.randint(2 * self._padding + 1, (2,)).tolist()
            height, width = image.shape[1] - 2 * self._padding, image.shape[2] - 2 * self._padding
            image = image[:, top : top + height, left : left + width]
            image = image.flip(2) if torch.rand(()) < 0.5 else image
        return image, self._labels[index]


def decode(data: ImageDataModule, *, augment: bool) -> None:
    """Decode all images of a data module, which takes longer than a small student's step where it is done each time.

    Args:
        data: Augments nothing by itself.
        augment: Whether training images are cropped and flipped at random.
    """
    data.prepare_data()
    data.setup("fit")
    for split, images in data.sets.items():
        data.sets[split] = Decoded(images, padding=4 if augment and split == "train" else 0)


SCHEDULES: dict[str, Callable[[int], LRSchedulerCallable]] = {
    "step": lambda epochs: partial(StepLR, step_size=max(1, epochs // 3), gamma=0.1),  # after each third
    "paper": lambda epochs: partial(StepLR, step_size=max(1, epochs * 3 // 10), gamma=0.1),  # 60 of 200
    "cosine": lambda epochs: partial(CosineAnnealingLR, T_max=epochs),
}

_fashion = partial(FashionMNISTDataModule, num_workers=0)
_cifar = partial(CIFAR100DataModule, num_workers=0)
_cifar_20k = partial(_cifar, train_size=20000, augment=False)
_cifar10n = partial(CIFAR10N, train_size=10000)


def mlp(*widths: int) -> nn.Module:
    """A network of linear layers with ReLU between them, on the 64 pixels of a digit.

    Args:
        widths: Of its hidden layers.
    """
    sizes = (64, *widths)
    hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], 10))


_digits_wrong: dict[str, Any] = {
    "teacher": partial(mlp, 256, 256),
    "student": partial(mlp, 32),
    "epochs": (60, 60),
    "tried": (1, 3, 5, 7, 9, 12, 15, 19, 24, 29, 39, 49, 59),
    "schedules": ("cosine", "cosine"),
    "views": 1,
}
_cifar10n_trained: dict[str, Any] = {
    "teacher": partial(CIFARResNet, 14, num_classes=10, width=16, stem_stride=2),
    "student": partial(CIFARResNet, 8, num_classes=10, width=8, stem_stride=2),
    "epochs": (30, 10),
    "tried": (1, 2, 4, 6, 9, 14, 20, 29),
    "schedules": ("cosine", "cosine"),
    "views": 1,
}
_grey, _colour = partial(CIFARResNet, num_classes=10, in_channels=1), partial(CIFARResNet, num_classes=100)
_fashion_trained: dict[str, Any] = {
    "teacher": partial(_grey, 14, width=16, stem_stride=2),
    "student": partial(_grey, 8, width=8, stem_stride=2),
    "epochs": (30, 8),
    "tried": (1, 2, 4, 6, 9, 14, 20, 29),
    "schedules": ("cosine", "cosine"),
    "views": 1,
}
_paper: dict[str, Any] = {
    "epochs": (200, 200),
    "tried": tuple(range(19, 200, 20)),
    "schedules": ("paper", "paper"),
    "every_n_epochs": 20,
}

TASKS = {
    "digits": Task(
        "scikit-learn's digits, 300 images, StepLR",
        partial(DigitsDataModule, train_size=300),
        partial(_grey, 14, width=16),
        partial(_grey, 8, width=4),
        epochs=(30, 30),
        tried=(0, 2, 4, 6, 9, 11, 14, 19, 24, 29),
    ),
    "fashion_mnist": Task(
        "Fashion-MNIST, 5,000 images, no augmentation, StepLR",
        partial(_fashion, train_size=5000),
        partial(_grey, 14, width=16),
        partial(_grey, 8, width=8),
        epochs=(20, 10),
        tried=(0, 1, 3, 6, 8, 11, 14, 19),
    ),
    "cifar100": Task(
        "CIFAR-100, 10,000 images, crops and flips, StepLR",
        partial(_cifar, train_size=10000),
        partial(_colour, 14, width=16),
        partial(_colour, 8, width=8),
        epochs=(24, 6),
        tried=(0, 2, 4, 7, 9, 12, 16, 23),
    ),
    "fashion_step": Task(
        "Fashion-MNIST, 10,000 images, no augmentation, StepLR",
        partial(_fashion, train_size=10000),
        partial(_grey, 14, width=16),
        partial(_grey, 8, width=8, stem_stride=2),
        epochs=(20, 8),
        tried=(1, 3, 5, 6, 8, 11, 14, 19),
        schedules=("step", "cosine"),
        views=1,
    ),
    "fashion_cosine": Task(
        "Fashion-MNIST, 10,000 images, crops and flips, cosine",
        partial(_fashion, train_size=10000),
        partial(_grey, 14, width=16, stem_stride=2),
        partial(_grey, 8, width=8, stem_stride=2),
        epochs=(20, 8),
        tried=(1, 3, 5, 8, 11, 14, 16, 19),
        schedules=("cosine", "cosine"),
        views=4,
    ),
    "cifar100_step": Task(
        "CIFAR-100, 20,000 images, no augmentation, StepLR",
        _cifar_20k,
        partial(_colour, 14, width=16, stem_stride=2),
        partial(_colour, 8, width=8, stem_stride=2),
        epochs=(24, 6),
        tried=(1, 3, 5, 7, 9, 12, 16, 19, 23),
        schedules=("step", "cosine"),
        views=1,
    ),
    "cifar100_cosine": Task(
        "CIFAR-100, 20,000 images, crops and flips, cosine",
        _cifar_20k,
        partial(_colour, 14, width=16, stem_stride=2),
        partial(_colour, 8, width=8, stem_stride=2),
        epochs=(24, 6),
        tried=(1, 3, 5, 8, 11, 14, 17, 20, 23),
        schedules=("cosine", "cosine"),
        views=4,
    ),
    "digits_20": Task(
        "scikit-learn's digits, 600 images, 20% of the labels wrong, cosine",
        partial(DigitsDataModule, wrong_labels=0.2),
        **_digits_wrong,
    ),
    "digits_40": Task(
        "scikit-learn's digits, 600 images, 40% of the labels wrong, cosine",
        partial(DigitsDataModule, wrong_labels=0.4),
        **_digits_wrong,
    ),
    "fashion_right": Task(
        "Fashion-MNIST, 10,000 images, right labels, no augmentation, cosine",
        partial(_fashion, train_size=10000),
        **_fashion_trained,
    ),
    "fashion_40": Task(
        "Fashion-MNIST, 10,000 images, 40% of the labels wrong, cosine",
        partial(_fashion, train_size=10000, wrong_labels=0.4),
        **_fashion_trained,
    ),
    "cifar10_right": Task(
        "CIFAR-10, 10,000 images, right labels, no augmentation, cosine",
        partial(_cifar10n, labels="clean"),
        **_cifar10n_trained,
    ),
    "cifar10n_9": Task(
        "CIFAR-10N, 10,000 images, people's labels, 9% of them wrong, cosine",
        partial(_cifar10n, labels="aggregate"),
        **_cifar10n_trained,
    ),
    "cifar10n_17": Task(
        "CIFAR-10N, 10,000 images, people's labels, 17% of them wrong, cosine",
        partial(_cifar10n, labels="random1"),
        **_cifar10n_trained,
    ),
    "cifar10n_40": Task(
        "CIFAR-10N, 10,000 images, people's labels, 40% of them wrong, cosine",
        partial(_cifar10n, labels="worst"),
        **_cifar10n_trained,
    ),
    "digits_long": Task(
        "scikit-learn's digits, 100 images, right labels, 120 epochs, cosine",
        partial(DigitsDataModule, train_size=100, batch_size=20),
        partial(mlp, 256, 256),
        partial(mlp, 32),
        epochs=(120, 120),
        tried=(1, 3, 5, 7, 9, 12, 15, 19, 29, 39, 59, 79, 99, 119),
        schedules=("cosine", "cosine"),
        views=1,
    ),
    "cifar100_wrn": Task(
        "CIFAR-100, the paper's WRN-40-2 to WRN-40-1",
        partial(CIFAR100DataModule, num_workers=8),
        partial(WideResNet, 40, 2, 100),
        partial(WideResNet, 40, 1, 100),
        **_paper,
    ),
    "cifar100_resnet": Task(
        "CIFAR-100, the paper's ResNet-110 to ResNet-32",
        partial(CIFAR100DataModule, num_workers=8),
        partial(_colour, 110),
        partial(_colour, 32),
        **_paper,
    ),
    "tiny_imagenet": Task(
        "Tiny-ImageNet, the paper's WRN-40-2 to WRN-40-1",
        partial(ImageFolderDataModule, image_size=64, num_workers=8),
        partial(WideResNet, 40, 2, 200),
        partial(WideResNet, 40, 1, 200),
        **_paper,
    ),
}
WRONG_LABELS = ("digits_20", "digits_40", "fashion_40", "cifar10n_9", "cifar10n_17", "cifar10n_40")
