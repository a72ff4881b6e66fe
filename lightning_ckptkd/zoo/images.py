"""What the image data modules share: splits with a fixed seed, transforms, loaders."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.zoo.wrong_labels import WrongLabels, check_share

Transform: TypeAlias = Callable[[Any], Any]


class ImageDataModule(LightningDataModule):
    """Training, validation and test images.

    A split that the data set lacks is cut from its training images, always the same for one seed. Validation and
    test images, and so the probe set, are never augmented.

    Args:
        batch_size: Images a batch and device.
        num_workers: Processes that load images.
        train_size: Use only this many training images; None uses all.
        val_size: Validation images to cut from the training images where there are no others.
        test_size: Test images to cut likewise.
        seed: Seed of the cuts.
        train_transforms: torchvision transforms of training images; None takes the data set's usual ones.
        eval_transforms: torchvision transforms of validation and test images; None likewise.
        wrong_labels: Share of the training and validation labels to make wrong, drawn with ``seed``, as
            :class:`WrongLabels` does; those of the test images stay right. 0 leaves all as they are.

    Raises:
        ArgumentError: If ``wrong_labels`` is no share.
    """

    def __init__(
        self,
        batch_size: int,
        num_workers: int,
        train_size: int | None,
        val_size: int,
        test_size: int,
        seed: int,
        train_transforms: Sequence[nn.Module] | None,
        eval_transforms: Sequence[nn.Module] | None,
        wrong_labels: float = 0.0,
    ) -> None:
        super().__init__()
        check_share(wrong_labels)
        self.wrong_labels = wrong_labels
        self.batch_size, self.num_workers = batch_size, num_workers
        self.train_size, self.val_size, self.test_size, self.seed = train_size, val_size, test_size, seed
        self._train_transforms, self._eval_transforms = train_transforms, eval_transforms
        self.sets: dict[str, Dataset[Any]] = {}

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """K; once the images have been found."""

    @abstractmethod
    def find_images(self, split: str) -> Dataset[Any] | None:
        """The data set's own ``train``, ``val`` or ``test`` images, with an attribute ``transform``; None if none."""

    @abstractmethod
    def usual_transforms(self, *, train: bool) -> Sequence[nn.Module]:
        """The transforms that are taken where the user names none."""

    @override
    def setup(self, stage: str) -> None:
        if self.sets:
            return
        augment = _compose(self._train_transforms, self.usual_transforms(train=True))
        plain = _compose(self._eval_transforms, self.usual_transforms(train=False))
        images = self.find_images("train")
        if images is None:
            raise ArgumentError(f"{type(self).__name__}: there are no training images.")
        total = len(images)  # type: ignore[arg-type]
        left = torch.randperm(total, generator=torch.Generator().manual_seed(self.seed)).tolist()
        for split, size in (("test", self.test_size), ("val", self.val_size)):
            own = self.find_images(split)
            if own is not None:
                self.sets[split] = _with_transform(own, plain)
                continue
            if not 0 < size < len(left):
                raise ArgumentError(
                    f"{split}_size should be between 1 and {len(left) - 1}, the training images that are left of "
                    f"{total}, got {size}."
                )
            self.sets[split] = Subset(_with_transform(images, plain), left[-size:])
            left = left[:-size]
        self.sets["train"] = Subset(_with_transform(images, augment), left[: self.train_size])
        if self.wrong_labels:
            for number, split in enumerate(("train", "val")):
                seed = 1000 * self.seed + number
                self.sets[split] = WrongLabels(self.sets[split], self.wrong_labels, self.num_classes, seed)

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader("train")

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader("val")

    @override
    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader("test")

    @override
    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader("test")

    def _loader(self, split: str) -> DataLoader[Any]:
        return DataLoader(
            self.sets[split],
            batch_size=self.batch_size,
            shuffle=split == "train",
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


class ClassFolder(ImageFolder):  # type: ignore[misc]
    """Images by class folder, the classes being those of the folder ``train`` beside it.

    Args:
        root: The folder; it may lack classes.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root, allow_empty=True)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """The names of the classes, and the index of each."""
        classes: tuple[list[str], dict[str, int]] = super().find_classes(Path(directory).parent / "train")
        return classes


def to_tensor(mean: Sequence[float], std: Sequence[float]) -> list[nn.Module]:
    """From a PIL image to normalised float32, shape (C, H, W).

    Args:
        mean: Of each channel, for pixels in [0, 1].
        std: Likewise.
    """
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]


def crop_and_flip(size: int) -> list[nn.Module]:
    """The usual augmentation of small images: a crop after padding by 4, a horizontal flip.

    Args:
        size: Height and width in pixels.
    """
    return [v2.RandomCrop(size, padding=4), v2.RandomHorizontalFlip()]


def _compose(given: Sequence[nn.Module] | None, usual: Sequence[nn.Module]) -> Transform:
    composed: Transform = v2.Compose(list(usual if given is None else given))
    return composed


def _with_transform(images: Dataset[Any], transform: Transform) -> Dataset[Any]:
    """The same images behind another transform; the files are listed once."""
    images = copy.copy(images)
    images.transform = transform  # type: ignore[attr-defined]
    return images
