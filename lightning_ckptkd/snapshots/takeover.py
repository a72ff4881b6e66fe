"""Making a harvest of Lightning ``.ckpt`` files that a user already has."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_ckptkd.errors import ArgumentError, SnapshotError
from lightning_ckptkd.snapshots.fields import json_safe
from lightning_ckptkd.snapshots.store import SnapshotStore
from lightning_ckptkd.snapshots.weights import select_weights


def harvest_checkpoints(
    checkpoints: str | Path, snapshots: str | Path, submodule: str | None = None, progress: bool = True
) -> SnapshotStore:
    """Take over a folder of ``.ckpt`` files (``ModelCheckpoint(save_top_k=-1)``) as a harvest.

    The checkpoints are read with ``torch.load(weights_only=True)`` and are left as they are. Links are skipped,
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
            checkpoint = _read_checkpoint(path)
            step = checkpoint["global_step"]
            if step in seen:
                continue
            seen.add(step)
            weights = select_weights(checkpoint["state_dict"], submodule)
            if store is None:
                store = SnapshotStore.create(snapshots, run_id, _describe(checkpoint, source, submodule))
                held.enter_context(store)
            store.commit(weights, epoch=checkpoint["epoch"], global_step=step, metrics=_monitored(checkpoint))
    assert store is not None
    return store


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling untrusted bytes can raise anything
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise SnapshotError(
            f"{path} can't be read with weights_only=True, and is never read otherwise ({reason[0][:200]}). "
            "Save it again with ModelCheckpoint(save_weights_only=True) or without custom objects in its "
            "hyper-parameters, or move it out of the folder."
        ) from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise SnapshotError(f"{path} is not a Lightning checkpoint: it has no 'state_dict'. Move it out of the folder.")
    for key in ("epoch", "global_step"):
        value = checkpoint.get(key)
        if not isinstance(value, int) or value < 0:
            raise SnapshotError(f"{path} is not a Lightning checkpoint: its {key!r} is {value!r}. Move it out.")
    return checkpoint


def _describe(checkpoint: Mapping[str, Any], source: Path, submodule: str | None) -> dict[str, Any]:
    hyper_parameters = checkpoint.get("hyper_parameters")
    class_path = hyper_parameters.get("_class_path") if isinstance(hyper_parameters, Mapping) else None
    return {
        "class_path": class_path if isinstance(class_path, str) else None,
        "hyper_parameters": json_safe(hyper_parameters or {}),
        "submodule": submodule,
        "checkpoints": str(source),
        "written_by_lightning": json_safe(checkpoint.get("pytorch-lightning_version")),
    }


def _monitored(checkpoint: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics that ModelCheckpoint callbacks monitored when they saved the checkpoint."""
    metrics: dict[str, float | None] = {}
    callbacks = checkpoint.get("callbacks")
    for state in callbacks.values() if isinstance(callbacks, Mapping) else ():
        if not isinstance(state, Mapping):
            continue
        monitor, score = state.get("monitor"), state.get("current_score")
        if isinstance(monitor, str) and isinstance(score, (int, float, Tensor)):
            value = float(score)
            metrics[monitor] = value if math.isfinite(value) else None
    return metrics
