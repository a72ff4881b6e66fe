"""A folder behind an fsspec URL: object stores and the like, as far as their guarantees go.

There is no fsync and no kernel lock here. An object appears whole when its upload is done (that is the store's
promise, not ours), the manifest comes last, and a lock object tells other runs to keep out.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import fsspec
from typing_extensions import override

from lightning_ckptkd.errors import SnapshotError
from lightning_ckptkd.snapshots.fields import shown
from lightning_ckptkd.snapshots.folders.base import Folder, Part

_LOCK_NAME = "lock.json"
_PIECE_BYTES = 8 * 2**20


def _pieces(parts: Sequence[Part]) -> Iterator[memoryview]:
    """The parts in pieces that an upload can pass on, so that it does not hold all of them at once."""
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), _PIECE_BYTES):
            yield view[start : start + _PIECE_BYTES]


class RemoteFolder(Folder):
    """A folder of an fsspec file system.

    Args:
        url: Such as ``s3://bucket/run/snapshots``, with the scheme's package (``s3fs``) installed.

    Raises:
        SnapshotError: If there is no file system for the URL.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except Exception as error:  # each file system's library has errors of its own
            raise SnapshotError(f"{url}: {error}. Install what the scheme needs, or choose another folder.") from error

    @override
    def make(self) -> None:
        with self._explained(" can't be made"):
            self._files.makedirs(self._root, exist_ok=True)

    @override
    def exists(self, name: str) -> bool:
        with self._explained(f"/{name} can't be looked at"):
            self._files.invalidate_cache(self._root)  # another process may have written since
            return bool(self._files.exists(self._path(name)))

    @override
    @contextlib.contextmanager
    def lock(self, run_id: str) -> Iterator[None]:
        if self.exists(_LOCK_NAME):
            holder = self._lock_holder()
            if holder != run_id:
                raise SnapshotError(
                    f"{self} is being written by the run {shown(holder)}; this run is {run_id!r}. Nothing was written. "
                    f"Choose another dirpath, or, if that run is dead, remove {self / _LOCK_NAME}."
                )
        self.write(_LOCK_NAME, [json.dumps({"run_id": run_id}).encode()], "")
        try:
            yield
        finally:
            self.remove(_LOCK_NAME)

    @override
    def write(self, name: str, parts: Sequence[Part], tag: str) -> None:
        needed = sum(len(part) for part in parts)
        with self._explained(f"/{name} could not be written ({needed} bytes)"):
            try:
                if len(parts) == 1:
                    self._files.pipe_file(self._path(name), bytes(parts[0]))
                else:
                    with self._files.open(self._path(name), "wb") as file:
                        for piece in _pieces(parts):
                            file.write(piece)
                found = self._files.info(self._path(name))["size"]
                if found != needed:
                    raise OSError(f"{found} bytes arrived")
            except BaseException:
                if len(parts) > 1:  # the manifest, in one part, is replaced whole or not at all; this may be a piece
                    self.remove(name)
                raise

    @override
    def remove(self, name: str) -> None:
        with contextlib.suppress(Exception):
            self._files.rm_file(self._path(name))

    @override
    def clean(self, tag: str, is_leftover: Callable[[str], bool]) -> None:
        try:
            self._files.invalidate_cache(self._root)
            names = [str(path).rsplit("/", 1)[-1] for path in self._files.ls(self._root, detail=False)]
        except Exception:  # of whatever the file system's library is made; leftovers can wait
            return
        for name in filter(is_leftover, names):
            self.remove(name)

    @override
    def _read(self, name: str, size: int | None, limit: int | None) -> bytes:
        with self._explained(f"/{name} can't be read"):
            try:
                self._files.invalidate_cache(self._root)
                info: dict[str, Any] = self._files.info(self._path(name))
            except FileNotFoundError:
                raise SnapshotError(f"{self / name} is missing; restore it from a copy or harvest again.") from None
            if info.get("type") != "file":
                raise SnapshotError(f"{self / name} is not a regular file; restore it from a copy.")
            self._check_size(name, int(info["size"]), size, limit)
            return bytes(self._files.cat_file(self._path(name), start=0, end=int(info["size"])))

    def _lock_holder(self) -> object:
        try:
            owner = self.read_json(_LOCK_NAME)
        except SnapshotError:  # cut off, or just given back
            return None
        return owner.get("run_id") if isinstance(owner, dict) else None

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

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
