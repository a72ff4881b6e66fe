"""Labelled images in one file of a few megabytes, to be carried to a machine without internet.

A safetensors file with four tensors: ``bytes`` uint8 (B,), encoded pictures one after another; ``ends`` int64 (P,),
where each of them ends; ``labels`` int64 (N,); ``split`` uint8 (N,): 0 for training, 1 for validation, 2 for test. A
picture holds images of one size in rows; the last picture may hold more than are labelled.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_ckptkd.errors import ArgumentError

FILE_NAME = "packed.safetensors"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class PackedImages:
    """What a packed file holds.

    Attributes:
        images: Shape (N, side, side, 3), uint8.
        labels: Shape (N,), int64.
        split: Shape (N,), uint8; places in ``SPLITS``.
        about: Where they are from: ``name``, ``side``, ``classes``, ``encoding``.
    """

    images: Tensor
    labels: Tensor
    split: Tensor
    about: dict[str, str]

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.about["classes"])

    def of(self, split: str) -> tuple[Tensor, Tensor]:
        """Images and labels of one split.

        Args:
            split: One of ``SPLITS``.
        """
        which = self.split == SPLITS.index(split)
        return self.images[which], self.labels[which]


def write_packed(
    path: Path, pictures: Iterable[bytes], labels: Sequence[int], split: Sequence[int], about: dict[str, str]
) -> int:
    """Write a packed file.

    Args:
        path: The file.
        pictures: Encoded, in the order of the labels.
        labels: Of the images.
        split: Of the images; places in ``SPLITS``.
        about: See :class:`PackedImages`.

    Returns:
        Its size in bytes.
    """
    sizes, joined = [], bytearray()
    for picture in pictures:
        joined += picture
        sizes.append(len(joined))
    tensors = {
        "bytes": torch.frombuffer(joined, dtype=torch.uint8),
        "ends": torch.tensor(sizes),
        "labels": torch.tensor(labels),
        "split": torch.tensor(split, dtype=torch.uint8),
    }
    save_file(tensors, path, about)
    return path.stat().st_size


def read_packed(path: Path) -> PackedImages:
    """Decode a packed file.

    Args:
        path: The file.

    Raises:
        ArgumentError: If it is none, or holds fewer images than labels.
    """
    try:
        with safe_open(path, "pt") as file:
            about = dict(file.metadata() or {})
            found = {name: file.get_tensor(name) for name in ("bytes", "ends", "labels", "split")}
        side, count = int(about["side"]), len(found["labels"])
    except (OSError, SafetensorError, KeyError) as error:
        raise ArgumentError(
            f"{path} is no file of packed images ({error}). Make it with python -m benchmarks.gpu.pack."
        ) from error
    data, start, parts = found["bytes"].numpy(), 0, []
    for end in found["ends"].tolist():
        parts.append(cut(numpy.array(Image.open(io.BytesIO(data[start:end].tobytes())).convert("RGB")), side))
        start = end
    images = torch.cat(parts)[:count]
    if len(images) < count:
        raise ArgumentError(f"{path} holds {len(images)} images and {count} labels. Make it anew.")
    return PackedImages(images, found["labels"], found["split"], about)


def cut(picture: numpy.ndarray, side: int) -> Tensor:
    """The images of one picture, row by row, shape (N, side, side, 3).

    Args:
        picture: Shape (rows * side, columns * side, 3).
        side: Height and width of an image.
    """
    pixels = torch.from_numpy(picture)
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    return pixels.view(rows, side, columns, side, 3).transpose(1, 2).reshape(rows * columns, side, side, 3)


def join(images: Tensor, columns: int) -> numpy.ndarray:
    """One picture of images (N, side, side, 3), in rows of ``columns``; black where the last row is not full."""
    count, side = images.shape[:2]
    rows = -(-count // columns)
    full = torch.zeros(rows * columns, side, side, 3, dtype=torch.uint8)
    full[:count] = images
    joined: numpy.ndarray = (
        full.view(rows, columns, side, side, 3).transpose(1, 2).reshape(rows * side, columns * side, 3).numpy()
    )
    return joined
