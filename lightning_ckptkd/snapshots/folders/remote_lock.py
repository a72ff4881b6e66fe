"""One writer a folder where no kernel holds the lock: an object that is put only where there is none.

The lock names the run and, by a token, the process. It has no time limit: a run that was killed leaves it behind. The
same run takes it over at once when it goes on; the process that had it, if it is still there, finds another's token
before its next change of the harvest, and makes none. Another run is refused until somebody removes the lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

from lightning_ckptkd.errors import SnapshotError
from lightning_ckptkd.snapshots.fields import shown
from lightning_ckptkd.snapshots.folders.objects import Objects

LOCK_NAME = "lock.json"
_MAX_BYTES = 4096
_TRIES = 3  # a lock may be given back between our try to put one and our look at it
_held_here: set[object] = set()  # tokens


@dataclass(frozen=True)
class _Owner:
    """What a lock says, which is not trusted."""

    run_id: object
    token: object = None
    process: object = None
    host: object = None
    since: object = None

    def __str__(self) -> str:
        return (
            f"the run {shown(self.run_id)} (process {shown(self.process)} on {shown(self.host)}, {shown(self.since)})"
        )


class RemoteLock:
    """The lock of one folder.

    Args:
        objects: The folder's objects.
        location: The folder, for messages.
    """

    def __init__(self, objects: Objects, location: str) -> None:
        self._objects, self._location = objects, location
        self._token: str | None = None

    @contextlib.contextmanager
    def hold(self, run_id: str) -> Iterator[None]:
        """Hold the lock within the block.

        Raises:
            SnapshotError: If another run holds it, or this one in this process.
        """
        own = _Owner(
            run_id=run_id,
            token=secrets.token_hex(16),
            process=os.getpid(),
            host=socket.gethostname(),
            since=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        try:
            self._take(own)
            _held_here.add(own.token)
            yield
        finally:
            _held_here.discard(own.token)
            if self._token == own.token:
                self._token = None
            with contextlib.suppress(Exception), self._objects.bounded():  # what stays is taken over by the same run
                if self._is(own):
                    self._objects.remove(LOCK_NAME)

    def check(self) -> None:
        """Check that the lock is still this process's.

        Raises:
            SnapshotError: If it is gone or another's.
        """
        owner = self._owner()
        if owner is None or owner.token != self._token:
            raise SnapshotError(
                f"{self._location} is no longer written by this process: its lock {LOCK_NAME} "
                f"{'is gone' if owner is None else f'is that of {owner}'}. Nothing was written. Choose another dirpath "
                "for one of the two."
            )

    def _take(self, own: _Owner) -> None:
        data = json.dumps(asdict(own)).encode()
        for _ in range(_TRIES):
            try:
                created = self._objects.create(LOCK_NAME, data)
            except (FileNotFoundError, PermissionError):
                raise
            except Exception:  # a store may say "conflict" where two come at once, or not be heard
                if self._owner() is None:
                    raise
                created = False
            owner = own if created else self._owner()
            if owner is None:
                continue
            if owner.run_id != own.run_id:
                remedy = f"if that run is dead, remove {self._location.rstrip('/')}/{LOCK_NAME}"
                raise SnapshotError(self._refusal(str(owner), own, remedy))
            if owner.token in _held_here:
                raise SnapshotError(
                    self._refusal("another CheckpointHarvester or Trainer of this process", own, "wait until it ends")
                )
            if owner.token != own.token:
                self._objects.put(LOCK_NAME, data)
            self._token = str(own.token)
            if created and self._objects.create(LOCK_NAME, data):  # the store did not mind that there is one
                self._objects.conditional = False
            self.check()  # of two that put one, the last has it
            return
        raise SnapshotError(self._refusal("several runs by turns", own, "wait until they have ended"))

    def _is(self, own: _Owner) -> bool:
        owner = self._owner()
        return owner is not None and owner.token == own.token

    def _owner(self) -> _Owner | None:
        """Who holds the lock, or None where there is none; of a lock that can't be read nothing is known."""
        try:
            data = self._objects.get(LOCK_NAME, _MAX_BYTES)
        except FileNotFoundError:
            return None
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            document = None
        known = document if isinstance(document, dict) else {}
        return _Owner(*(known.get(name) for name in _Owner.__dataclass_fields__))

    def _refusal(self, owner: str, own: _Owner, remedy: str) -> str:
        return (
            f"{self._location} is being written by {owner}; this run is {own.run_id!r}. Nothing was written. "
            f"Choose another dirpath, or {remedy}."
        )
