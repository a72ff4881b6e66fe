"""The student alone, in a file that needs neither this package nor Lightning: its weights, or all of it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.commands.exporting.network import FORMATS, Program, write_program
from lightning_ckptkd.errors import ArgumentError, SnapshotError, near_names
from lightning_ckptkd.snapshots.checkpoint_file import open_checkpoint
from lightning_ckptkd.snapshots.folders import Folder, open_folder, run_tag
from lightning_ckptkd.snapshots.weights import plain_names
from lightning_ckptkd.tasks.batch import Batch

_PREFIX = "student"
WEIGHTS = (".safetensors", ".pt", ".pth")
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
    folder, name = _find_out(out, WEIGHTS)
    weights = _read_student(Path(checkpoint).expanduser())
    if Path(name).suffix == ".safetensors":
        data = safetensors.torch.save(weights, {"format": "pt"})
    else:
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        data = buffer.getvalue()
    folder.make()
    folder.write(name, [data], run_tag(str(out)))
    return weights


def export_network(
    checkpoint: str | Path,
    out: str | Path,
    student: nn.Module,
    sample: Any,
    logits_key: str | int | None = None,
) -> Program:
    """Write the student of a :class:`DistillationModule` checkpoint as a program: network and weights in one.

    It is traced by ``torch.export`` in eval mode, for a batch of any size, and written only if what the file gives is
    what the student gives, on the sample and on batches of one and of one more. It returns the logits alone. The
    student's mode stays what it is; its weights are the checkpoint's from then on.

    Args:
        checkpoint: The ``.ckpt`` file.
        out: The file to write: ``.onnx`` (needs the extra ``export``), or torch's ``.pt2``. Its folder is made where it
            is not there; an fsspec URL will do.
        student: A network as it was trained, on the CPU.
        sample: What it is called with, two samples or more: a tensor, a tuple of positions, or a mapping of keywords.
            A list of several: dimensions whose sizes differ among them may have any size.
        logits_key: Where the logits are, if it returns a tuple, mapping or object.

    Returns:
        What was written, and its largest difference from the student; ``str()`` says it in words.

    Raises:
        ArgumentError: If ``out`` exists or has another suffix, the student is another network than the checkpoint's,
            can't run on the sample or can't be traced or translated (says at which operation), a package is missing, or
            what was made gives something else than the student.
        SnapshotError: As :func:`export_student`.
    """
    folder, name = _find_out(out, tuple(FORMATS))
    FORMATS[Path(name).suffix].check_packages()
    weights = _read_student(Path(checkpoint).expanduser())
    elsewhere = next((str(value.device) for value in student.state_dict().values() if value.device.type != "cpu"), None)
    if elsewhere is not None:
        raise ArgumentError(f"student: its weights are on {elsewhere}. Give student.cpu().")
    network = getattr(student, "_orig_mod", student)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ArgumentError(
            f"student: {type(network).__name__} does not take the weights of {checkpoint}: "
            f"{' '.join(str(error).split())[:400]} Give a network that is made as the student was."
        ) from None
    samples = sample if isinstance(sample, list) else [sample]
    batches = [each if isinstance(each, Batch) else Batch(_plain(each)) for each in samples]
    return write_program(network, batches, folder, name, logits_key)


def _plain(sample: Any) -> Any:
    if not isinstance(sample, (Tensor, tuple, Mapping)):
        raise ArgumentError(
            f"sample should be a tensor, a tuple, a mapping or a list of such, but is {type(sample).__name__}."
        )
    return sample


def _find_out(out: str | Path, suffixes: tuple[str, ...]) -> tuple[Folder, str]:
    name = str(out).rpartition("/")[2]
    folder = open_folder(str(out)[: -len(name)] or "." if name else str(out))
    suffix = Path(name).suffix
    if suffix not in suffixes:
        others = {*WEIGHTS, *FORMATS} - set(suffixes)
        by = "export_network, which takes the student's network," if suffix in FORMATS else "export_student"
        remedy = f" {suffix} is written by {by} or `ckptkd export`." if suffix in others else ""
        remedy = " The checkpoint comes first, then the file to write." if suffix == ".ckpt" else remedy
        remedy = remedy or f" `ckptkd export` also writes {' and '.join(sorted(others))}."
        raise ArgumentError(f"out={str(out)!r} should end in one of {', '.join(suffixes)}.{remedy}")
    for file in (name, f"{name}.data") if suffix == ".onnx" else (name,):
        if folder.exists(file):
            raise ArgumentError(
                f"out={folder / file!r} exists and is not overwritten. Remove it, or choose another name."
            )
    return folder, name


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
