"""A folder on a local or network file system, by POSIX calls whose order survives a crash.

Every call that touches the disk goes through ``os`` in this file: that is where the tests inject faults.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from typing_extensions import override

from lightning_ckptkd.errors import SnapshotError
from lightning_ckptkd.snapshots.folders.base import Folder, Part
from lightning_ckptkd.snapshots.folders.lock import locked

_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-[0-9a-f]{8}\.tmp")


class LocalFolder(Folder):
    """A folder that this machine's file system shows.

    Args:
        path: The folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path

    @override
    def make(self) -> None:
        missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
        try:
            for path in reversed(missing):
                with contextlib.suppress(FileExistsError):  # another process may make it too
                    os.mkdir(path)
                _sync(path.parent)
            if not self.path.is_dir():
                raise NotADirectoryError(0, "it is a file")
        except OSError as error:
            raise SnapshotError(f"The folder {self} can't be made: {error.strerror}. Choose another.") from error

    @override
    def exists(self, name: str) -> bool:
        try:
            os.lstat(self.path / name)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise SnapshotError(
                f"{self / name} can't be looked at: {error.strerror}. Make the folder readable for this user."
            ) from error
        return True

    @override
    def lock(self, run_id: str) -> contextlib.AbstractContextManager[None]:
        return locked(self.path, run_id)

    @override
    def write(self, name: str, parts: Sequence[Part], tag: str) -> None:
        # A new file of an unguessable name: nobody's link is written through.
        temporary = self.path / f".{name}.{tag}-{secrets.token_hex(4)}.tmp"
        try:
            try:
                descriptor = os.open(
                    temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666
                )
                try:
                    for part in parts:
                        _write_all(descriptor, part)
                    os.fsync(descriptor)
                    with contextlib.suppress(OSError):  # keep the training data in the cache rather than this
                        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)
                os.replace(temporary, self.path / name)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
            _sync(self.path)
        except OSError as error:
            needed = sum(len(part) for part in parts)
            raise SnapshotError(
                f"{self / name} could not be written: {error.strerror or error}. It needs {needed} bytes, "
                f"{self._free_bytes()} are free there. Make room, or choose another folder. What was committed before "
                "is untouched."
            ) from error

    @override
    def remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self.path / name)

    @override
    def clean(self, tag: str, is_leftover: Callable[[str], bool]) -> None:
        try:
            names = os.listdir(self.path)
        except OSError:
            return
        for name in names:
            temporary = _TEMPORARY.fullmatch(name)
            if (temporary is not None and temporary[1] == tag) or is_leftover(name):
                self.remove(name)

    @override
    def _read(self, name: str, size: int | None, limit: int | None) -> bytes:
        path = self.path / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise SnapshotError(f"{path} is missing; restore it from a copy or harvest again.") from None
        except OSError as error:
            link = " (it is a link; links are never followed)" if path.is_symlink() else ""
            raise SnapshotError(f"{path} can't be opened{link}: {error.strerror}.") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SnapshotError(f"{path} is not a regular file; restore it from a copy.")
            self._check_size(name, status.st_size, size, limit)
            return _read_all(descriptor, status.st_size)
        except (OSError, MemoryError) as error:
            reason = error.strerror if isinstance(error, OSError) else "memory is too small for it"
            raise SnapshotError(f"{path} can't be read: {reason}. Restore it from a copy.") from error
        finally:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _free_bytes(self) -> int | str:
        try:
            status = os.statvfs(self.path)
        except OSError:
            return "an unknown number"
        return status.f_bavail * status.f_frsize


def _write_all(descriptor: int, part: Part) -> None:
    rest = memoryview(part)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _read_all(descriptor: int, size: int) -> bytes:
    """At most ``size`` bytes: a file that grows meanwhile is not followed."""
    pieces: list[bytes] = []
    while size > 0 and (piece := os.read(descriptor, size)):
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
