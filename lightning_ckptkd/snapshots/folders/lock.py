"""One writer a folder: a lock that the kernel holds, so that a killed writer leaves none behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from lightning_ckptkd.errors import SnapshotError
from lightning_ckptkd.rank_zero import rank_zero_warn

LOCK_NAME = ".lock"
_held_here: set[str] = set()  # POSIX locks do not keep two writers of one process apart
_MAX_OWNER_BYTES = 4096


@contextlib.contextmanager
def locked(folder: Path, run_id: str) -> Iterator[None]:
    """Hold the folder's lock.

    A POSIX record lock: unlike flock it is not inherited by data loader processes that outlive a killed trainer, and
    it works over NFS. The file stays, since removing it would let two writers in.

    Raises:
        SnapshotError: If it is held by another process, or by this one.
    """
    key = os.path.realpath(folder)
    if key in _held_here:
        raise SnapshotError(_refusal(folder, run_id, "another CheckpointHarvester or Trainer of this process"))
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise SnapshotError(f"{folder / LOCK_NAME} can't be opened for writing: {error.strerror}.") from error
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise SnapshotError(_refusal(folder, run_id, _owner(descriptor))) from None
            rank_zero_warn(
                f"{folder}: its file system has no locks ({error.strerror}), so a second run that starts in the same "
                "folder is noticed only once the first has written a snapshot."
            )
        _held_here.add(key)
        try:
            _sign(descriptor, run_id)
            yield
        finally:
            _held_here.discard(key)
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _sign(descriptor: int, run_id: str) -> None:
    owner = json.dumps({"run_id": run_id, "process": os.getpid(), "host": socket.gethostname()})
    with contextlib.suppress(OSError):  # on a full disk the lock holds without its owner's name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, owner.encode(), 0)


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, _MAX_OWNER_BYTES, 0))
        return f"the run {owner['run_id']!r} (process {owner['process']!r} on {owner['host']!r})"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "another run"


def _refusal(folder: Path, run_id: str, owner: str) -> str:
    return (
        f"{folder} is being written by {owner}; this run is {run_id!r}. Nothing was written. Choose another dirpath, "
        "or wait until that one has ended."
    )
