"""The store: a folder of snapshots that commits new ones and hands out verified ones."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import Self

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError, SnapshotError
from lightning_ckptkd.snapshots.fields import shown
from lightning_ckptkd.snapshots.folders import Folder, Part, open_folder
from lightning_ckptkd.snapshots.host_copy import HostCopy
from lightning_ckptkd.snapshots.layout import plan_layout, read_tensors
from lightning_ckptkd.snapshots.manifest import MANIFEST_NAME, Manifest, Snapshot, SoupSnapshot
from lightning_ckptkd.snapshots.metrics_file import FiledMetrics, find_large, write_metrics
from lightning_ckptkd.snapshots.retention import Retention

_SNAPSHOT_NAME = re.compile(r"(?:epoch=\d+-step=\d+|soup)-([0-9a-f]{8})-[0-9a-f]{8}\.(safetensors|metrics\.json)")


class SnapshotStore:
    """A harvest's folder.

    A snapshot exists when, and only when, the manifest names it. Weights are written before the manifest; what
    is read is checked against the manifest's size and SHA-256 before a tensor is made of it.

    Use :meth:`open` to read a harvest and :meth:`create` to write one. A store that writes holds the folder's lock
    until :meth:`close`, or the end of a ``with`` block.
    """

    def __init__(self, folder: Folder, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._held: contextlib.ExitStack | None = None  # the lock, where the store may write

    @classmethod
    def open(cls, folder: str | Path | Folder) -> Self:
        """Open a harvest to read it.

        Args:
            folder: The harvest's folder, with its manifest: a path or an fsspec URL.

        Raises:
            SnapshotError: If there is no readable manifest, or no snapshot in it.
        """
        check_types(SnapshotStore.open, locals())
        folder = open_folder(folder)
        if not folder.exists(MANIFEST_NAME):
            raise SnapshotError(
                f"{folder} has no {MANIFEST_NAME}, so there are no snapshots. Give the folder that "
                "CheckpointHarvester wrote (its dirpath), or make one from .ckpt files with `ckptkd harvest`."
            )
        store = cls(folder, Manifest.read(folder))
        if not store.snapshots:
            raise SnapshotError(f"{folder / MANIFEST_NAME} names no snapshots; harvest again.")
        return store

    @classmethod
    def create(
        cls, folder: str | Path | Folder, run_id: str, source: Mapping[str, Any], *, holder: str | None = None
    ) -> Self:
        """Open ``folder`` to write the harvest of one run, making it where it does not exist.

        Takes the folder's lock, and cleans what a killed writer of the same run left. The manifest is written with
        the first snapshot.

        Args:
            folder: Where the snapshots go: a path or an fsspec URL.
            run_id: The run that writes. A folder that already holds this run's snapshots is continued.
            source: What is harvested, as plain JSON.
            holder: Whose the lock is. None: the run's, which takes over the lock that it finds of itself on an object
                store; who else writes must not do that.

        Raises:
            SnapshotError: If the folder holds the harvest of another run, is being written, or can't be written.
        """
        check_types(SnapshotStore.create, locals())
        folder = open_folder(folder)
        _read_own_manifest(folder, run_id)  # another run's folder is not even locked
        folder.make()
        with contextlib.ExitStack() as held:
            held.enter_context(folder.lock(run_id if holder is None else holder))
            manifest = _read_own_manifest(folder, run_id)
            if manifest is None:
                created = datetime.now(timezone.utc).isoformat(timespec="seconds")
                manifest = Manifest(run_id, created, dict(source), package_versions())
            store = cls(folder, manifest)
            folder.clean(manifest.tag, store._is_leftover)
            store._held = held.pop_all()
        return store

    def close(self) -> None:
        """Give the lock back; nothing can be written afterwards."""
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """The snapshots in the order of training."""
        return self.manifest.snapshots

    @property
    def soups(self) -> tuple[SoupSnapshot, ...]:
        """Means of snapshots, in the order in which they were made."""
        return self.manifest.soups

    def find(self, global_step: int) -> Snapshot | None:
        """The snapshot at a step, or None."""
        return next((snapshot for snapshot in self.snapshots if snapshot.global_step == global_step), None)

    def commit(
        self,
        weights: Mapping[str, Tensor] | HostCopy,
        *,
        epoch: int,
        global_step: int,
        learning_rate: float | None = None,
        metrics: Mapping[str, float | None] | None = None,
        after: int | None = None,
        retention: Retention | None = None,
        sha256: str | None = None,
    ) -> Snapshot:
        """Add one snapshot.

        A resumed run may come to steps that it had harvested before it was interrupted. At the same step, equal
        weights are kept as they are and other weights take the old ones' place. Old files go after the new one is in
        the manifest.

        Args:
            weights: Name to tensor, or a copy that is already in host memory.
            epoch: Lightning's ``current_epoch``.
            global_step: Lightning's ``global_step``.
            learning_rate: Rate of the first parameter group.
            metrics: What was logged so far in this epoch.
            after: Where this run was before; snapshots between there and ``global_step`` belong to a branch that a
                resumed run has left, and go. None keeps them.
            retention: Which snapshots to keep of those up to ``global_step``; None keeps all.
            sha256: What the file must hash to, if that is known.

        Raises:
            ArgumentError: If a tensor can't be stored, or the store was opened to read.
            SnapshotError: If a file can't be written, the hash is another, or another process took the folder over;
                the snapshots are then as before.
        """
        self._check_writable()
        self.folder.check_lock()
        if not isinstance(weights, HostCopy):
            copy = HostCopy()
            copy.reserve(plan_layout(weights))
            copy.fill(weights)
            weights = copy
        parts, found = weights.parts(), weights.sha256()
        if sha256 not in (None, found):
            raise SnapshotError(
                f"The weights at step {global_step} hash to {found[:16]}… instead of {sha256}: they are not those of "
                "the snapshot, which was not written."
            )
        name = f"epoch={epoch}-step={global_step}-{self.manifest.tag}-{found[:8]}.safetensors"
        size = sum(len(part) for part in parts)
        snapshot = Snapshot(epoch, global_step, name, found, size, learning_rate, dict(metrics or {}))
        old = self.find(global_step)
        if old is not None and old.sha256 == found:
            snapshot = old
        if snapshot != old or not self._is_intact(snapshot):
            self.folder.write(snapshot.file, parts, self.manifest.tag)
        start = global_step - 1 if after is None else min(after, global_step - 1)  # this step is never kept twice
        before = [other for other in self.snapshots if other.global_step <= start]
        beyond = [other for other in self.snapshots if other.global_step > global_step]
        self._replace([*(retention or Retention()).kept([*before, snapshot]), *beyond])
        return snapshot

    def add_soup(self, soup: SoupSnapshot, parts: Sequence[Part]) -> None:
        """Add a soup, whose file is made of these parts; see :func:`.commit_soup`.

        Raises:
            ArgumentError: If the store was opened to read.
            SnapshotError: As :meth:`commit` raises it.
        """
        self._check_writable()
        self.folder.check_lock()
        self.folder.write(soup.file, list(parts), self.manifest.tag)
        self._replace(list(self.snapshots), [*(other for other in self.soups if other.file != soup.file), soup])

    def forget_after(self, global_step: int) -> None:
        """Drop the snapshots beyond a step: what is left of the branch that a resumed run has left."""
        kept = [snapshot for snapshot in self.snapshots if snapshot.global_step <= global_step]
        if len(kept) < len(self.snapshots):
            self._replace(kept)

    def set_metrics(self, global_step: int, metrics: Mapping[str, float | None]) -> None:
        """Add to the metrics of the snapshot at ``global_step``, which are known only after it was taken."""
        changed = [
            replace(snapshot, metrics={**snapshot.metrics, **metrics})
            if snapshot.global_step == global_step
            else snapshot
            for snapshot in self.snapshots
        ]
        if tuple(changed) != self.snapshots:
            self._replace(changed)

    def load(self, snapshot: Snapshot) -> dict[str, Tensor]:
        """The weights of one snapshot, on the CPU, verified; tied tensors are one and the same again.

        Raises:
            SnapshotError: If the file is missing, a link, of another size or hash, or no safetensors file.
        """
        data = self._read_verified(snapshot)
        try:
            return read_tensors(data)
        except Exception as error:  # the library's error type is not part of its interface
            raise SnapshotError(f"{self.folder / snapshot.file} is not a safetensors file: {error}.") from error

    def verify(self, snapshot: Snapshot) -> None:
        """Check that a snapshot's file is whole, without making tensors of it.

        Raises:
            SnapshotError: If the file is missing or damaged.
        """
        self._read_verified(snapshot)

    def _read_verified(self, snapshot: Snapshot) -> bytes:
        data = self.folder.read(snapshot.file, size=snapshot.size)
        path = self.folder / snapshot.file
        if hashlib.sha256(data).hexdigest() != snapshot.sha256:  # before a tensor is made
            raise SnapshotError(
                f"{path} does not have the SHA-256 that the manifest says: its content was changed. "
                "Restore it from a copy or harvest again; it is not used."
            )
        return data

    def _is_intact(self, snapshot: Snapshot) -> bool:
        try:
            self.verify(snapshot)
        except SnapshotError:
            return False
        return True

    def _replace(self, snapshots: list[Snapshot], soups: Sequence[SoupSnapshot] | None = None) -> None:
        """Make these the harvest's snapshots, and its soups where they change; unnamed files go last."""
        self._check_writable()
        self._check_own()
        before = self.manifest.files
        manifest = replace(
            self.manifest, snapshots=tuple(snapshots), soups=self.soups if soups is None else tuple(soups)
        )
        try:
            manifest = replace(manifest, snapshots=tuple(self._file_metrics(snapshots)))
            manifest.write(self.folder)
        except SnapshotError:
            with contextlib.suppress(SnapshotError):  # the rename may have come through all the same: look
                self.manifest = _read_own_manifest(self.folder, self.manifest.run_id) or self.manifest
                for name in manifest.files - self.manifest.files:
                    self.folder.remove(name)
            raise
        self.manifest = manifest
        for name in before - manifest.files:
            self.folder.remove(name)

    def _file_metrics(self, snapshots: list[Snapshot]) -> list[Snapshot]:
        """The same snapshots, metrics that would swell the manifest being in files of their own."""
        filed = list(snapshots)
        written: list[FiledMetrics] = []
        try:
            for place in find_large([snapshot.metrics for snapshot in snapshots]):
                snapshot = snapshots[place]
                stem = f"epoch={snapshot.epoch}-step={snapshot.global_step}-{self.manifest.tag}"
                written.append(write_metrics(self.folder, snapshot.metrics, stem, self.manifest.tag))
                filed[place] = replace(snapshot, metrics=written[-1])
        except SnapshotError:
            for metrics in written:
                self.folder.remove(metrics.file)
            raise
        return filed

    def _check_writable(self) -> None:
        if self._held is None:
            raise ArgumentError(
                f"{self.folder} was opened to read, or is closed: use SnapshotStore.create, which takes the lock."
            )

    def _check_own(self) -> None:
        """Check that the folder is still this process's to write, where its lock does not make sure of that."""
        if self.folder.lock_can_be_lost:
            self.folder.check_lock()
            _read_own_manifest(self.folder, self.manifest.run_id)

    def _is_leftover(self, name: str) -> bool:
        """Whether a file is a snapshot that this run wrote but did not commit, or dropped but did not remove."""
        match = _SNAPSHOT_NAME.fullmatch(name)
        return match is not None and match[1] == self.manifest.tag and name not in self.manifest.files


def _read_own_manifest(folder: Folder, run_id: str) -> Manifest | None:
    if not folder.exists(MANIFEST_NAME):
        return None
    manifest = Manifest.read(folder)
    if manifest.run_id != run_id:
        raise SnapshotError(
            f"{folder} already holds {len(manifest.snapshots)} snapshots of another run ({shown(manifest.run_id)}); "
            f"this run is {run_id!r}. Nothing was written. Choose another dirpath, or resume that run with ckpt_path."
        )
    return manifest


def package_versions() -> dict[str, str]:
    """Versions of the packages that a harvest and its scores depend on."""
    names = ("lightning-ckptkd", "lightning", "torch", "torchvision", "torchmetrics", "safetensors")
    return {name: importlib.metadata.version(name) for name in names}
