"""The student as a program, in a file that was held against it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ckptkd.commands.exporting.onnx_file import OnnxFile
from lightning_ckptkd.commands.exporting.program_file import ProgramFile
from lightning_ckptkd.commands.exporting.tracing import Call, find_call, first_line, in_eval_mode, logits_alone, trace
from lightning_ckptkd.errors import ArgumentError, CkptKDError
from lightning_ckptkd.snapshots.folders import Folder, run_tag
from lightning_ckptkd.tasks.alone import alone
from lightning_ckptkd.tasks.batch import Batch

FORMATS: Mapping[str, OnnxFile | ProgramFile] = {format.suffix: format for format in (OnnxFile(), ProgramFile())}
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # of the largest logit; float32 measures about 1e-6
_TOLERANCE_OF_HALVES = 5e-2


@dataclass(frozen=True)
class Program:
    """What was written.

    Attributes:
        files: Where: the file or, with weights of their own, both.
        kind: The format and its version, such as ``ONNX of opset 20``.
        inputs: The tensors that it takes, in words.
        difference: The largest difference of a logit from the student's, over all that was tried.
        largest: The largest logit of the student's in that.
        sizes: The batch sizes that were tried.
    """

    files: tuple[str, ...]
    kind: str
    inputs: str
    difference: float
    largest: float
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.sizes))
        return (
            f"The student is {self.kind}, in {' and '.join(self.files)}. It takes {self.inputs}, in a batch of any "
            f"size. Of batches of {sizes} its outputs differ from the student's by {self.difference:.2g} at most; the "
            f"largest is {self.largest:.3g}."
        )


def write_program(
    network: nn.Module,
    samples: list[Batch],
    folder: Folder,
    name: str,
    logits_key: str | int | None = None,
) -> Program:
    """Trace a network in eval mode, write it, and hold what was written against the network; its mode is put back.

    Args:
        network: On the CPU.
        samples: What it is traced on; others beside the first differ in those sizes that may differ.
        folder: Where to write.
        name: The file's name, with the suffix of one of :data:`FORMATS`.
        logits_key: Where the logits are in what the network returns.

    Raises:
        ArgumentError: If a package is missing, the network can't run on the sample or be traced or translated, or what
            was written gives something else.
        SnapshotError: If the file can't be written.
    """
    kind = FORMATS[Path(name).suffix]
    kind.check_packages()
    network = getattr(network, "_orig_mod", network)  # what torch.compile wraps
    with in_eval_mode(network), alone(network), tempfile.TemporaryDirectory() as temporary:
        calls = [find_call(network, sample) for sample in samples]
        path = Path(temporary, name)
        with logits_alone(network, logits_key):
            words = kind.write(trace(network, calls), path)
            program = _check(kind, path, network, calls, words, folder)
        folder.make()
        written: list[str] = []
        try:
            for file in sorted(path.parent.iterdir(), reverse=True):  # the weights first, which the other names
                folder.write(file.name, [file.read_bytes()], run_tag(folder / name))
                written.append(file.name)
        except CkptKDError:  # weights alone are of no use
            for half in written:
                folder.remove(half)
            raise
    return program


def _check(
    kind: OnnxFile | ProgramFile, path: Path, network: nn.Module, calls: list[Call], words: str, folder: Folder
) -> Program:
    size = calls[0].size
    tried = [*(calls[0].resized(other) for other in (1, size + 1)), *calls]
    difference = largest = 0.0
    for call in tried:
        with torch.no_grad():
            expected, found = _run(network, call), kind.run(path, call)
        if found.shape != expected.shape:
            raise ArgumentError(
                f"A batch of {call.size} gives {tuple(found.shape)} as {kind.suffix}, and {tuple(expected.shape)} as "
                "the student: it was not written. Its number of samples is fixed somewhere in the network."
            )
        far = float((found - expected).abs().max())
        largest = max(largest, float(expected.abs().max()))
        difference = far if math.isnan(far) else max(difference, far)
        if not difference <= _TOLERANCE.get(expected.dtype, _TOLERANCE_OF_HALVES) * max(largest, 1e-3):
            raise ArgumentError(
                f"As {kind.suffix} the student's outputs differ by {difference:.3g} in a batch of {call.size}, the "
                f"largest being {largest:.3g}: it was not written. Where the network draws random numbers, let it not "
                "do so in eval mode; else write .safetensors."
            )
    files = tuple(folder / file.name for file in sorted(path.parent.iterdir()))
    sizes = tuple(call.size for call in tried)
    return Program(files, words, _describe(calls), difference, largest, tuple(sorted(set(sizes))))


def _run(network: nn.Module, call: Call) -> Tensor:
    try:
        logits: Tensor = network(*call.args, **call.kwargs)
    except CkptKDError:
        raise
    except Exception as error:  # of the network, whatever it is
        raise ArgumentError(
            f"The student {type(network).__name__} can't run on a batch of {call.size}: {first_line(error)}. A program "
            "takes a batch of any size; .safetensors and .pt, which hold the weights, can be written in any case."
        ) from error
    return logits


def _describe(calls: list[Call]) -> str:
    """Names and shapes of the first call's tensors."""
    named = {**{f"input {place}": part for place, part in enumerate(calls[0].args)}, **calls[0].kwargs}
    words = [f"{name} {_shape(part, calls[0].size)}" for name, part in named.items() if isinstance(part, Tensor)]
    return " and ".join(words) or "its inputs"


def _shape(part: Tensor, size: int) -> str:
    sizes: list[Any] = list(part.shape)
    if sizes and sizes[0] == size:
        sizes[0] = "N"
    return f"({', '.join(map(str, sizes))}{',' if len(sizes) == 1 else ''}) of {str(part.dtype).removeprefix('torch.')}"
