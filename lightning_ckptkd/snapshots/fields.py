"""Typed access to untrusted JSON objects: the wrong type becomes one clear error that names the field."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType
from typing import Any

from lightning_ckptkd.errors import SnapshotError
from lightning_ckptkd.snapshots.inert_pickle import Call, Global, Items, kind_of

_QUOTED = 80  # characters that a message quotes of what it found
_MAX_DEPTH, _MAX_ITEMS, _MAX_TEXT = 20, 10_000, 100_000
_TEXT_OF_AN_ITEM = 100  # so many characters count as one item, so that all of it is some megabytes at most


class Fields:
    """One JSON object of a file, read field by field.

    Args:
        document: What the file holds.
        where: The file, and the place in it, for messages.

    Raises:
        SnapshotError: If ``document`` is not an object.
    """

    def __init__(self, document: Any, where: str) -> None:
        if not isinstance(document, dict):
            raise SnapshotError(f"{where} should be a JSON object but is {type(document).__name__}.")
        self._document = document
        self._where = where

    def _wrong(self, key: str, wanted: str) -> SnapshotError:
        got = shown(self._document[key]) if key in self._document else "nothing"
        return SnapshotError(f"{self._where}: {key!r} should be {wanted} but is {got}.")

    def text(self, key: str) -> str:
        """The string at ``key``."""
        value = self._document.get(key)
        if not isinstance(value, str) or not is_text(value):
            raise self._wrong(key, "a string")
        return value

    def optional_text(self, key: str) -> str | None:
        """The string at ``key``, or None where it is null or absent."""
        return None if self._document.get(key) is None else self.text(key)

    def natural(self, key: str) -> int:
        """The integer >= 0 at ``key``."""
        value = self._document.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
            raise self._wrong(key, "an integer >= 0")
        return value

    def optional_number(self, key: str) -> float | None:
        """The finite number at ``key``, or None where it is null or absent."""
        value = self._document.get(key)
        if value is None:
            return None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not _is_finite(value):
            raise self._wrong(key, "a finite number or null")
        return float(value)

    def optional_flag(self, key: str) -> bool | None:
        """True or false at ``key``, or None where it is null or absent."""
        value = self._document.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, "true, false or null")
        return value

    def number(self, key: str) -> float:
        """The finite number at ``key``."""
        value = self.optional_number(key)
        if value is None:
            raise self._wrong(key, "a finite number")
        return value

    def plain(self, key: str) -> dict[str, Any]:
        """The object at ``key``, as plain JSON that can be written again."""
        found: dict[str, Any] = json_safe(self.mapping(key))
        return found

    def optional_plain(self, key: str) -> dict[str, Any]:
        """As :meth:`plain`; empty where there is none."""
        return self.plain(key) if key in self._document else {}

    def mapping(self, key: str) -> dict[str, Any]:
        """The object at ``key``."""
        value = self._document.get(key)
        if not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return value

    def numbers(self, key: str) -> dict[str, float | None]:
        """The object at ``key``, whose values are finite numbers or null."""
        fields = Fields(self.mapping(key), f"{self._where}: {key!r}")
        return {name: fields.optional_number(name) for name in fields._document}

    def items(self, key: str) -> list[Any]:
        """The array at ``key``."""
        value = self._document.get(key)
        if not isinstance(value, list):
            raise self._wrong(key, "an array")
        return value

    def objects(self, key: str) -> Iterator[Fields]:
        """The objects of the array at ``key``, one after another."""
        return (Fields(item, f"{self._where}: {key!r}[{i}]") for i, item in enumerate(self.items(key)))

    def optional_object(self, key: str) -> Fields | None:
        """The object at ``key``, or None where it is null or absent."""
        found = None if self._document.get(key) is None else self.mapping(key)
        return None if found is None else Fields(found, f"{self._where}: {key!r}")

    def optional_objects(self, key: str) -> Iterator[Fields]:
        """As :meth:`objects`; none where the array is null or absent."""
        return iter(()) if self._document.get(key) is None else self.objects(key)

    def number_list(self, key: str) -> tuple[float, ...]:
        """The finite numbers of the array at ``key``."""
        found = []
        for item in self.items(key):
            if not isinstance(item, (int, float)) or isinstance(item, bool) or not _is_finite(item):
                raise self._wrong(key, "an array of finite numbers")
            found.append(float(item))
        return tuple(found)

    def header(self, format_name: str, version: int) -> None:
        """Check the two fields that say what the file is.

        Raises:
            SnapshotError: If the file is of another format or version.
        """
        if self._document.get("format") != format_name:
            raise self._wrong("format", repr(format_name))
        found = self._document.get("version")
        if found != version or isinstance(found, bool):
            raise SnapshotError(
                f"{self._where} is of version {shown(found)}; this lightning_ckptkd reads version "
                f"{version}. Use the release that wrote it, or harvest again."
            )


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def is_text(value: object) -> bool:
    """Whether ``value`` is a string that can be written as UTF-8."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def shown(value: object) -> str:
    """What a message quotes of something untrusted: little, and no control characters."""
    if isinstance(value, (str, bytes)):
        value = value[:_QUOTED]
    if isinstance(value, int) and abs(value) >= 10**_QUOTED:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (list, dict, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    return repr(value)[:_QUOTED]


def json_safe(value: Any) -> Any:
    """``value`` as plain JSON of a bounded size.

    Numbers that are not finite become null, unknown objects the name of their type, and what lies deeper than 20
    levels or beyond 10,000 items (or a million characters), three dots.
    """
    return _json_safe(value, _MAX_DEPTH, [_MAX_ITEMS])


def _json_text(value: str) -> str:
    """A string that can be written as UTF-8, of at most 100,000 characters."""
    return str(value)[:_MAX_TEXT] if is_text(value) else repr(value)[:_MAX_TEXT]


def _json_safe(value: Any, depth: int, room: list[int]) -> Any:
    room[0] -= 1
    if depth < 0 or room[0] < 0:
        return "..."
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < 10**_QUOTED else shown(value)
    if isinstance(value, str):
        room[0] -= len(value[:_MAX_TEXT]) // _TEXT_OF_AN_ITEM
        return _json_text(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (dict, Items)):
        pairs = value.pairs if isinstance(value, Items) else dict.items(value)
        items = itertools.islice(pairs, max(room[0], 0))
        return {str(_json_safe(key, depth - 1, room)): _json_safe(item, depth - 1, room) for key, item in items}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_json_safe(item, depth - 1, room) for item in itertools.islice(value, max(room[0], 0))]
    if isinstance(value, Mapping):
        return _json_safe(dict(value), depth, room)
    if isinstance(value, (Global, Call)):
        return f"<{_json_text(kind_of(value))}>" if isinstance(value, Call) else _json_text(kind_of(value))
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        return f"{value.__module__}.{value.__qualname__}"
    return f"<{type(value).__module__}.{type(value).__qualname__}>"
