"""CIFAR-10N: CIFAR-10's images with labels that people gave (Wei et al. 2022, arXiv 2110.12088), for the studies."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn
from torch.utils.data import Dataset
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.zoo.images import ImageDataModule, Transform, crop_and_flip, to_tensor

LABELS = ("clean", "aggregate", "random1", "worst")


class CIFAR10N(ImageDataModule):
    """Training and validation images with one of the noisy labels, test images with their own.

    Args:
        root: Holds ``train.csv`` (index, clean, aggregate, random1, worst), ``test.csv`` (index, clean) and the images
            as ``train/00000.jpg`` and ``test/00000.jpg``.
        labels: A column of ``train.csv``.
        batch_size: Images a batch.
        num_workers: Processes that load images.
        train_size: Use only this many training images; None uses all.
        val_size: Validation images, cut from the training images.
        seed: Seed of the cut.
        augment: Whether training images are cropped and flipped at random.
    """

    def __init__(
        self,
        root: str | Path = "cifar10n",
        labels: str = "worst",
        batch_size: int = 128,
        num_workers: int = 0,
        train_size: int | None = None,
        val_size: int = 5000,
        seed: int = 0,
        augment: bool = False,
    ) -> None:
        super().__init__(batch_size, num_workers, train_size, val_size, 0, seed, None, None)
        if labels not in LABELS:
            raise ArgumentError(f"labels={labels!r} is unknown; give one of {', '.join(LABELS)}.")
        self.root, self.labels, self.augment = Path(root).expanduser(), labels, augment

    @property
    @override
    def num_classes(self) -> int:
        return 10

    def find_images(self, split: str) -> Dataset[Any] | None:
        """The images that the tables list; validation images are cut from the training images."""
        if split == "val":
            return None
        return LabelledImages(self.root, split, self.labels if split == "train" else "clean")

    def usual_transforms(self, *, train: bool) -> Sequence[nn.Module]:
        """Normalised pixels, cropped and flipped for training if asked for."""
        geometry = crop_and_flip(32) if train and self.augment else []
        return [*geometry, *to_tensor((0.491, 0.482, 0.447), (0.247, 0.243, 0.262))]


class LabelledImages(Dataset[tuple[Any, int]]):
    """The images of a table of labels.

    Args:
        root: Folder of the table, ``{split}.csv``, and of the folder of images, ``{split}``.
        split: ``train`` or ``test``.
        column: Which label.

    Raises:
        ArgumentError: If table and images do not match.
    """

    transform: Transform

    def __init__(self, root: Path, split: str, column: str) -> None:
        with (root / f"{split}.csv").open() as table:
            rows = list(csv.DictReader(table))
        self.paths = [root / split / f"{int(row['index']):05d}.jpg" for row in rows]
        self.labels = [int(row[column]) for row in rows]
        there = set((root / split).glob("*.jpg"))
        if there != set(self.paths):
            raise ArgumentError(
                f"{root / f'{split}.csv'} has labels of {len(self.paths)} images: "
                f"{len(set(self.paths) - there)} are missing in {root / split}, and "
                f"{len(there - set(self.paths))} there have no label. Unpack the data set again, whole."
            )

    def __len__(self) -> int:
        return len(self.labels)

    @override
    def __getitem__(self, index: int) -> tuple[Any, int]:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), self.labels[index]
