"""Lightning's ``.ckpt`` files, which are untrusted: read without running code, each failure an error that names it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lightning_ckptkd.errors import CkptKDError, SnapshotError
from lightning_ckptkd.snapshots.fields import shown

_MAX_GROWTH = 4  # a checkpoint holds at least the weights; a compressed or tied one may hold less


def read_checkpoint(path: Path, remedy: str) -> dict[str, Any]:
    """The content of a checkpoint, with a plain dict at ``state_dict``; its tensors are on the CPU.

    Args:
        path: The file.
        remedy: What to do with one that is refused, for messages.

    Raises:
        SnapshotError: If it is no Lightning checkpoint or can't be read without running code.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling untrusted bytes can raise anything
        raise SnapshotError(
            f"{path} can't be read with weights_only=True, and is never read otherwise ({_reason(error)}). "
            "Save it again with ModelCheckpoint(save_weights_only=True) or without custom objects in its "
            f"hyper-parameters, or {remedy}."
        ) from None
    plain = plain_dict(checkpoint)
    if not isinstance(plain.get("state_dict"), dict):
        raise SnapshotError(
            f"{path} is not a Lightning checkpoint: it has no 'state_dict'. {remedy[0].upper()}{remedy[1:]}."
        )
    return {**plain, "state_dict": plain_dict(plain["state_dict"])}


def plain_dict(found: object) -> dict[Any, Any]:
    """A dict of what is in one, by dict's own methods: what is unpickled may shadow them. Empty if it is none."""
    return dict(dict.items(found)) if isinstance(found, dict) else {}


def check_size(needed: int, path: Path, remedy: str) -> None:
    """Refuse weights that are far larger than their file: few bytes can stand for terabytes.

    Args:
        needed: Bytes that the weights would take.
        path: The file.
        remedy: As for :func:`read_checkpoint`.

    Raises:
        SnapshotError: If they are.
    """
    size = path.stat().st_size
    if needed > _MAX_GROWTH * size + 2**20:
        raise SnapshotError(
            f"{path} has {size} bytes, but its weights would take {needed}. It is damaged or hostile: {remedy}."
        )


@contextlib.contextmanager
def explained(path: Path, action: str, remedy: str) -> Iterator[None]:
    """What was unpickled is as hostile as its file: whatever it does becomes an error that names the file."""
    try:
        yield
    except CkptKDError:
        raise
    except Exception as error:
        raise SnapshotError(
            f"{path} can't be {action}: {type(error).__name__}: {str(error)[:200]!r}. {remedy[0].upper()}{remedy[1:]}."
        ) from error


def _reason(error: Exception) -> str:
    """The line of torch's message that says what is wrong, not the advice to switch the guard off."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    told = [line.split("WeightsUnpickler error:")[1] for line in lines if "WeightsUnpickler error:" in line]
    return shown((told or lines)[0].strip() or type(error).__name__)
