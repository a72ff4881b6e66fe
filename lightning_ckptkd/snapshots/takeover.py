"""Making a harvest of Lightning ``.ckpt`` files that a user already has."""

from __future__ import annotations

import contextlib
import hashlib
import math
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.snapshots.checkpoint_file import CheckpointFile, open_checkpoint
from lightning_ckptkd.snapshots.fields import is_text, json_safe
from lightning_ckptkd.snapshots.inert_pickle import Items
from lightning_ckptkd.snapshots.store import SnapshotStore

_REMEDY = "move it out of the folder"


def harvest_checkpoints(
    checkpoints: str | Path, snapshots: str | Path, submodule: str | None = None, progress: bool = True
) -> SnapshotStore:
    """Take over a folder of ``.ckpt`` files (``ModelCheckpoint(save_top_k=-1)``) as a harvest.

    Only the weights are made of the checkpoints; no code of theirs runs, and they stay as they are. Links are skipped,
    and of checkpoints with the same ``global_step`` the first by name is taken. An interrupted take-over goes on
    when it is called again. The learning rate is left open: a checkpoint holds that of the epoch to come.

    Args:
        checkpoints: Folder with the ``.ckpt`` files.
        snapshots: Folder to make the harvest in.
        submodule: Attribute path of the part of the LightningModule to harvest; None harvests all of it.
        progress: Whether to show a progress bar.

    Returns:
        The harvest.

    Raises:
        ArgumentError: If there are no ``.ckpt`` files, or none of their weights belong to ``submodule``.
        SnapshotError: If a file is no Lightning checkpoint or can't be read without running code, or if
            ``snapshots`` holds another harvest.
    """
    source = Path(checkpoints).expanduser()
    paths = sorted(path for path in source.glob("*.ckpt") if path.is_file() and not path.is_symlink())
    if not paths:
        raise ArgumentError(
            f"{source} holds no .ckpt files. Give the folder in which ModelCheckpoint(save_top_k=-1) saved them "
            "(sharded checkpoints are folders: consolidate them first)."
        )
    run_id = "ckpt-" + hashlib.sha256(f"{source.resolve()}\0{submodule}".encode()).hexdigest()[:24]
    seen: set[int] = set()
    with contextlib.ExitStack() as held:
        store: SnapshotStore | None = None
        for path in tqdm(paths, desc="Harvesting checkpoints", unit="file", disable=not progress):
            with open_checkpoint(path, "taken over", _REMEDY) as checkpoint:
                epoch, step = checkpoint.natural("epoch"), checkpoint.natural("global_step")
                if step in seen:
                    continue
                seen.add(step)
                weights = checkpoint.weights(submodule)
                metrics = _monitored(checkpoint)
                if store is None:
                    store = SnapshotStore.create(snapshots, run_id, _describe(checkpoint, source, submodule))
                    held.enter_context(store)
                store.commit(weights, epoch=epoch, global_step=step, metrics=metrics)
    assert store is not None
    return store


def _describe(checkpoint: CheckpointFile, source: Path, submodule: str | None) -> dict[str, Any]:
    found = checkpoint.get("hyper_parameters")
    class_path = found.get("_class_path") if isinstance(found, Items) else None
    return {
        "class_path": json_safe(class_path) if isinstance(class_path, str) else None,
        "hyper_parameters": json_safe(found) if isinstance(found, Items) else {},
        "submodule": submodule,
        "checkpoints": str(source),
        "written_by_lightning": json_safe(checkpoint.get("pytorch-lightning_version")),
    }


def _monitored(checkpoint: CheckpointFile) -> dict[str, float | None]:
    """The metrics that ModelCheckpoint callbacks monitored when they saved the checkpoint."""
    metrics: dict[str, float | None] = {}
    callbacks = checkpoint.get("callbacks")
    for _, state in callbacks.pairs if isinstance(callbacks, Items) else ():
        if isinstance(state, Items):
            monitor, score = state.get("monitor"), checkpoint.number(state.get("current_score"))
            if isinstance(monitor, str) and is_text(monitor) and score is not None:
                metrics[monitor] = score if math.isfinite(score) else None
    return metrics
