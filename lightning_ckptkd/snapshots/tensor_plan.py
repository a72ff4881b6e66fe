"""What a file of ``torch.save`` says of a plain tensor, checked: its type, and where its elements lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeGuard

import torch

from lightning_ckptkd.snapshots.inert_pickle import Call, Global, Items, PickleError, Reference

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")
_DTYPES = {
    str(dtype): dtype
    for dtype in (
        *_STORAGES.values(), torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e4m3fnuz,
        torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.float4_e2m1fn_x2,
    )
}  # fmt: skip

_WITH_TYPE = "torch._utils._rebuild_tensor_v3"
# What makes a plain tensor, and how many arguments it needs; it is not called.
_REBUILT = {"torch._utils._rebuild_tensor": 4, "torch._utils._rebuild_tensor_v2": 6, _WITH_TYPE: 7}
_WRAPPERS = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
)


@dataclass(frozen=True)
class TensorPlan:
    """A plain strided tensor as a file describes it: its type, and where its elements lie in which storage.

    Attributes:
        storage: The storage's key in the file.
        held: Bytes that the storage should have at least.
        offset: Place of the first element, in elements.
        conjugated: Whether the elements are the conjugates of what is stored.
        negated: Whether they are its negatives.
    """

    dtype: torch.dtype
    storage: str
    held: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    conjugated: bool = False
    negated: bool = False

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def plan_tensor(value: object) -> TensorPlan | None:
    """What is to be read for a tensor; None where it is not a plain one (a subclass, sparse, quantised, on no device).

    Args:
        value: What :func:`read_pickle` gives.

    Raises:
        PickleError: If it is one that claims what can't be.
    """
    for _ in range(4):  # a parameter of a tensor with attributes, on a device that is here no more
        if not isinstance(value, Call) or not isinstance(value.arguments, tuple):
            return None
        arguments = value.arguments
        if value.path in _WRAPPERS:
            value = arguments[0] if arguments else None
        elif value.path == "torch._tensor._rebuild_from_type_v2" and len(arguments) == 4:
            function, kind, inner, _state = arguments
            if not isinstance(kind, Global) or kind.path not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
                return None
            value = Call(function, inner)
        else:
            return _plan_plain(value.path, arguments)
    return None


def _plan_plain(function: str, arguments: tuple[object, ...]) -> TensorPlan | None:
    if function not in _REBUILT or len(arguments) < _REBUILT[function]:
        return None
    named = read_storage(arguments[0])
    if named is None:
        return None
    stored, key, numel = named
    dtype, metadata = stored, arguments[6:7]
    if function == _WITH_TYPE:
        kind, metadata = arguments[6], arguments[7:8]
        if not isinstance(kind, Global) or kind.path not in _DTYPES:
            return None
        dtype = _DTYPES[kind.path]
    offset, shape, stride = arguments[1], _naturals(arguments[2]), _naturals(arguments[3])
    if not _is_natural(offset) or shape is None or stride is None or len(shape) != len(stride):
        raise PickleError("a tensor's place, size or stride is no row of numbers from 0")
    held = numel * stored.itemsize
    bits = metadata[0] if metadata and isinstance(metadata[0], Items) else Items()
    conjugated, negated = bits.get("conj") is True, bits.get("neg") is True
    plan = TensorPlan(dtype, key, held, offset, shape, stride, conjugated, negated)
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if len(shape) > 64 or plan.numel >= 2**62 or (plan.numel and (last + 1) * dtype.itemsize > held):
        raise PickleError("a tensor reaches beyond its storage")
    return plan


def read_storage(value: object) -> tuple[torch.dtype, str, int] | None:
    """Type, key and number of elements of a storage; None where it is of a type that is not read.

    Raises:
        PickleError: If it is no reference to a storage.
    """
    key = value.key if isinstance(value, Reference) else None
    if not isinstance(key, tuple) or len(key) not in (5, 6) or key[0] != "storage" or key[5:] not in ((), (None,)):
        raise PickleError("it refers to something else than a storage")
    _, kind, name, _location, numel = key[:5]
    if not isinstance(kind, Global) or not isinstance(name, str) or not _is_natural(numel):
        raise PickleError("it refers to a storage without a type, a name or a size")
    module, _, title = kind.path.rpartition(".")
    dtype = _STORAGES.get(title) if module in _STORAGE_MODULES else None
    return None if dtype is None else (dtype, name, numel)


def _is_natural(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**62


def _naturals(value: object) -> tuple[int, ...] | None:
    """A tuple of integers from 0, also as ``torch.Size`` would make it."""
    if isinstance(value, Call) and value.path == "torch.Size" and isinstance(value.arguments, tuple):
        value = value.arguments[0] if len(value.arguments) == 1 else None
    if not isinstance(value, (tuple, list)) or len(value) > 64 or not all(map(_is_natural, value)):
        return None
    return tuple(value)
