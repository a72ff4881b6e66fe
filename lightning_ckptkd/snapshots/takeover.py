"""Making a harvest of Lightning ``.ckpt`` files that a user already has."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from lightning_ckptkd.errors import ArgumentError, SnapshotError
from lightning_ckptkd.snapshots.checkpoint_file import check_size, explained, plain_dict, read_checkpoint
from lightning_ckptkd.snapshots.fields import is_text, json_safe, shown
from lightning_ckptkd.snapshots.layout import plan_layout
from lightning_ckptkd.snapshots.store import SnapshotStore
from lightning_ckptkd.snapshots.weights import select_weights

_REMEDY = "move it out of the folder"


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
            if checkpoint["global_step"] in seen:
                continue
            seen.add(checkpoint["global_step"])
            with explained(path, "taken over", _REMEDY):
                weights = select_weights(checkpoint["state_dict"], submodule)
                check_size(plan_layout(weights).data_bytes, path, _REMEDY)
                entry = {
                    "epoch": checkpoint["epoch"],
                    "global_step": checkpoint["global_step"],
                    "metrics": _monitored(checkpoint),
                }
                if store is None:
                    store = SnapshotStore.create(snapshots, run_id, _describe(checkpoint, source, submodule))
                    held.enter_context(store)
                store.commit(weights, **entry)
    assert store is not None
    return store


def _read_checkpoint(path: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(path, _REMEDY)
    for key in ("epoch", "global_step"):
        value = checkpoint.get(key)
        if type(value) is not int or not 0 <= value < 2**63:
            raise SnapshotError(f"{path} is not a Lightning checkpoint: its {key!r} is {shown(value)}. Move it out.")
    return checkpoint


def _describe(checkpoint: Mapping[str, Any], source: Path, submodule: str | None) -> dict[str, Any]:
    hyper_parameters = plain_dict(checkpoint.get("hyper_parameters"))
    class_path = hyper_parameters.get("_class_path")
    return {
        "class_path": class_path if isinstance(class_path, str) else None,
        "hyper_parameters": json_safe(hyper_parameters),
        "submodule": submodule,
        "checkpoints": str(source),
        "written_by_lightning": json_safe(checkpoint.get("pytorch-lightning_version")),
    }


def _monitored(checkpoint: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics that ModelCheckpoint callbacks monitored when they saved the checkpoint."""
    metrics: dict[str, float | None] = {}
    for found in plain_dict(checkpoint.get("callbacks")).values():
        state = plain_dict(found)
        monitor, score = state.get("monitor"), state.get("current_score")
        if isinstance(monitor, str) and is_text(monitor) and isinstance(score, (int, float, Tensor)):
            with contextlib.suppress(ValueError, OverflowError, RuntimeError):  # a score that is no number
                value = float(score)
                metrics[monitor] = value if math.isfinite(value) else None
    return metrics
