"""The studies on real data: what is trained on what, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, StepLR
from torch.utils.data import Dataset
from torchvision.transforms import v2

from lightning_ckptkd.zoo import CIFAR100DataModule, CIFARResNet, DigitsDataModule, FashionMNISTDataModule
from lightning_ckptkd.zoo.images import ImageDataModule, crop_and_flip


@dataclass(frozen=True)
class Task:
    """Data, networks and budgets of one study.

    Attributes:
        data: Makes the data module; gets the data folder where there is one.
        channels: Of the images.
        classes: Number of classes K.
        student_size: Depth and width of the student, and the stride of its stem.
        epochs: Of the teacher, and of each student.
        tried: Epochs of the harvest, from 0, whose snapshots teach.
        schedules: Of the teacher, and of each student. ``step``: the learning rate falls to a tenth after each third
            of training, rounded down to epochs; ``cosine``: to zero.
        views: Students train on a cache of their teachers' logits with so many views, and all images are decoded
            beforehand (:func:`decode`), cropped and flipped if there are several views. None: on live teachers.
        title: What the study is, in words.
        teacher_size: As ``student_size``.
    """

    data: Callable[..., ImageDataModule]
    channels: int
    classes: int
    student_size: tuple[int, int, int]
    epochs: tuple[int, int]
    tried: tuple[int, ...]
    schedules: tuple[str, str] = ("step", "step")
    views: int | None = None
    title: str = ""
    teacher_size: tuple[int, int, int] = (14, 16, 1)

    def teacher(self) -> CIFARResNet:
        """A teacher that is not trained."""
        return self._network(*self.teacher_size)

    def student(self) -> CIFARResNet:
        """A student that is not trained."""
        return self._network(*self.student_size)

    def lr_scheduler(self, whose: int) -> Callable[[torch.optim.Optimizer], LRScheduler]:
        """The course of the learning rate over a training.

        Args:
            whose: 0: the teacher's; 1: a student's.
        """
        epochs = self.epochs[whose]
        if self.schedules[whose] == "cosine":
            return partial(CosineAnnealingLR, T_max=epochs)
        return partial(StepLR, step_size=max(1, epochs // 3), gamma=0.1)

    def open_data(self, root: Path | None) -> ImageDataModule:
        """The images.

        Args:
            root: Of the data module; None is where it looks by itself.
        """
        data = self.data() if root is None else self.data(root=root)
        if self.views is not None:
            decode(data, augment=self.views > 1)
        return data

    def _network(self, depth: int, width: int, stem_stride: int) -> CIFARResNet:
        return CIFARResNet(depth, self.classes, width, self.channels, stem_stride)


class Decoded(Dataset[tuple[Tensor, int]]):
    """Images as normalised float32, which go through ``transform`` each time.

    Args:
        images: Are read once.
        transform: Of an image (C, H, W).
    """

    def __init__(self, images: Dataset[tuple[Tensor, int]], transform: Callable[[Tensor], Tensor]) -> None:
        pairs = [images[index] for index in range(len(images))]  # type: ignore[arg-type]
        self._images = [image.as_subclass(Tensor) for image, _ in pairs]
        self._labels = [label for _, label in pairs]
        self.transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self._images[index]), self._labels[index]


def decode(data: ImageDataModule, *, augment: bool) -> None:
    """Decode all images of a data module, which takes longer than a small student's step where it is done each time.

    Args:
        data: Augments nothing by itself.
        augment: Whether training images are cropped and flipped at random. They are padded with the mean colour.
    """
    data.prepare_data()
    data.setup("fit")
    for split, images in data.sets.items():
        size = images[0][0].shape[-1]
        random = crop_and_flip(size) if augment and split == "train" else [nn.Identity()]
        data.sets[split] = Decoded(images, v2.Compose(random))


_digits = partial(DigitsDataModule, train_size=300)
_fashion = partial(FashionMNISTDataModule, num_workers=0)
_cifar = partial(CIFAR100DataModule, num_workers=0)
_cifar_20k = partial(_cifar, train_size=20000, augment=False)

TASKS = {
    "digits": Task(
        _digits,
        1,
        10,
        (8, 4, 1),
        (30, 30),
        (0, 2, 4, 6, 9, 11, 14, 19, 24, 29),
        title="scikit-learn's digits, 300 images, StepLR",
    ),
    "fashion_mnist": Task(partial(_fashion, train_size=5000), 1, 10, (8, 8, 1), (20, 10), (0, 1, 3, 6, 8, 11, 14, 19)),
    "cifar100": Task(partial(_cifar, train_size=10000), 3, 100, (8, 8, 1), (24, 6), (0, 2, 4, 7, 9, 12, 16, 23)),
    "fashion_step": Task(
        partial(_fashion, train_size=10000),
        1,
        10,
        (8, 8, 2),
        (20, 8),
        (1, 3, 5, 6, 8, 11, 14, 19),
        schedules=("step", "cosine"),
        views=1,
        title="Fashion-MNIST, 10,000 images, no augmentation, StepLR",
    ),
    "fashion_cosine": Task(
        partial(_fashion, train_size=10000),
        1,
        10,
        (8, 8, 2),
        (20, 8),
        (1, 3, 5, 8, 11, 14, 16, 19),
        schedules=("cosine", "cosine"),
        views=4,
        title="Fashion-MNIST, 10,000 images, crops and flips, cosine",
    ),
    "cifar100_step": Task(
        _cifar_20k,
        3,
        100,
        (8, 8, 2),
        (24, 6),
        (1, 3, 5, 7, 9, 12, 16, 19, 23),
        schedules=("step", "cosine"),
        teacher_size=(14, 16, 2),
        views=1,
        title="CIFAR-100, 20,000 images, no augmentation, StepLR",
    ),
    "cifar100_cosine": Task(
        _cifar_20k,
        3,
        100,
        (8, 8, 2),
        (24, 6),
        (1, 3, 5, 8, 11, 14, 17, 20, 23),
        schedules=("cosine", "cosine"),
        teacher_size=(14, 16, 2),
        views=4,
        title="CIFAR-100, 20,000 images, crops and flips, cosine",
    ),
}
