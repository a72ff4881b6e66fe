"""One chunk of cached logits: a safetensors file whose header says what it belongs to and what it hashes to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_ckptkd.errors import CacheError
from lightning_ckptkd.snapshots.folders import Part
from lightning_ckptkd.teachers.logit_codec import Layout, stored_layout

_CODES = {torch.float16: "F16", torch.float32: "F32", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64"}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SCALAR = "none"  # written for logits of shape (), one number a sample
_SHAPE = re.compile(rf"{_SCALAR}|[1-9][0-9]{{0,9}}(x[1-9][0-9]{{0,9}}){{0,7}}")
_MAX_HEADER_BYTES = 2**16


Shape = tuple[int, ...]
"""Of one sample's logits by one teacher: (K,) of classes; any other."""


@dataclass(frozen=True)
class ChunkSpec:
    """All that decides a chunk's header but for the shape of one sample's logits and the hash.

    Attributes:
        key: Hash of the cache's key.
        chunk: The chunk's number.
        rows: Number of items in it.
        teachers: M.
        dtype: A key of ``STORED_LOGITS``.
        top_k: How many logits are stored; None for all.
    """

    key: str
    chunk: int
    rows: int
    teachers: int
    dtype: str
    top_k: int | None

    def layout(self, shape: Shape) -> Layout:
        """Name to type and shape of the file's tensors, the widest types first, so that each is aligned."""
        stored = stored_layout(self.rows, self.teachers, shape, self.dtype, self.top_k)
        layout: Layout = {"checksums": (torch.int64, (self.rows,)), **stored}
        return dict(sorted(layout.items(), key=lambda entry: -entry[1][0].itemsize))

    def header(self, shape: Shape, sha256: str) -> tuple[bytes, int]:
        """The file's first part, as safetensors has it, and the number of bytes that follow."""
        classes = "x".join(map(str, shape)) or _SCALAR
        metadata = {"key": self.key, "chunk": str(self.chunk), "classes": classes, "sha256": sha256}
        document: dict[str, Any] = {"__metadata__": metadata}
        start = 0
        for name, (dtype, whole) in self.layout(shape).items():
            stop = start + math.prod(whole) * dtype.itemsize
            document[name] = {"dtype": _CODES[dtype], "shape": list(whole), "data_offsets": [start, stop]}
            start = stop
        text = json.dumps(document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text, start


def chunk_parts(spec: ChunkSpec, shape: Shape, tensors: Mapping[str, Tensor]) -> list[Part]:
    """The file, in pieces that follow each other.

    Args:
        spec: What chunk it is.
        shape: Of one sample's logits by one teacher.
        tensors: On the CPU, as ``spec.layout(shape)`` says.
    """
    layout = spec.layout(shape)
    assert {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()} == layout
    data = [tensors[name].reshape(-1).view(torch.uint8).numpy().data for name in layout]
    sha256 = hash_of_header(spec, shape)
    for part in data:
        sha256.update(part)
    return [spec.header(shape, sha256.hexdigest())[0], *data]


def read_shape(path: Path, spec: ChunkSpec) -> Shape:
    """The shape of one sample's logits in a chunk, whose header and size are checked, but not its content.

    Raises:
        CacheError: If the file is missing, not a regular file, of another size or not this chunk.
    """
    with opened(path) as descriptor:
        return read_header(path, descriptor, spec)[0]


def open_chunk(path: Path) -> int:
    """The descriptor of a chunk's file, following no link.

    Raises:
        CacheError: If it is missing or can't be opened.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CacheError(f"{path} is missing: the cache is not filled. Fill it first.") from None
    except OSError as error:
        raise damaged(path, f"can't be opened ({error.strerror})") from None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """A chunk's file, closed after the block, within which errors of the disk are CacheErrors."""
    descriptor = open_chunk(path)
    try:
        yield descriptor
    except OSError as error:
        raise damaged(path, f"can't be read ({error.strerror})") from error
    finally:
        os.close(descriptor)


def read_header(path: Path, descriptor: int, spec: ChunkSpec) -> tuple[Shape, str]:
    """The shape of one sample's logits and the SHA-256 of the content; the descriptor stands at the content afterwards.

    Nothing in the header is believed: it must be, byte for byte, what is written for such a chunk.

    Raises:
        CacheError: If it is not, or the file is of another size.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise damaged(path, "is not a regular file")
    start = os.read(descriptor, 8)
    length = int.from_bytes(start, "little")
    header = os.read(descriptor, min(length, _MAX_HEADER_BYTES))
    try:
        metadata = dict(json.loads(header)["__metadata__"])
        classes, sha256 = str(metadata["classes"]), str(metadata["sha256"])
    except (ValueError, LookupError, TypeError, RecursionError):
        raise damaged(path, "has no header that can be read") from None
    if metadata.get("key") != spec.key or metadata.get("chunk") != str(spec.chunk):
        raise damaged(path, f"holds another chunk than number {spec.chunk} of this cache")
    if not _SHAPE.fullmatch(classes) or not _SHA256.fullmatch(sha256):
        raise damaged(path, "has a header that was changed")
    shape = () if classes == _SCALAR else tuple(map(int, classes.split("x")))
    if spec.top_k is not None and len(shape) != 1:
        raise damaged(path, "has a header that was changed")
    expected, size = spec.header(shape, sha256)
    if start + header != expected:
        raise damaged(path, "has a header that was changed")
    if status.st_size != len(expected) + size:
        raise damaged(path, f"has {status.st_size} bytes instead of {len(expected) + size}: it was cut or extended")
    return shape, sha256


def hash_of_header(spec: ChunkSpec, shape: Shape) -> Any:
    """What the SHA-256 of a chunk starts with, before its content."""
    return hashlib.sha256(spec.header(shape, "")[0])


def damaged(path: Path, what: str) -> CacheError:
    """The error of a file that is not used."""
    return CacheError(f"{path} {what}, so it is not used. Delete that file; it is filled again.")
