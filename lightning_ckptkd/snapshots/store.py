"""The store: a folder of snapshots that commits new ones and hands out verified ones."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from lightning_ckptkd.errors import SnapshotError
from lightning_ckptkd.snapshots.files import read_bytes, write_bytes
from lightning_ckptkd.snapshots.manifest import MANIFEST_NAME, Manifest, Snapshot


class SnapshotStore:
    """A harvest's folder.

    A snapshot exists when, and only when, the manifest names it. Weights are written before the manifest; what
    is read is checked against the manifest's size and SHA-256 before a tensor is made of it.

    Use :meth:`open` to read a harvest and :meth:`create` to write one.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, folder: str | Path) -> SnapshotStore:
        """Open a harvest.

        Args:
            folder: The harvest's folder, with its manifest.

        Raises:
            SnapshotError: If there is no readable manifest, or no snapshot in it.
        """
        folder = Path(folder).expanduser()
        if not (folder / MANIFEST_NAME).exists():
            raise SnapshotError(
                f"{folder} has no {MANIFEST_NAME}, so there are no snapshots. Give the folder that "
                "CheckpointHarvester wrote (its dirpath), or make one from .ckpt files with `ckptkd harvest`."
            )
        store = cls(folder, Manifest.read(folder))
        if not store.snapshots:
            raise SnapshotError(f"{folder / MANIFEST_NAME} names no snapshots; harvest again.")
        return store

    @classmethod
    def create(cls, folder: str | Path, run_id: str, source: Mapping[str, Any]) -> SnapshotStore:
        """Open ``folder`` for the run ``run_id``, making it where it does not exist.

        The manifest is written with the first snapshot.

        Args:
            folder: Where the snapshots go.
            run_id: The run that writes. A folder that already holds this run's snapshots is continued.
            source: What is harvested, as plain JSON.

        Raises:
            SnapshotError: If the folder holds the harvest of another run, or can't be written.
        """
        folder = Path(folder).expanduser()
        if (folder / MANIFEST_NAME).exists():
            store = cls(folder, Manifest.read(folder))
            if store.manifest.run_id != run_id:
                raise SnapshotError(
                    f"{folder} already holds {len(store.manifest.snapshots)} snapshots of another run "
                    f"({store.manifest.run_id}); this run is {run_id}. Nothing was written. Choose another dirpath, "
                    "or resume that run with ckpt_path."
                )
            return store
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SnapshotError(f"The folder {folder} can't be made: {error.strerror}. Choose another.") from error
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(folder, Manifest(run_id, created, dict(source), _package_versions()))

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """The snapshots in the order of training."""
        return self.manifest.snapshots

    def commit(
        self,
        weights: Mapping[str, Tensor],
        *,
        epoch: int,
        global_step: int,
        learning_rate: float | None = None,
        metrics: Mapping[str, float | None] | None = None,
        after: int | None = None,
    ) -> Snapshot:
        """Add one snapshot.

        A resumed run may come to steps that it had harvested before it was interrupted. At the same step, equal
        weights are kept as they are and other weights take the old ones' place. Old files go after the new one is in
        the manifest.

        Args:
            weights: Name to contiguous CPU tensor, no storage shared between them.
            epoch: Lightning's ``current_epoch``.
            global_step: Lightning's ``global_step``.
            learning_rate: Rate of the first parameter group.
            metrics: What was logged so far in this epoch.
            after: Where this run was before; snapshots between there and ``global_step`` belong to a branch that a
                resumed run has left, and go. None keeps them.

        Raises:
            SnapshotError: If a file can't be written; the manifest and all snapshots are then as before.
        """
        data = safetensors.torch.save(dict(weights))
        sha256 = hashlib.sha256(data).hexdigest()
        name = f"epoch={epoch}-step={global_step}-{sha256[:8]}.safetensors"
        snapshot = Snapshot(epoch, global_step, name, sha256, len(data), learning_rate, dict(metrics or {}))
        same = [old for old in self.snapshots if old.global_step == global_step and old.sha256 == sha256]
        if same:
            snapshot = same[0]
        else:
            write_bytes(self.folder, name, data)
        start = global_step - 1 if after is None else min(after, global_step - 1)  # this step is never kept twice
        self._replace([old for old in self.snapshots if not start < old.global_step <= global_step] + [snapshot])
        return snapshot

    def forget_after(self, global_step: int) -> None:
        """Drop the snapshots beyond a step: what is left of the branch that a resumed run has left."""
        kept = [snapshot for snapshot in self.snapshots if snapshot.global_step <= global_step]
        if len(kept) < len(self.snapshots):
            self._replace(kept)

    def set_metrics(self, global_step: int, metrics: Mapping[str, float | None]) -> None:
        """Record the metrics of the snapshot at ``global_step``, which are known only after it was taken."""
        changed = [
            replace(snapshot, metrics=dict(metrics)) if snapshot.global_step == global_step else snapshot
            for snapshot in self.snapshots
        ]
        if tuple(changed) != self.snapshots:
            self._replace(changed)

    def load(self, snapshot: Snapshot) -> dict[str, Tensor]:
        """The weights of one snapshot, on the CPU, verified.

        Raises:
            SnapshotError: If the file is missing, a link, of another size or hash, or no safetensors file.
        """
        data = read_bytes(self.folder, snapshot.file, size=snapshot.size)
        path = self.folder / snapshot.file
        if hashlib.sha256(data).hexdigest() != snapshot.sha256:
            raise SnapshotError(
                f"{path} does not have the SHA-256 that the manifest says: its content was changed. "
                "Restore it from a copy or harvest again; it is not used."
            )
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load(data)
        except Exception as error:  # the library's error type is not part of its interface
            raise SnapshotError(f"{path} is not a safetensors file: {error}.") from error
        return tensors

    def _replace(self, snapshots: list[Snapshot]) -> None:
        """Make these the harvest's snapshots; files that are no longer named go last."""
        before = {snapshot.file for snapshot in self.snapshots}
        ordered = tuple(sorted(snapshots, key=lambda snapshot: snapshot.global_step))
        manifest = replace(self.manifest, snapshots=ordered)
        manifest.write(self.folder)
        self.manifest = manifest
        for name in before - {snapshot.file for snapshot in ordered}:
            (self.folder / name).unlink(missing_ok=True)


def _package_versions() -> dict[str, str]:
    names = ("lightning-ckptkd", "lightning", "torch", "torchvision", "torchmetrics", "safetensors")
    return {name: importlib.metadata.version(name) for name in names}
