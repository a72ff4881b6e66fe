"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 70,000 grey images of 28x28 pixels, 10 classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset
from torchvision.datasets import FashionMNIST
from typing_extensions import override

from lightning_ckptkd.zoo.images import ImageDataModule, crop_and_flip, to_tensor


class FashionMNISTDataModule(ImageDataModule):
    """Fashion-MNIST as torchvision lays it out, downloaded where it is not there.

    Args:
        root: Holds ``FashionMNIST/raw``.
        batch_size: Images a batch and device.
        num_workers: Processes that load images.
        train_size: Use only this many training images; None uses all.
        val_size: Validation images, cut from the training images.
        seed: Seed of the cut.
        augment: Whether training images are cropped and flipped at random.
        train_transforms: Take these in place of the usual ones.
        eval_transforms: Likewise, for validation and test images.
        wrong_labels: Share of the training and validation labels to make wrong; see :class:`ImageDataModule`.
    """

    def __init__(
        self,
        root: str | Path = "data",
        batch_size: int = 128,
        num_workers: int = 2,
        train_size: int | None = None,
        val_size: int = 5000,
        seed: int = 0,
        augment: bool = False,
        train_transforms: Sequence[nn.Module] | None = None,
        eval_transforms: Sequence[nn.Module] | None = None,
        wrong_labels: float = 0.0,
    ) -> None:
        super().__init__(
            batch_size, num_workers, train_size, val_size, 0, seed, train_transforms, eval_transforms, wrong_labels
        )
        self.root = Path(root).expanduser()
        self.augment = augment

    @override
    def prepare_data(self) -> None:
        for train in (True, False):
            FashionMNIST(self.root, train=train, download=True)

    @property
    @override
    def num_classes(self) -> int:
        return 10

    def find_images(self, split: str) -> Dataset[Any] | None:
        """The 60,000 training and 10,000 test images."""
        if split == "val":
            return None
        images: Dataset[Any] = FashionMNIST(self.root, train=split == "train")
        return images

    def usual_transforms(self, *, train: bool) -> Sequence[nn.Module]:
        """Normalised pixels, cropped and flipped for training if asked for."""
        return [*(crop_and_flip(28) if train and self.augment else []), *to_tensor((0.286,), (0.353,))]
