"""Typed access to untrusted JSON objects: the wrong type becomes one clear error that names the field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_ckptkd.errors import SnapshotError


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
        got = repr(self._document[key])[:80] if key in self._document else "nothing"
        return SnapshotError(f"{self._where}: {key!r} should be {wanted} but is {got}.")

    def text(self, key: str) -> str:
        """The string at ``key``."""
        value = self._document.get(key)
        if not isinstance(value, str):
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

    def objects(self, key: str) -> list[Fields]:
        """The array of objects at ``key``."""
        return [Fields(item, f"{self._where}: {key!r}[{i}]") for i, item in enumerate(self.items(key))]

    def header(self, format_name: str, version: int) -> None:
        """Check the two fields that say what the file is.

        Raises:
            SnapshotError: If the file is of another format or version.
        """
        if self._document.get("format") != format_name:
            raise self._wrong("format", repr(format_name))
        if self._document.get("version") != version:
            raise SnapshotError(
                f"{self._where} is of version {self._document.get('version')!r}; this lightning_ckptkd reads version "
                f"{version}. Use the release that wrote it, or harvest again."
            )


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a float
        return False


def json_safe(value: Any) -> Any:
    """``value`` as plain JSON: numbers that are not finite become null, unknown objects their shortened ``repr``."""
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [json_safe(item) for item in value]
    return repr(value)[:200]
