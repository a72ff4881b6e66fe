"""A folder behind an fsspec URL: object stores and the like, as far as their guarantees go.

There is no fsync and no kernel lock here. An object appears whole when its upload is done (that is the store's
promise, not ours), the manifest comes last, and a lock object tells other runs to keep out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from typing_extensions import override

from lightning_ckptkd.errors import SnapshotError
from lightning_ckptkd.rank_zero import rank_zero_warn
from lightning_ckptkd.snapshots.folders.base import Folder, Part
from lightning_ckptkd.snapshots.folders.objects import Objects
from lightning_ckptkd.snapshots.folders.remote_lock import LOCK_NAME, RemoteLock


class RemoteFolder(Folder):
    """A folder of an fsspec file system.

    Args:
        url: Such as ``s3://bucket/run/snapshots``, with the scheme's package (``s3fs``) installed.

    Raises:
        SnapshotError: If there is no file system for the URL.
    """

    lock_can_be_lost = True

    def __init__(self, url: str) -> None:
        super().__init__(url)
        try:
            self._objects = Objects(url)
        except Exception as error:  # each file system's library has errors of its own
            raise SnapshotError(f"{url}: {error}. Install what the scheme needs, or choose another folder.") from error
        self._lock = RemoteLock(self._objects, url)

    @override
    def make(self) -> None:
        with self._explained(" can't be made"):
            self._objects.make_folder()

    @override
    def exists(self, name: str) -> bool:
        with self._explained(f"/{name} can't be looked at"):
            return self._objects.exists(name)

    @override
    @contextlib.contextmanager
    def lock(self, run_id: str) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            with self._explained(" can't be locked"):
                held.enter_context(self._lock.hold(run_id))
            if not self._objects.conditional:
                rank_zero_warn(
                    f"{self}: its store has no conditional put, so of two runs that start here within a moment one may "
                    "be refused only when it writes its first snapshot. Give each run a folder of its own."
                )
            yield

    @override
    def check_lock(self) -> None:
        with self._explained(f"/{LOCK_NAME} can't be read"):
            self._lock.check()

    @override
    def bounded(self) -> contextlib.AbstractContextManager[None]:
        return self._objects.bounded()

    @override
    def write(self, name: str, parts: Sequence[Part], tag: str) -> None:
        needed = sum(len(part) for part in parts)
        with self._explained(f"/{name} could not be written ({needed} bytes)"):
            # In one piece: a file that is open for writing may be committed as it is when an error ends the block.
            self._objects.put(name, b"".join(parts))
            found = self._objects.size(name)
            if found != needed:
                raise OSError(f"{found} bytes arrived")

    @override
    def remove(self, name: str) -> None:
        with contextlib.suppress(Exception):
            self._objects.remove(name)

    @override
    def clean(self, tag: str, is_leftover: Callable[[str], bool]) -> None:
        try:
            names = self._objects.names()
        except Exception:  # of whatever the file system's library is made; leftovers can wait
            return
        for name in filter(is_leftover, names):
            self.remove(name)

    @override
    def _read(self, name: str, size: int | None, limit: int | None) -> bytes:
        most = limit if size is None else size
        with self._explained(f"/{name} can't be read"):
            try:
                data = self._objects.get(name, most)
            except FileNotFoundError:
                raise SnapshotError(f"{self / name} is missing; restore it from a copy or harvest again.") from None
            found = len(data)
            if most is not None and found > most:  # it was not read to its end
                found = max(found, self._objects.size(name))
            self._check_size(name, found, size, limit)
            return data

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except SnapshotError:
            raise
        except Exception as error:  # each file system's library has errors of its own
            raise SnapshotError(
                f"{self}{what}: {type(error).__name__}: {error}. Check the address, the credentials and the quota."
            ) from error
