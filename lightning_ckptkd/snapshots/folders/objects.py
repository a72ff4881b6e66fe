"""An fsspec file system as a harvest uses it: whole objects, the store's own answers, and a bound on each wait."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import time
from collections.abc import Iterator
from typing import Any

import fsspec
import fsspec.asyn

#: Seconds that a store may keep one piece of work, such as a snapshot, waiting without moving bytes.
PATIENCE_SECONDS = 30.0
#: What every store is thought to move, in bytes a second: a piece of work gets the time for its bytes on top.
SLOWEST_BYTES_PER_SECOND = 2**20
_AFTER_A_FAILURE = 0.1  # of the patience, until the store answers again

_CONDITIONAL = {"s3", "s3a"}  # whose library passes the condition on to the server, as was tried
_BUCKETLESS = {"memory"}  # where the first folder of a path is like any other


class Objects:
    """Objects of one folder of an fsspec file system, by their plain names.

    Nothing is answered from a listing that was cached before. Where the file system is asynchronous (``s3``, ``gs``,
    ``abfs``), a call that takes too long is given up with a ``TimeoutError``; others can't be interrupted.

    Args:
        url: Such as ``s3://bucket/run/snapshots``.
    """

    def __init__(self, url: str) -> None:
        self._files, self.root = fsspec.core.url_to_fs(url)
        protocol = self._files.protocol
        self._protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        call = self._files._pipe_file if self._is_asynchronous else self._files.pipe_file
        #: Whether the store itself refuses to put an object where there is one.
        self.conditional = bool(self._protocols & _CONDITIONAL) and "mode" in inspect.signature(call).parameters
        self._patient = True
        self._started: float | None = None
        self._moved = 0

    @property
    def bucket(self) -> str:
        """The first part of the path: the bucket, or the top folder."""
        root = str(self.root)
        return root[: len(root) - len(root.lstrip("/"))] + root.lstrip("/").split("/")[0]

    @contextlib.contextmanager
    def bounded(self) -> Iterator[None]:
        """Give all calls within the block one bound together."""
        self._started, self._moved = time.monotonic(), 0
        try:
            yield
        finally:
            self._started = None

    def get(self, name: str, limit: int | None = None) -> bytes:
        """An object as it was at one moment; of a larger one than ``limit`` the first ``limit`` + 1 bytes.

        One request for one range: a whole object may be asked for in pieces that belong to different versions of it.

        Raises:
            FileNotFoundError: If there is none.
        """
        end = None if limit is None else limit + 1
        try:
            return bytes(self._call("cat_file", self._path(name), start=0, end=end, volume=limit or 0))
        except OSError as error:
            if error.errno == errno.EINVAL and self.size(name) == 0:  # S3: no range of an empty object is valid
                return b""
            raise

    def put(self, name: str, data: bytes) -> None:
        """Put an object, in place of what was there, by one request (or one upload in parts that ends by one)."""
        self._call("pipe_file", self._path(name), data, volume=len(data))

    def create(self, name: str, data: bytes) -> bool:
        """Put an object where there is none; whether that was so. Without :attr:`conditional` another may do the same.

        After an error it may be there all the same.
        """
        if self.conditional:
            try:
                self._call("pipe_file", self._path(name), data, mode="create", volume=len(data))
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
                self.conditional = False  # the server says that it does not know such a thing
            else:
                return True
        if self.exists(name):
            return False
        self.put(name, data)
        return True

    def size(self, name: str) -> int:
        """Bytes of an object.

        Raises:
            FileNotFoundError: If there is none.
        """
        self._files.invalidate_cache(self.root)
        return int(self._call("info", self._path(name))["size"])

    def exists(self, name: str) -> bool:
        """Whether there is an object; an error where the store does not say (fsspec's own ``exists`` says no then)."""
        try:
            self.size(name)
        except FileNotFoundError:
            return False
        return True

    def names(self) -> list[str]:
        """What the folder holds."""
        self._files.invalidate_cache(self.root)
        return [str(path).rsplit("/", 1)[-1] for path in self._call("ls", self.root, detail=False)]

    def remove(self, name: str) -> None:
        """Remove an object."""
        self._call("rm_file", self._path(name))

    def make_folder(self) -> None:
        """Make the folder, never its bucket.

        Raises:
            FileNotFoundError: If the bucket is not there.
        """
        if not self._protocols & _BUCKETLESS:
            try:
                self._files.invalidate_cache(self.bucket)
                self._call("info", self.bucket)
            except FileNotFoundError:
                raise FileNotFoundError(
                    f"there is no bucket {self.bucket!r}, and none is made; make it first"
                ) from None
            except PermissionError:  # keys that may only write can't see: the first object will tell
                return
        self._call("makedirs", self.root, exist_ok=True)

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    @property
    def _is_asynchronous(self) -> bool:
        return bool(self._files.async_impl and not self._files.asynchronous)

    def _call(self, method: str, *arguments: Any, volume: int = 0, **options: Any) -> Any:
        """Call the file system; ``volume`` is the largest number of bytes that move."""
        self._moved = self._moved + volume if self._started is not None else volume
        seconds = PATIENCE_SECONDS * (1 if self._patient else _AFTER_A_FAILURE) + self._moved / SLOWEST_BYTES_PER_SECOND
        left = seconds if self._started is None else self._started + seconds - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            if self._is_asynchronous:
                call = getattr(self._files, f"_{method}")
                found = fsspec.asyn.sync(self._files.loop, call, *arguments, timeout=left, **options)
            else:
                found = getattr(self._files, method)(*arguments, **options)
        except (FileNotFoundError, FileExistsError, PermissionError):  # it answers
            self._patient = True
            raise
        except Exception as error:
            self._patient = False
            if isinstance(error, (TimeoutError, asyncio.TimeoutError)):  # two classes before Python 3.11
                raise TimeoutError(f"the store did not answer within {seconds:.3g} s") from None
            raise
        self._patient = True
        return found
