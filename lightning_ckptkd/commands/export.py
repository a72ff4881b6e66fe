"""The student alone, in a file that needs neither this package nor Lightning."""

from __future__ import annotations

import io
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError, SnapshotError, near_names
from lightning_ckptkd.snapshots.checkpoint_file import open_checkpoint
from lightning_ckptkd.snapshots.folders import open_folder, run_tag
from lightning_ckptkd.snapshots.weights import plain_names

_PREFIX = "student"
_SUFFIXES = (".safetensors", ".pt", ".pth")
_REMEDY = "give a .ckpt file of a distillation"


def export_student(checkpoint: str | Path, out: str | Path) -> dict[str, Tensor]:
    """Write the student's weights of a :class:`DistillationModule` checkpoint into a file of their own.

    Names are those of the student's own ``state_dict()``, as without ``torch.compile``, so that
    ``load_state_dict`` takes them strictly. Tied tensors are stored under each of their names. No code of the
    checkpoint runs; the file is whole or absent.

    Args:
        checkpoint: The ``.ckpt`` file.
        out: The file to write: ``.safetensors``, or ``.pt`` or ``.pth`` for torch's format. Its folder is made where
            it is not there; an fsspec URL will do.

    Returns:
        What was written: name to tensor.

    Raises:
        ArgumentError: If ``out`` exists or has another suffix.
        SnapshotError: If the checkpoint is missing, a folder, no checkpoint, holds no student or can't be read without
            running code, or if ``out`` can't be written.
    """
    check_types(export_student, locals())
    name = str(out).rpartition("/")[2]
    folder = open_folder(str(out)[: -len(name)] or "." if name else str(out))
    suffix = Path(name).suffix
    if suffix not in _SUFFIXES:
        raise ArgumentError(f"out={str(out)!r} should end in one of {', '.join(_SUFFIXES)}.")
    if folder.exists(name):
        raise ArgumentError(f"out={str(out)!r} exists and is not overwritten. Remove it, or choose another name.")
    weights = _read_student(Path(checkpoint).expanduser())
    if suffix == ".safetensors":
        data = safetensors.torch.save(weights, {"format": "pt"})
    else:
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        data = buffer.getvalue()
    folder.make()
    folder.write(name, [data], run_tag(str(out)))
    return weights


def _read_student(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        raise SnapshotError(
            f"{path} is a folder, as sharded checkpoints are; reading them would run code that they hold. Make a file "
            f"of one that you trust, with `python -m lightning.fabric.utilities.consolidate_checkpoint {path}`, and "
            "export that."
        )
    with open_checkpoint(path, "exported", _REMEDY) as checkpoint:
        names = checkpoint.names()
        if not any(name.startswith(f"{_PREFIX}.") for name in plain_names(dict.fromkeys(names))):
            raise SnapshotError(
                f"{path} holds no student: none of its weights' names begins with '{_PREFIX}.'. Some of them: "
                f"{near_names(_PREFIX, names)}. {_REMEDY[0].upper()}{_REMEDY[1:]}."
            )
        weights = checkpoint.weights(_PREFIX)
        checkpoint.check_size(sum(value.numel() * value.itemsize for value in weights.values()))  # ties are copied
        return {name: value.clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
