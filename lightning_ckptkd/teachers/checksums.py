"""A checksum of one sample, by which it is known again."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Mapping, Sequence
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
    return _add(sample, 0)


def _add(value: Any, checksum: int) -> int:
    """The checksum of what came before and a value."""
    if type(value) is Tensor:
        return _add_tensor(value, checksum)
    if isinstance(value, Tensor):
        with torch._C.DisableTorchFunctionSubclass():  # torchvision's images go a long way to each attribute
            return _add_tensor(value, checksum)
    if isinstance(value, (tuple, list)):
        return _add_sequence(value, checksum)
    if value is None or isinstance(value, (bool, int, float, complex, str, numpy.generic)):
        return zlib.crc32(f"{type(value).__name__} {value!r};".encode(errors="backslashreplace"), checksum)
    if isinstance(value, numpy.ndarray) and not value.dtype.hasobject:
        return zlib.crc32(value.tobytes(), zlib.crc32(f"{value.dtype}{value.shape}".encode(), checksum))
    if isinstance(value, Image):
        form = f"{value.mode}{value.size}{value.getpalette()}".encode()
        return zlib.crc32(value.tobytes(), zlib.crc32(form, checksum))
    if isinstance(value, (bytes, bytearray)):
        return zlib.crc32(b"bytes" + value, checksum)
    if isinstance(value, Mapping):
        checksum = zlib.crc32(f"mapping of {len(value)};".encode(), checksum)
        for key, item in value.items():
            checksum = _add(item, _add(key, checksum))
        return checksum
    if isinstance(value, Sequence) or (isinstance(value, numpy.ndarray) and value.ndim > 0):
        return _add_sequence(value, checksum)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _add({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, checksum)
    return zlib.crc32(f"{type(value).__module__}.{type(value).__qualname__};".encode(), checksum)


def _add_sequence(values: Any, checksum: int) -> int:
    checksum = zlib.crc32(f"sequence of {len(values)};".encode(), checksum)
    for value in values:
        checksum = _add(value, checksum)
    return checksum


def _add_tensor(value: Tensor, checksum: int) -> int:
    return zlib.crc32(_tensor_bytes(value), zlib.crc32(_tensor_form(value.dtype, value.shape), checksum))


@functools.lru_cache
def _tensor_form(dtype: torch.dtype, shape: torch.Size) -> bytes:
    return f"{dtype}{tuple(shape)}".encode()


def _tensor_bytes(value: Tensor) -> memoryview:
    value = value.detach() if value.requires_grad else value
    try:
        return numpy.ascontiguousarray(value.numpy()).data
    except (TypeError, RuntimeError):  # of what NumPy does not know: bf16, sparse, on a GPU
        plain = value.to("cpu")
        plain = plain if plain.layout == torch.strided else plain.to_dense()
        return plain.resolve_conj().resolve_neg().reshape(-1).view(torch.uint8).numpy().data
