"""Making a harvest of Lightning ``.ckpt`` files that a user already has."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_ckptkd.errors import ArgumentError, CkptKDError, SnapshotError
from lightning_ckptkd.snapshots.fields import is_text, json_safe, shown
from lightning_ckptkd.snapshots.host_copy import plan_layout
from lightning_ckptkd.snapshots.store import SnapshotStore
from lightning_ckptkd.snapshots.weights import select_weights

_MAX_GROWTH = 4  # a checkpoint holds at least the weights; a compressed or tied one may hold less


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
            with _explained(path):
                weights = select_weights(checkpoint["state_dict"], submodule)
                _check_size(weights, path)
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


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What was unpickled is as hostile as its file: whatever it does becomes an error that names the file."""
    try:
        yield
    except CkptKDError:
        raise
    except Exception as error:
        raise SnapshotError(
            f"{path} can't be taken over: {type(error).__name__}: {str(error)[:200]!r}. Move it out of the folder."
        ) from error


def _check_size(weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that are far larger than their file: few bytes can stand for terabytes."""
    needed, size = plan_layout(weights).data_bytes, path.stat().st_size
    if needed > _MAX_GROWTH * size + 2**20:
        raise SnapshotError(
            f"{path} has {size} bytes, but its weights would take {needed}. It is damaged or hostile: move it out of "
            "the folder."
        )


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling untrusted bytes can raise anything
        raise SnapshotError(
            f"{path} can't be read with weights_only=True, and is never read otherwise ({_reason(error)}). "
            "Save it again with ModelCheckpoint(save_weights_only=True) or without custom objects in its "
            "hyper-parameters, or move it out of the folder."
        ) from None
    plain = _plain_dict(checkpoint)
    if not isinstance(plain.get("state_dict"), dict):
        raise SnapshotError(f"{path} is not a Lightning checkpoint: it has no 'state_dict'. Move it out of the folder.")
    for key in ("epoch", "global_step"):
        value = plain.get(key)
        if type(value) is not int or not 0 <= value < 2**63:
            raise SnapshotError(f"{path} is not a Lightning checkpoint: its {key!r} is {shown(value)}. Move it out.")
    return {**plain, "state_dict": _plain_dict(plain["state_dict"])}


def _plain_dict(found: object) -> dict[Any, Any]:
    """A dict of what is in one, by dict's own methods: what is unpickled may shadow them. Empty if it is none."""
    return dict(dict.items(found)) if isinstance(found, dict) else {}


def _reason(error: Exception) -> str:
    """The line of torch's message that says what is wrong, not the advice to switch the guard off."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    told = [line.split("WeightsUnpickler error:")[1] for line in lines if "WeightsUnpickler error:" in line]
    return shown((told or lines)[0].strip() or type(error).__name__)


def _describe(checkpoint: Mapping[str, Any], source: Path, submodule: str | None) -> dict[str, Any]:
    hyper_parameters = _plain_dict(checkpoint.get("hyper_parameters"))
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
    for found in _plain_dict(checkpoint.get("callbacks")).values():
        state = _plain_dict(found)
        monitor, score = state.get("monitor"), state.get("current_score")
        if isinstance(monitor, str) and is_text(monitor) and isinstance(score, (int, float, Tensor)):
            with contextlib.suppress(ValueError, OverflowError, RuntimeError):  # a score that is no number
                value = float(score)
                metrics[monitor] = value if math.isfinite(value) else None
    return metrics
