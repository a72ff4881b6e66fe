"""The rows of a chunk that was verified: kept in memory, or read when they are asked for and compared with what it was.

Kept rows are the bytes that the SHA-256 was taken of, so they are neither read nor compared again.

Mapping the file would be shorter, but a map has two faults: what is written into the file later is read without a word,
and of a file that is cut later the kernel kills whoever touches what is gone (SIGBUS). So rows are read by system
calls, and each is compared with the CRC-32 that it had when the whole file was verified by its SHA-256.
"""

from __future__ import annotations

import math
import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy
from numpy.typing import NDArray

from lightning_ckptkd.teachers.chunk_file import (
    ChunkSpec,
    Shape,
    damaged,
    hash_of_header,
    open_chunk,
    opened,
    read_header,
)

_BLOCK_BYTES = 2**20
_MOST_OPEN = 128  # files; a cache may have thousands of chunks, and a process 1024 files

Rows = dict[str, NDArray[numpy.uint8]]
"""Name of a tensor to the bytes of each row, shape (B, bytes a row)."""


class ChunkRows:
    """One chunk. Making it verifies the file: header, size and SHA-256.

    Args:
        path: The file.
        spec: What chunk it is.
        memory: Bytes that its rows may take; where they take more, none is kept.

    Attributes:
        shape: Of one sample's logits by one teacher.
        row_bytes: Name of each tensor to the bytes of one of its rows.
        kept: All rows, where they are kept.

    Raises:
        CacheError: If the file is missing, no regular file, not this chunk or damaged.
    """

    def __init__(self, path: Path, spec: ChunkSpec, memory: int = 0) -> None:
        self.path = path
        self.kept: Rows | None = None
        with opened(path) as descriptor:
            self.shape: Shape
            self.shape, sha256 = read_header(path, descriptor, spec)
            layout = spec.layout(self.shape)
            self.row_bytes = {name: math.prod(whole[1:]) * dtype.itemsize for name, (dtype, whole) in layout.items()}
            place = len(spec.header(self.shape, sha256)[0])
            self._starts: dict[str, int] = {}
            keep = spec.rows * sum(self.row_bytes.values()) <= memory
            kept: Rows = {}
            self._checksums = numpy.zeros(0 if keep else spec.rows, numpy.uint32)
            found = hash_of_header(spec, self.shape)
            for name, size in self.row_bytes.items():
                self._starts[name] = place
                if keep:
                    kept[name] = numpy.empty((spec.rows, size), numpy.uint8)
                    whole = kept[name].reshape(-1).data
                    self._read(descriptor, whole, place)
                    found.update(whole)
                    place += spec.rows * size
                    continue
                step = max(_BLOCK_BYTES // size, 1)
                for first in range(0, spec.rows, step):
                    count = min(step, spec.rows - first)
                    block = memoryview(bytearray(count * size))
                    self._read(descriptor, block, place + first * size)
                    found.update(block)
                    for row in range(count):
                        before = int(self._checksums[first + row])
                        self._checksums[first + row] = zlib.crc32(block[row * size : (row + 1) * size], before)
                place += spec.rows * size
            if found.hexdigest() != sha256:
                raise damaged(path, "does not have the SHA-256 that it was written with")
            self.kept = kept if keep else None

    @property
    def kept_bytes(self) -> int:
        """What the rows take that are kept."""
        return 0 if self.kept is None else sum(values.nbytes for values in self.kept.values())

    def read(self, descriptor: int, rows: Sequence[int], into: Rows, places: Sequence[int]) -> None:
        """Read some rows.

        Args:
            descriptor: The file, opened again.
            rows: Which.
            into: Where all tensors of them go; C-contiguous.
            places: The place there of each of ``rows``.

        Raises:
            CacheError: If one of them is not what was verified.
        """
        views = [(into[name].reshape(-1).data, self._starts[name], size) for name, size in self.row_bytes.items()]
        for row, place in zip(rows, places, strict=True):
            found = 0
            for view, start, size in views:
                part = view[place * size : (place + 1) * size]
                if os.preadv(descriptor, [part], start + row * size) != size:
                    self._read(descriptor, part, start + row * size)
                found = zlib.crc32(part, found)
            if found != self._checksums[row]:
                raise damaged(self.path, f"changed in row {row} since it was verified, when training started")

    def _read(self, descriptor: int, into: memoryview, offset: int) -> None:
        """Fill a buffer from the file, which may take several calls."""
        done = 0
        while done < len(into):
            count = os.preadv(descriptor, [into[done:]], offset + done)
            if not count:
                raise damaged(self.path, "was cut since it was opened")
            done += count


class OpenChunks:
    """The files that were read last, held open: at most 128 of them."""

    def __init__(self) -> None:
        self._descriptors: OrderedDict[Path, int] = OrderedDict()

    def descriptor(self, path: Path) -> int:
        """The open file of a path.

        Raises:
            CacheError: If it can't be opened.
        """
        if path in self._descriptors:
            self._descriptors.move_to_end(path)
        else:
            if len(self._descriptors) >= _MOST_OPEN:
                os.close(self._descriptors.popitem(last=False)[1])
            self._descriptors[path] = open_chunk(path)
        return self._descriptors[path]

    def close(self) -> None:
        """Close all of them; those that are asked for are opened again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __del__(self) -> None:
        self.close()
