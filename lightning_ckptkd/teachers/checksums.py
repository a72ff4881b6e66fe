"""A checksum of one sample, by which it is known again."""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy
import torch
from PIL.Image import Image
from torch import Tensor


def sample_checksum(sample: Any) -> int:
    """CRC-32 of a sample: its tensors, arrays, PIL images, numbers and strings, in order.

    Tuples, lists, mappings and dataclasses are walked through. Of any other object only the type counts: its
    ``repr`` may hold an address, which is another in each process.

    Args:
        sample: What a dataset gives for one index.

    Returns:
        A number in [0, 2^32).
    """
    checksum = 0
    for piece in _pieces(sample):
        checksum = zlib.crc32(piece, checksum)
    return checksum


def _pieces(value: Any) -> Iterator[bytes | memoryview]:
    if isinstance(value, Tensor):
        yield f"{value.dtype}{tuple(value.shape)}".encode()
        yield _tensor_bytes(value)
    elif isinstance(value, (tuple, list)):
        yield from _sequence(value)
    elif isinstance(value, numpy.ndarray) and not value.dtype.hasobject:
        yield f"{value.dtype}{value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, Image):
        yield f"{value.mode}{value.size}{value.getpalette()}".encode()
        yield value.tobytes()
    elif isinstance(value, (bytes, bytearray)):
        yield b"bytes" + value
    elif value is None or isinstance(value, (bool, int, float, complex, str, numpy.generic)):
        yield f"{type(value).__name__} {value!r};".encode(errors="backslashreplace")
    elif isinstance(value, Mapping):
        yield f"mapping of {len(value)};".encode()
        for key, item in value.items():
            yield from _pieces(key)
            yield from _pieces(item)
    elif isinstance(value, Sequence) or (isinstance(value, numpy.ndarray) and value.ndim > 0):
        yield from _sequence(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from _pieces({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    else:
        yield f"{type(value).__module__}.{type(value).__qualname__};".encode()


def _sequence(values: Any) -> Iterator[bytes | memoryview]:
    yield f"sequence of {len(values)};".encode()
    for value in values:
        yield from _pieces(value)


def _tensor_bytes(value: Tensor) -> memoryview:
    value = value.detach()
    with contextlib.suppress(TypeError, RuntimeError):  # of what NumPy does not know: bf16, sparse, on a GPU
        return numpy.ascontiguousarray(value.numpy()).data
    value = value.to("cpu")
    plain = value if value.layout == torch.strided else value.to_dense()
    return plain.resolve_conj().resolve_neg().reshape(-1).view(torch.uint8).numpy().data
