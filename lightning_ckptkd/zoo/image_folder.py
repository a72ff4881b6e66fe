"""Any folder of class folders: ImageNet, Tiny-ImageNet, your own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms import v2
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.zoo.images import ClassFolder, ImageDataModule, crop_and_flip, to_tensor

_ANNOTATIONS = "val_annotations.txt"
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LARGE = 96  # from this side on, images get ImageNet's random resized crop


class ImageFolderDataModule(ImageDataModule):
    """Images in ``root/train/<class>``, and in ``root/val`` and ``root/test`` where they exist.

    Without ``val``, validation images are cut from the training images. Without ``test``, the validation images are
    the test images too where ``val`` exists (as is usual for ImageNet), and are else cut as well. Tiny-ImageNet's
    ``val/images`` with ``val_annotations.txt`` is read as it is.

    Args:
        root: The folder.
        image_size: Height and width in pixels that the network gets.
        batch_size: Images a batch and device.
        num_workers: Processes that load images.
        train_size: Use only this many training images; None uses all.
        val_size: Validation images to cut where there is no ``val``.
        test_size: Test images to cut where there is neither ``test`` nor ``val``.
        seed: Seed of the cuts.
        train_transforms: torchvision transforms of training images. None: from 96 pixels on a random resized crop
            and a flip (ImageNet's), below that resizing, a crop after padding by 4 and a flip.
        eval_transforms: torchvision transforms of validation and test images. None: resizing and a central crop.
    """

    def __init__(
        self,
        root: str | Path,
        image_size: int = 224,
        batch_size: int = 128,
        num_workers: int = 4,
        train_size: int | None = None,
        val_size: int = 1000,
        test_size: int = 1000,
        seed: int = 0,
        train_transforms: Sequence[nn.Module] | None = None,
        eval_transforms: Sequence[nn.Module] | None = None,
    ) -> None:
        super().__init__(
            batch_size, num_workers, train_size, val_size, test_size, seed, train_transforms, eval_transforms
        )
        self.root = Path(root).expanduser()
        self.image_size = image_size

    @override
    def prepare_data(self) -> None:
        if not (self.root / "train").is_dir():
            raise ArgumentError(
                f"root={str(self.root)!r} has no folder 'train' with a folder of images for each class in it."
            )

    @property
    @override
    def num_classes(self) -> int:
        return sum(folder.is_dir() for folder in (self.root / "train").iterdir())

    def find_images(self, split: str) -> Dataset[Any] | None:
        """The folder of that name; ``val`` stands in for a missing ``test``."""
        folder = self.root / split
        if split == "test" and not folder.is_dir():
            folder = self.root / "val"
        if not folder.is_dir():
            return None
        annotated = (folder / _ANNOTATIONS).exists()
        images: Dataset[Any] = _AnnotatedFolder(folder) if annotated else ClassFolder(folder)
        return images

    def usual_transforms(self, *, train: bool) -> Sequence[nn.Module]:
        """ImageNet's transforms for large images, CIFAR's for small ones."""
        size = self.image_size
        if train and size >= _LARGE:
            geometry: list[nn.Module] = [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()]
        elif train:
            geometry = [v2.Resize((size, size)), *crop_and_flip(size)]
        else:
            resized = round(size * 256 / 224) if size >= _LARGE else size
            geometry = [v2.Resize(resized), v2.CenterCrop(size)]
        return [*geometry, *to_tensor(_IMAGENET_MEAN, _IMAGENET_STD)]


class _AnnotatedFolder(ClassFolder):
    """Tiny-ImageNet's validation images: one folder, and a table of file name and class."""

    @staticmethod
    def make_dataset(directory: str | Path, class_to_idx: dict[str, int], *_: Any, **__: Any) -> list[tuple[str, int]]:
        folder = Path(directory)
        rows = (line.split("\t") for line in (folder / _ANNOTATIONS).read_text().splitlines())
        return [(str(folder / "images" / row[0]), class_to_idx[row[1]]) for row in rows]
