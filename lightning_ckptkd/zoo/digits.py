"""scikit-learn's digits: 1,797 real images of 8x8 pixels that come with the package, no download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.zoo.images import ImageDataModule, Transform


class DigitsDataModule(ImageDataModule):
    """Digits in three parts with a fixed seed; the rest after validation and test is for training.

    Args:
        batch_size: Images a batch and device.
        train_size: Use only this many training images; None uses all.
        val_size: Validation images.
        test_size: Test images.
        seed: Seed of the cuts.
        wrong_labels: Share of the training and validation labels to make wrong; see :class:`ImageDataModule`.
    """

    def __init__(
        self,
        batch_size: int = 64,
        train_size: int | None = None,
        val_size: int = 400,
        test_size: int = 797,
        seed: int = 0,
        wrong_labels: float = 0.0,
    ) -> None:
        super().__init__(batch_size, 0, train_size, val_size, test_size, seed, None, None, wrong_labels)

    @property
    @override
    def num_classes(self) -> int:
        return 10

    def find_images(self, split: str) -> Dataset[Any] | None:
        """All digits as training images; the other splits are cut from them."""
        return _Digits() if split == "train" else None

    def usual_transforms(self, *, train: bool) -> Sequence[nn.Module]:
        """None beside the scaling of pixels to [0, 1]."""
        return [v2.Identity()]


class _Digits(Dataset[tuple[Tensor, Tensor]]):
    transform: Transform

    def __init__(self) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ArgumentError("DigitsDataModule needs scikit-learn: pip install 'lightning-ckptkd[demo]'.") from error
        digits = load_digits()
        self._images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
        self._labels = torch.from_numpy(digits.target).long()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self._images[index]), self._labels[index]
