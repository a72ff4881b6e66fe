"""What cached logits depend on, and how two such keys differ."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sized
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.snapshots.fields import json_safe, shown
from lightning_ckptkd.teachers.logit_codec import STORED_LOGITS

_PACKAGES = ("torch", "torchvision")  # what computes logits and transforms images
_TRANSFORMS = ("transform", "transforms", "target_transform")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_MOST_DIFFERENCES = 5
_COMMON = 16  # characters shown of what two long texts have in common


def _package_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES if name in sys.modules}


@dataclass(frozen=True)
class CacheKey:
    """All that the teachers' logits depend on. Two runs share a cache only where all of it is equal.

    Attributes:
        teachers: SHA-256 of each teacher's weights, in the ensemble's order.
        samples: n, the number of samples in the dataset.
        dataset: Its :func:`fingerprint`.
        views: V, the number of views a sample.
        seed: What the views are drawn by.
        dtype: What logits are stored as: ``fp16`` or ``fp32``.
        top_k: How many logits a sample and teacher are stored, the largest; None stores all.
        network: Whatever else the logits depend on: the teachers' architecture, the precision they compute in.
        packages: Name to version of the packages that matter.

    Raises:
        ArgumentError: If a value can't be used.
    """

    teachers: tuple[str, ...]
    samples: int
    dataset: tuple[str, ...]
    views: int = 1
    seed: int = 0
    dtype: str = "fp16"
    top_k: int | None = None
    network: str = ""
    packages: Mapping[str, str] = field(default_factory=_package_versions)

    def __post_init__(self) -> None:
        if not self.teachers:
            raise ArgumentError("teachers: a cache needs at least one teacher, got none.")
        for name in ("samples", "views"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} should be 1 or more, got {getattr(self, name)}.")
        if self.dtype not in STORED_LOGITS:
            raise ArgumentError(f"dtype={self.dtype!r} is unknown; choose one of {list(STORED_LOGITS)}.")
        if self.top_k is not None and self.top_k < 1:
            raise ArgumentError(f"top_k should be 1 or more, or None to store all logits, got {self.top_k}.")

    @property
    def num_items(self) -> int:
        """Number of items: n * V."""
        return self.samples * self.views

    def document(self) -> dict[str, Any]:
        """The key as plain JSON."""
        document: dict[str, Any] = json_safe(asdict(self))
        return document

    def digest(self) -> str:
        """SHA-256 of the key, in hexadecimal."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def differences(self, cached: Mapping[str, Any]) -> list[str]:
        """Where a cached key's document, which is untrusted, differs: a field, the cached and the wanted value."""
        old, new = dict(_leaves("", cached)), dict(_leaves("", self.document()))
        places = [
            place
            for place in dict.fromkeys([*new, *old])
            if (type(old.get(place)), old.get(place)) != (type(new.get(place)), new.get(place))
        ]
        return [_difference(place, old.get(place), new.get(place)) for place in places[:_MOST_DIFFERENCES]]


def fingerprint(dataset: Any) -> tuple[str, ...]:
    """What can be told of a dataset without reading its samples, a line for each fact.

    Class, length, the transforms' ``repr`` without addresses, and the indices of a subset, of the dataset and of
    those that it wraps as ``dataset`` or ``datasets``. That samples are the same is told by their checksums.

    Args:
        dataset: A map-style dataset, or a wrapper such as ``Subset`` or ``ConcatDataset``.
    """
    return tuple(_facts(dataset, set()))


def _facts(dataset: Any, seen: set[int]) -> Iterator[str]:
    if id(dataset) in seen:
        return
    seen.add(id(dataset))
    length = f"{len(dataset)} samples" if isinstance(dataset, Sized) else "no length"
    indices = getattr(dataset, "indices", None)
    subset = "" if indices is None else f", indices {_hash_of_indices(indices)}"
    yield f"{type(dataset).__module__}.{type(dataset).__qualname__}: {length}{subset}"
    for name in _TRANSFORMS:
        transform = getattr(dataset, name, None)
        if transform is not None and not callable(getattr(type(dataset), name, None)):  # a method is no transform
            yield f"{name}: {_ADDRESS.sub('', repr(transform))}"
    wrapped = [getattr(dataset, "dataset", None), *_listed(getattr(dataset, "datasets", None))]
    for inner in wrapped:
        if hasattr(inner, "__getitem__") and not isinstance(inner, str):
            yield from _facts(inner, seen)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else []


def _hash_of_indices(indices: Any) -> str:
    try:
        data = numpy.asarray(indices, dtype=numpy.int64).tobytes()
    except (TypeError, ValueError):  # no integers
        data = _ADDRESS.sub("", repr(indices)).encode(errors="backslashreplace")
    return hashlib.sha256(data).hexdigest()[:16]


def _leaves(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and (value or not place):
        for key, item in value.items():
            yield from _leaves(f"{place}.{key}" if place else str(key), item)
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _leaves(f"{place}[{index}]", item)
    else:
        yield place, value


def _difference(place: str, old: Any, new: Any) -> str:
    name = shown(place).strip("'")
    if isinstance(old, str) and isinstance(new, str):
        common = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        start = max(common - _COMMON, 0)
        return f"{name}: cached {_from(old, start)}, wanted {_from(new, start)}"
    return f"{name}: cached {shown(old)}, wanted {shown(new)}"


def _from(text: str, start: int) -> str:
    return shown(("…" if start else "") + text[start:])
