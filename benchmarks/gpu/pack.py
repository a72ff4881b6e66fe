"""Makes the file of images that travels.

    python -m benchmarks.gpu.pack folder FOLDER OUT
    python -m benchmarks.gpu.pack cifar10n FOLDER OUT --labels worst

``folder`` packs images of one size that lie in FOLDER/train/<class>, such as CIFAR-100's, into JPEG pictures of many
images each, of the best quality that stays within the limit. Chroma is not subsampled and sides are multiples of 8, so
that no image sees its neighbours. ``cifar10n`` keeps the JPEG files that are in FOLDER as they are. Training images are
split by a fixed permutation; CIFAR-10N has test images of its own, with clean labels.
"""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

from benchmarks.gpu.packed import FILE_NAME, join, write_packed
from benchmarks.students.cifar10n import LABELS
from lightning_ckptkd.errors import ArgumentError

COLUMNS, IMAGES_A_PICTURE = 50, 2500
QUALITIES = range(98, 30, -1)
TRIED = 4  # pictures that foretell the size of all


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.pack", description=(__doc__ or "").splitlines()[0])
    option = parser.add_argument
    option("kind", choices=["folder", "cifar10n"])
    option("folder", type=Path)
    option("out", type=Path, help=f"folder for {FILE_NAME}")
    option("--limit", type=float, default=45.0, help="megabytes")
    option("--held_out", type=int, default=5000, help="images for validation, and for test where there are none")
    option("--labels", choices=LABELS, default="worst", help="of cifar10n")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    path, limit = options.out / FILE_NAME, int(options.limit * 1e6)
    if options.kind == "folder":
        size = pack_folder(options.folder, path, limit, options.held_out)
    else:
        size = pack_cifar10n(options.folder, path, options.labels, options.held_out)
    if size > limit:
        parser.error(f"{path} has {size} bytes, more than --limit {options.limit} MB.")
    print(f"{path}: {size / 1e6:.1f} MB")


def pack_folder(folder: Path, path: Path, limit: int, held_out: int) -> int:
    """Pack FOLDER/train/<class>/<image>.

    Args:
        folder: Holds the folder ``train``.
        path: The file.
        limit: Bytes.
        held_out: Images for validation, and as many for test.

    Returns:
        The file's size in bytes.

    Raises:
        ArgumentError: If there are too few images, they differ in size or don't fit.
    """
    classes = sorted(entry.name for entry in (folder / "train").iterdir() if entry.is_dir())
    files = [
        (file, place) for place, name in enumerate(classes) for file in sorted((folder / "train" / name).iterdir())
    ]
    if len(files) <= 2 * held_out:
        raise ArgumentError(f"{folder} has {len(files)} images; --held_out {held_out} should leave some to train on.")
    images = torch.stack([_pixels(file) for file, _ in files])
    parts = [join(part, COLUMNS) for part in images.split(IMAGES_A_PICTURE)]
    room = limit - 16 * len(files) - 4096  # labels, splits and the header
    for quality in QUALITIES:
        tried = sum(len(encode(part, quality)) for part in parts[:TRIED])
        if tried * len(parts) > room * min(TRIED, len(parts)):
            continue
        pictures = [encode(part, quality) for part in parts]
        if sum(map(len, pictures)) <= room:
            break
    else:
        raise ArgumentError(f"--limit: {len(files)} images don't fit into {limit} bytes. Give a larger one.")
    about = {
        "name": folder.name,
        "side": str(images.shape[1]),
        "classes": str(len(classes)),
        "encoding": f"JPEG of quality {quality}, 4:4:4",
    }
    split = _split(len(files), {1: held_out, 2: held_out})
    return write_packed(path, pictures, [label for _, label in files], split, about)


def pack_cifar10n(folder: Path, path: Path, labels: str, held_out: int) -> int:
    """Pack CIFAR-10N's own JPEG files.

    Args:
        folder: Holds ``train.csv``, ``test.csv`` and the images.
        path: The file.
        labels: A column of ``train.csv``; test images have their clean label.
        held_out: Training images for validation.

    Returns:
        The file's size in bytes.
    """
    pictures, found, split = [], [], []
    for part, column in (("train", labels), ("test", "clean")):
        with (folder / f"{part}.csv").open() as table:
            rows = list(csv.DictReader(table))
        pictures += [(folder / part / f"{int(row['index']):05d}.jpg").read_bytes() for row in rows]
        found += [int(row[column]) for row in rows]
        split += _split(len(rows), {1: held_out}) if part == "train" else [2] * len(rows)
    about = {"name": f"CIFAR-10N, {labels}", "side": "32", "classes": "10", "encoding": "JPEG files as they were"}
    return write_packed(path, pictures, found, split, about)


def encode(picture: numpy.ndarray, quality: int) -> bytes:
    """A picture as JPEG whose chroma is not subsampled.

    Args:
        picture: Shape (H, W, 3), uint8.
        quality: Of libjpeg.
    """
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling=0, optimize=True)
    return file.getvalue()


def _pixels(file: Path) -> Tensor:
    pixels = torch.from_numpy(numpy.array(Image.open(file).convert("RGB")))
    if pixels.shape[0] != pixels.shape[1] or pixels.shape[0] % 8:
        raise ArgumentError(f"{file}: images should be square and a multiple of 8 pixels, got {tuple(pixels.shape)}.")
    return pixels


def _split(count: int, held_out: dict[int, int]) -> list[int]:
    """Places of splits by a fixed permutation; all others train."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    split = torch.zeros(count, dtype=torch.uint8)
    end = count
    for place, size in held_out.items():
        split[order[end - size : end]] = place
        end -= size
    found: list[int] = split.tolist()
    return found


if __name__ == "__main__":
    main()
