"""Arguments of public calls checked against their own annotations, so that a wrong one is an error that names it.

Python looks at no annotation, and a number where a name should be shows only somewhere deep in torch. What a value may
be beyond its type (a range, a choice) is checked where it is known.
"""

from __future__ import annotations

import collections.abc
import functools
import numbers
import os
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from lightning_ckptkd.errors import ArgumentError

_WORDS = {
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "True or False",
    Path: "a path",
    type(None): "None",
    nn.Module: "a torch module",
    Tensor: "a tensor",
    collections.abc.Callable: "a function",
}
_QUOTED = 80  # characters of a value that a message quotes


def check_types(call: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Check arguments against the annotations of what takes them.

    Checked are numbers, strings, paths, functions, modules, this package's own classes, and lists, tuples and mappings
    of those. Anything passes for what is annotated in another way: users have their own datasets and loaders.

    Args:
        call: The function, or a dataclass.
        given: Its arguments by name, as ``locals()`` or ``vars(self)`` has them; other names are left alone.

    Raises:
        ArgumentError: If a value is of another type; names it, and says what it should be.
    """
    for name, hint in _hints(call).items():
        if name in given and not _is_a(given[name], hint):
            value = given[name]
            shown = f"{type(value).__name__} {value!r}"[:_QUOTED]
            raise ArgumentError(f"{name} should be {_words(hint)}, got {shown}.")


def check_batches(name: str, loader: object) -> None:
    """Refuse what gives no batches, before it is asked for them.

    Args:
        name: The argument's.
        loader: None passes.

    Raises:
        ArgumentError: If it is no iterable, or a dataset, which gives samples.
    """
    samples = isinstance(loader, Dataset) and not isinstance(loader, IterableDataset)
    if loader is not None and (samples or isinstance(loader, str) or not isinstance(loader, collections.abc.Iterable)):
        got = f"the dataset {type(loader).__name__}" if samples else f"{loader!r:.80}"
        raise ArgumentError(
            f"{name} should give batches, as a DataLoader does, got {got}. Give DataLoader(dataset, n)."
        )


def check_device(device: torch.device | str) -> None:
    """Check that there is such a device.

    Raises:
        ArgumentError: If not.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ArgumentError(f"device={device!r} can't be used: {reason} Give 'cpu' or another.") from None


@functools.lru_cache(maxsize=256)
def _hints(call: Callable[..., Any]) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(call).items() if name != "return"}


def _is_a(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return any(_is_a(value, one) for one in inner)
    if kind is type(None):
        return value is None
    if kind in (int, float):
        wanted = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, wanted) and not isinstance(value, bool)
    if kind is Path:
        return isinstance(value, os.PathLike)
    if kind is tuple and inner and inner[-1] is not ...:
        return _is_listed(value) and len(value) == len(inner) and all(map(_is_a, value, inner))
    if kind in (list, tuple, collections.abc.Sequence):
        return _is_listed(value) and all(_is_a(item, inner[0] if inner else Any) for item in value)
    if kind is collections.abc.Mapping:
        key, item = inner or (Any, Any)
        return isinstance(value, Mapping) and all(_is_a(k, key) and _is_a(v, item) for k, v in value.items())
    if kind is collections.abc.Callable:
        return callable(value)
    if isinstance(kind, type) and (kind in _WORDS or kind.__module__.startswith(__package__)):
        return getattr(kind, "_is_protocol", False) or isinstance(value, kind)
    return True


def _is_listed(value: Any) -> bool:
    return isinstance(value, collections.abc.Sequence) and not isinstance(value, (str, bytes))


def _words(hint: Any) -> str:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_words, inner)))
    if kind is tuple and inner and inner[-1] is not ...:
        return f"({', '.join(map(_words, inner))})"
    if kind in (list, tuple, collections.abc.Sequence):
        return f"a list of which each is {_words(inner[0])}" if inner else "a list"
    if kind is collections.abc.Mapping:
        return f"a mapping from {' to '.join(map(_words, inner))}" if inner else "a mapping"
    known: str | None = _WORDS.get(kind)
    return known or f"a {getattr(kind, '__name__', kind)}"
