"""What a harvest needs of the folder it is in: bounded reads, writes that are whole or absent, one writer."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from lightning_ckptkd.errors import SnapshotError

Part = bytes | memoryview

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,199}")
_MAX_JSON_BYTES = 16 * 2**20  # of a file that is read, and so of one that is written


def is_plain_name(name: str) -> bool:
    """Whether ``name`` is a single file name: no separator, no ``..``, no leading dot, portable characters."""
    return _NAME.fullmatch(name) is not None


def run_tag(run_id: str) -> str:
    """Eight hexadecimal digits that mark the files of a run, so that nobody else cleans them up."""
    return hashlib.sha256(run_id.encode()).hexdigest()[:8]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


class Folder(ABC):
    """A folder of plain files. ``folder / name`` is a file's address, for messages.

    The folder itself is trusted (it may be reached through a link); the names in it are not.
    """

    #: Whether somebody else can take the lock while its holder runs, so that :meth:`check_lock` must be asked.
    lock_can_be_lost: ClassVar[bool] = False

    def __init__(self, location: str) -> None:
        self.location = location

    def __str__(self) -> str:
        return self.location

    def __truediv__(self, name: str) -> str:
        return f"{self.location.rstrip('/')}/{name}"

    @abstractmethod
    def make(self) -> None:
        """Make the folder where it does not exist.

        Raises:
            SnapshotError: If it can't be made.
        """

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is anything of that name.

        Raises:
            SnapshotError: If the folder can't be looked into.
        """

    @abstractmethod
    def lock(self, run_id: str) -> contextlib.AbstractContextManager[None]:
        """Become the only writer of harvests in the folder, until the returned context is closed.

        Raises:
            SnapshotError: If another run writes here; nothing was written then.
        """

    def check_lock(self) -> None:  # noqa: B027  (a lock that can't be lost needs no check)
        """Check that the lock is still held.

        Raises:
            SnapshotError: If somebody else has it, or if that can't be found out.
        """

    def bounded(self) -> contextlib.AbstractContextManager[None]:
        """Work that ends with an error, rather than late, where a store stands still. Disks have no bound."""
        return contextlib.nullcontext()

    @abstractmethod
    def write(self, name: str, parts: Sequence[Part], tag: str) -> None:
        """Write one file, so that a reader sees what was there before or all of the new content.

        Args:
            name: A plain name.
            parts: The content, in pieces that follow each other.
            tag: The :func:`run_tag` of the writer; its leftovers carry it.

        Raises:
            SnapshotError: If the file can't be written; names it, the bytes needed and free, and the remedy.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove one file; one that can't be removed now is a leftover, to be cleaned later."""

    @abstractmethod
    def clean(self, tag: str, is_leftover: Callable[[str], bool]) -> None:
        """Remove what a killed writer with this tag left: its temporary files, and files that ``is_leftover`` names."""

    @abstractmethod
    def _read(self, name: str, size: int | None, limit: int | None) -> bytes:
        """The content of one file; see :meth:`read`."""

    def read(self, name: str, *, size: int | None = None, limit: int | None = None) -> bytes:
        """Read one regular file of the folder, following no link.

        Args:
            name: The file's name, which is not trusted.
            size: The size in bytes that the file must have.
            limit: The largest size in bytes that is read.

        Raises:
            SnapshotError: If the name leaves the folder, or the file is missing, a link, not a regular file, of
                another size than ``size`` or larger than ``limit``.
        """
        if not is_plain_name(name):
            raise SnapshotError(
                f"{self}: {name!r} is not a plain file name; names with '..', separators or links are never followed. "
                "The folder was not written by lightning_ckptkd or was tampered with: restore it from a copy."
            )
        return self._read(name, size, limit)

    def read_json(self, name: str) -> Any:
        """Read one JSON file.

        Raises:
            SnapshotError: As :meth:`read`, and where the content is not JSON.
        """
        return self.read_json_file(name)[1]

    def read_json_file(self, name: str, *, size: int | None = None) -> tuple[bytes, Any]:
        """The bytes of a JSON file, and what they say.

        Raises:
            SnapshotError: As :meth:`read`, and where the content is not JSON.
        """
        data = self.read(name, size=size, limit=_MAX_JSON_BYTES)
        try:
            return data, json.loads(data, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise SnapshotError(
                f"{self / name} is not valid JSON ({type(error).__name__}: {str(error)[:200]}); "
                "restore it from a copy or harvest again."
            ) from None

    def write_json(self, name: str, document: Any, tag: str) -> None:
        """Write one JSON file as :meth:`write` does.

        Raises:
            SnapshotError: As :meth:`write`, and if it would be larger than what is read.
        """
        self.write_json_file(name, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode(), tag)

    def write_json_file(self, name: str, data: bytes, tag: str) -> None:
        """As :meth:`write_json`, of JSON that is written already."""
        if len(data) > _MAX_JSON_BYTES:
            raise SnapshotError(
                f"{self / name} would have {len(data)} bytes, more than the {_MAX_JSON_BYTES} that are read, and is "
                "not written. Keep fewer snapshots (keep_last, keep_bytes), or go on in another folder."
            )
        self.write(name, [data], tag)

    def _check_size(self, name: str, found: int, size: int | None, limit: int | None) -> None:
        if size is not None and found != size:
            raise SnapshotError(
                f"{self / name} has {found} bytes where the manifest says {size}: it was truncated or changed. "
                "Restore it from a copy, or take its entry out of the harvest by harvesting again."
            )
        if limit is not None and found > limit:
            raise SnapshotError(f"{self / name} has {found} bytes, more than the {limit} that are read.")
