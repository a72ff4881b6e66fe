"""Faults between the package and the disk: the one place where a part of it is replaced by something else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from lightning_ckptkd.snapshots.folders import local, lock

_CALLS = (
    "open",
    "write",
    "pwrite",
    "read",
    "pread",
    "close",
    "fsync",
    "replace",
    "unlink",
    "mkdir",
    "lstat",
    "fstat",
    "listdir",
    "statvfs",
    "ftruncate",
)


class WatchedOS:
    """The ``os`` module, with ``before(n, name)`` called ahead of the n-th call that touches the disk, from 1."""

    def __init__(self, before: Callable[[int, str], None]) -> None:
        self.calls = 0
        self._before = before

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in _CALLS:
            return real

        def watched(*args: Any, **options: Any) -> Any:
            self.calls += 1
            self._before(self.calls, name)
            return real(*args, **options)

        return watched


@contextlib.contextmanager
def watched_disk(before: Callable[[int, str], None]) -> Iterator[WatchedOS]:
    """Within the block, the package's calls to the disk are watched."""
    watched = WatchedOS(before)
    real = local.os, lock.os
    local.os = lock.os = watched  # type: ignore[assignment]
    try:
        yield watched
    finally:
        local.os, lock.os = real
