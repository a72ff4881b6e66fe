"""The errors that this package raises itself: one clear message each, naming what is wrong and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from typing_extensions import Self

_NAMES_SHOWN = 5


class CkptKDError(Exception):
    """Base of every error that this package raises itself."""


class ArgumentError(CkptKDError, ValueError):
    """An argument has a value that can't be used."""


class SnapshotError(CkptKDError, RuntimeError):
    """A file of a harvest is missing, damaged, hostile or belongs to something else."""


class SelectionError(CkptKDError, RuntimeError):
    """Snapshots can't be scored or chosen."""


class TeacherError(CkptKDError, RuntimeError):
    """A snapshot does not fit the teacher, or the teacher does not fit the student."""


class CacheError(CkptKDError, RuntimeError):
    """A cache of teachers' logits is damaged, not filled, or belongs to other teachers or data."""


def near_names(name: str, names: Iterable[str]) -> str:
    """The names most like ``name``, for an error message."""
    known = [known for known in names if known]
    near = difflib.get_close_matches(name, known, n=_NAMES_SHOWN, cutoff=0.4) or known[-_NAMES_SHOWN:]
    return ", ".join(repr(item) for item in near) or "none"


class MovedOptions:
    """A class of which some options belong to another object by now: giving one is an error that says to which.

    Attributes:
        moved_options: Name to where it went and what to give there.
    """

    moved_options: ClassVar[Mapping[str, str]] = {}

    def __new__(cls, *_: Any, **options: Any) -> Self:
        """Look at the options; the rest is ``__init__``'s.

        Raises:
            ArgumentError: If one has moved.
        """
        cls.refuse_moved(options)
        return super().__new__(cls)

    @classmethod
    def refuse_moved(cls, names: Iterable[str]) -> None:
        """Refuse options that have moved.

        Raises:
            ArgumentError: Names the first of them and its new place.
        """
        for name in names:
            if name in cls.moved_options:
                raise ArgumentError(f"{name} is no option of {cls.__name__} any more: {cls.moved_options[name]}.")
