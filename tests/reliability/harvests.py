"""The small harvests that trials write, and what must hold of them whatever happened."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from lightning_ckptkd.snapshots import Snapshot, SnapshotStore
from lightning_ckptkd.snapshots.retention import Retention

RUN_ID = "the-run"
_MEMORY = Path("/dev/shm")


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder in memory where there is one: these trials don't measure the disk."""
    return tempfile.TemporaryDirectory(prefix="ckptkd-", dir=_MEMORY if _MEMORY.is_dir() else None)


def make_weights(seed: int) -> dict[str, Tensor]:
    """Tensors of several types and of a random size, two of them tied."""
    generator = torch.Generator().manual_seed(seed)
    rows = int(torch.randint(1, 400, (1,), generator=generator))
    weight = torch.randn(rows, 8, generator=generator)
    return {
        "weight": weight,
        "tied": weight,
        "half": torch.randn(7, generator=generator).bfloat16(),
        "count": torch.tensor(seed),
    }


def commit(store: SnapshotStore, epoch: int, retention: Retention | None = None) -> Snapshot:
    """Add the snapshot of an epoch, whose weights follow from its number."""
    return store.commit(make_weights(epoch), epoch=epoch, global_step=10 * epoch + 10, retention=retention)


def check_harvest(folder: Path, committed: set[int], possible: set[int]) -> set[int]:
    """Check that all committed epochs, and none but the possible ones, are there with the right weights.

    Returns:
        The epochs that are there.
    """
    epochs: set[int] = set()
    if (folder / "manifest.json").exists() or committed:
        store = SnapshotStore.open(folder)
        for snapshot in store.snapshots:
            loaded, wanted = store.load(snapshot), make_weights(snapshot.epoch)
            assert loaded.keys() == wanted.keys()
            assert all(torch.equal(loaded[name], wanted[name]) for name in wanted), f"epoch {snapshot.epoch} is wrong"
            assert loaded["tied"] is loaded["weight"]
            assert len(dict(snapshot.metrics)) in (0, 1, 200)  # all or nothing, and what is named can be read
            epochs.add(snapshot.epoch)
    assert committed <= epochs <= possible, (committed, epochs, possible)
    return epochs


def check_clean(folder: Path) -> None:
    """Check that the folder holds what the manifest names and nothing else but the lock."""
    named = SnapshotStore.open(folder).manifest.files
    assert {path.name for path in folder.iterdir()} == {"manifest.json", ".lock", *named}


def write_epochs(folder: Path, epochs: range, retention: Retention | None = None, metrics: bool = False) -> None:
    """A writer's life: open, commit, close."""
    with SnapshotStore.create(folder, RUN_ID, {}) as store:
        for epoch in epochs:
            snapshot = commit(store, epoch, retention)
            if metrics:
                count = 200 if epoch % 2 else 1  # many have a file of their own
                store.set_metrics(snapshot.global_step, {f"loss {number}": random.random() for number in range(count)})
