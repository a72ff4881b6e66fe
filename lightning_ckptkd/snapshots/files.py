"""Reading and writing single files safely: bounded reads that follow no link, writes that are whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Any

from lightning_ckptkd.errors import SnapshotError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]{0,199}")
_MAX_JSON_BYTES = 64 * 2**20


def is_plain_name(name: str) -> bool:
    """Whether ``name`` is a single file name: no separator, no ``..``, no leading dot, portable characters."""
    return _NAME.fullmatch(name) is not None


def read_bytes(folder: Path, name: str, *, size: int | None = None, limit: int | None = None) -> bytes:
    """Read one regular file of ``folder``, following no link.

    Args:
        folder: The folder, which is trusted (it may itself be reached through a link).
        name: The file's name, which is not.
        size: The size in bytes that the file must have.
        limit: The largest size in bytes that is read.

    Raises:
        SnapshotError: If the name leaves the folder, or the file is missing, a link, not a regular file, of
            another size than ``size`` or larger than ``limit``.
    """
    if not is_plain_name(name):
        raise SnapshotError(
            f"{folder}: {name!r} is not a plain file name; names with '..', separators or links are never followed. "
            "The folder was not written by lightning_ckptkd or was tampered with: restore it from a copy."
        )
    path = folder / name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise SnapshotError(f"{path} is missing; restore it from a copy or harvest again.") from None
    except OSError as error:
        link = " (it is a link; links are never followed)" if path.is_symlink() else ""
        raise SnapshotError(f"{path} can't be opened{link}: {error.strerror}.") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise SnapshotError(f"{path} is not a regular file; restore it from a copy.")
        if size is not None and status.st_size != size:
            raise SnapshotError(
                f"{path} has {status.st_size} bytes where the manifest says {size}: it was truncated or changed. "
                "Restore it from a copy, or take its entry out of the harvest by harvesting again."
            )
        if limit is not None and status.st_size > limit:
            raise SnapshotError(f"{path} has {status.st_size} bytes, more than the {limit} that are read.")
        return file.read()


def read_json(folder: Path, name: str) -> Any:
    """Read one JSON file of ``folder``.

    Raises:
        SnapshotError: As :func:`read_bytes`, and where the content is not JSON.
    """
    data = read_bytes(folder, name, limit=_MAX_JSON_BYTES)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SnapshotError(
            f"{folder / name} is not valid JSON ({type(error).__name__}: {str(error)[:200]}); "
            "restore it from a copy or harvest again."
        ) from None


def write_bytes(folder: Path, name: str, data: bytes) -> None:
    """Write one file of ``folder`` so that a reader sees the old content or the new, never a part.

    The order is: a sibling temporary file, fsync, rename, fsync of the folder.

    Raises:
        SnapshotError: If the file system refuses; nothing that was there before is lost.
    """
    path, temporary = folder / name, folder / f".{name}.{secrets.token_hex(4)}.tmp"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise SnapshotError(
            f"{path} could not be written ({len(data)} bytes): {error.strerror}. What the folder held before is "
            "untouched; make room or choose another folder."
        ) from error


def write_json(folder: Path, name: str, document: Any) -> None:
    """Write one JSON file of ``folder`` as :func:`write_bytes` does."""
    write_bytes(folder, name, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())
