"""CIFAR-100 (Krizhevsky 2009): 60,000 colour images of 32x32 pixels, 100 classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR100
from typing_extensions import override

from lightning_ckptkd.zoo.images import ClassFolder, ImageDataModule, crop_and_flip, to_tensor


class CIFAR100DataModule(ImageDataModule):
    """CIFAR-100 from a folder of class folders if ``root`` has one, else as torchvision downloads it.

    Args:
        root: Holds ``train/<class>/<image>`` (and ``test`` or ``val`` alike), or gets torchvision's download.
        batch_size: Images a batch and device.
        num_workers: Processes that load images.
        train_size: Use only this many training images; None uses all.
        val_size: Validation images, cut from the training images where there is no folder ``val``.
        test_size: Test images, cut likewise where there are none; torchvision's download has its own.
        seed: Seed of the cuts.
        augment: Whether training images are cropped and flipped at random.
        train_transforms: Take these in place of the usual ones.
        eval_transforms: Likewise, for validation and test images.
    """

    def __init__(
        self,
        root: str | Path = "data",
        batch_size: int = 128,
        num_workers: int = 2,
        train_size: int | None = None,
        val_size: int = 5000,
        test_size: int = 5000,
        seed: int = 0,
        augment: bool = True,
        train_transforms: Sequence[nn.Module] | None = None,
        eval_transforms: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__(
            batch_size, num_workers, train_size, val_size, test_size, seed, train_transforms, eval_transforms
        )
        self.root = Path(root).expanduser()
        self.augment = augment

    @override
    def prepare_data(self) -> None:
        if not (self.root / "train").is_dir():
            CIFAR100(self.root, download=True)

    @property
    @override
    def num_classes(self) -> int:
        return 100

    def find_images(self, split: str) -> Dataset[Any] | None:
        """The folder of that name, or torchvision's training and test images."""
        images: Dataset[Any] | None = None
        if (self.root / "train").is_dir():
            folder = self.root / split
            images = ClassFolder(folder) if folder.is_dir() else None
        elif split != "val":
            images = CIFAR100(self.root, train=split == "train")
        return images

    def usual_transforms(self, *, train: bool) -> Sequence[nn.Module]:
        """Normalised pixels, cropped and flipped for training unless told not to."""
        normalise = to_tensor((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
        return [*(crop_and_flip(32) if train and self.augment else []), *normalise]
