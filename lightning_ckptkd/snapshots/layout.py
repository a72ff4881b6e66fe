"""The safetensors file that a snapshot is: where each tensor lies in it, its header, and what is read of it."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import safetensors
import torch
from torch import Tensor

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.snapshots.dtensor import is_dtensor
from lightning_ckptkd.snapshots.fields import is_text, shown

# In the order in which the safetensors library writes types: the widest first.
_CODES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.float4_e2m1fn_x2: "F4",
    torch.bool: "BOOL",
}
_PLACES = {dtype: place for place, dtype in enumerate(_CODES)}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}
_PAIRED = torch.float4_e2m1fn_x2  # one element of the tensor is two of the format's
_METADATA = "__metadata__"


@dataclass(frozen=True)
class Entry:
    """One tensor of a layout: its type and shape, and its place in the data, in bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """Where each tensor lies in a safetensors file.

    Attributes:
        entries: Name to place, in the order of the file: wider types first, so that each tensor is aligned.
        ties: Name of a tied tensor to the name under which it is stored, once.
    """

    entries: dict[str, Entry] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)

    @property
    def data_bytes(self) -> int:
        """Size of all tensors in bytes."""
        return max((entry.stop for entry in self.entries.values()), default=0)

    def header(self) -> bytes:
        """The file's first part: its length, then names, types and places as JSON."""
        document: dict[str, object] = {_METADATA: dict(sorted(self.ties.items()))} if self.ties else {}
        for name, entry in self.entries.items():
            document[name] = {
                "dtype": _CODES[entry.dtype],
                "shape": [*entry.shape[:-1], 2 * entry.shape[-1]] if entry.dtype == _PAIRED else list(entry.shape),
                "data_offsets": [entry.start, entry.stop],
            }
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text


def plan_layout(weights: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> Layout:
    """Lay out tensors as a safetensors file.

    Args:
        weights: Name to tensor; a DTensor counts with its full shape.
        dtype: What wider floating-point tensors are stored as; None stores all as they are.

    Raises:
        ArgumentError: If a tensor can't be stored; names its key.
    """
    for name, value in weights.items():
        _check_storable(name, value)
    ties = find_ties(weights)
    types = {name: _stored_as(value, dtype) for name, value in weights.items() if name not in ties}
    entries: dict[str, Entry] = {}
    start = 0
    for name in sorted(types, key=lambda name: (_PLACES[types[name]], name)):
        stop = start + weights[name].numel() * types[name].itemsize
        entries[name] = Entry(types[name], tuple(weights[name].shape), start, stop)
        start = stop
    return Layout(entries, ties)


def find_ties(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Names whose tensors are the same memory as an earlier name's: name to the earlier one."""
    first: dict[tuple[object, ...], str] = {}
    ties: dict[str, str] = {}
    for name, value in weights.items():
        local = value.to_local() if is_dtensor(value) else value
        if local.numel() == 0:
            continue
        place = (local.device, local.data_ptr(), local.dtype, tuple(local.shape), local.stride(), tuple(value.shape))
        if place in first:
            ties[name] = first[place]
        else:
            first[place] = name
    return ties


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, tied ones being one and the same again.

    The library's own function for bytes does not know each type that the library writes.

    Raises:
        Exception: Of any kind, if it is no such file.
    """
    tensors: dict[str, Tensor] = {}
    for name, found in safetensors.deserialize(data):  # type: ignore[no-untyped-call]
        dtype, shape = _DTYPES[found["dtype"]], list(found["shape"])
        if dtype == _PAIRED:
            shape[-1] //= 2
        flat = (
            torch.frombuffer(found["data"], dtype=torch.uint8) if found["data"] else torch.empty(0, dtype=torch.uint8)
        )
        tensors[name] = flat.view(dtype).view(shape)
    (length,) = struct.unpack("<Q", data[:8])
    ties: dict[str, str] = json.loads(data[8 : 8 + length]).get(_METADATA, {})
    tensors.update({name: tensors[stored] for name, stored in ties.items()})
    return tensors


def _stored_as(value: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    narrower = dtype is not None and value.is_floating_point() and value.dtype.itemsize > dtype.itemsize
    return dtype if narrower and dtype is not None else value.dtype


def _check_storable(name: str, value: Tensor) -> None:
    if torch.nn.parameter.is_lazy(value):
        raise ArgumentError(f"{name!r} has no shape yet: the lazy module was not run before its weights were taken.")
    if value.is_meta or value.layout != torch.strided or value.dtype not in _CODES:
        kind = "on the meta device" if value.is_meta else f"{value.layout}, {value.dtype}"
        raise ArgumentError(
            f"{name!r} can't be stored in a safetensors file ({kind}). Name a part without it with submodule='...'."
        )
    if value.dtype == _PAIRED and value.ndim == 0:
        raise ArgumentError(f"{name!r} can't be stored in a safetensors file: it is a scalar of {value.dtype}.")
    if name == _METADATA or not is_text(name):
        raise ArgumentError(f"A tensor can't be called {shown(name)} in a safetensors file; rename it.")
