"""The student as ONNX, by torch's exporter, run by onnxruntime."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from lightning_ckptkd.commands.exporting.tracing import Call, first_line
from lightning_ckptkd.errors import ArgumentError

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_ONE_FILE = 2**30  # bytes of weights; a protobuf message can't have more than 2 GiB


class OnnxFile:
    """Writes an ``.onnx`` file, above 1 GiB of weights with these in ``.onnx.data`` beside it, and runs it."""

    suffix = ".onnx"

    def check_packages(self) -> None:
        """See that what is needed is installed.

        Raises:
            ArgumentError: If not; names the extra.
        """
        missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise ArgumentError(
                f"out: .onnx needs {', '.join(missing)}, which is not installed. "
                "`pip install 'lightning-ckptkd[export]'` installs all that it needs; .pt2 needs nothing but torch."
            )

    def write(self, program: ExportedProgram, path: Path) -> str:
        """Write the file or both files.

        Returns:
            The opset, in words.

        Raises:
            ArgumentError: If an operation has no translation; names it.
        """
        try:
            converted: Any = torch.onnx.export(program, verbose=False)
        except Exception as error:
            found = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", _causes(error))
            raise ArgumentError(
                f"torch's ONNX exporter has no translation of {found[1] if found else 'an operation'}: "
                f"{first_line(_last_cause(error))}. Write .pt2, which has all of torch's operations, or .safetensors."
            ) from error
        size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
        converted.save(path, external_data=size > _ONE_FILE)
        opset = next(item.version for item in converted.model_proto.opset_import if item.domain == "")
        return f"ONNX of opset {opset}"

    def run(self, path: Path, call: Call) -> Tensor:
        """What onnxruntime makes of the written file and a call.

        Raises:
            ArgumentError: If it can't run it.
        """
        import onnxruntime

        try:
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            given = [leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)]
            names = [item.name for item in session.get_inputs()]
            if len(names) != len(given):
                raise ArgumentError(
                    f"The student takes {len(given)} tensors, and its ONNX graph {len(names)} ({', '.join(names)}): it "
                    "looks at some of them in no case. Leave these out of the sample (input_keys)."
                )
            found = session.run(None, {name: value.numpy() for name, value in zip(names, given, strict=True)})
        except ArgumentError:
            raise
        except Exception as error:  # onnxruntime's own kinds
            raise ArgumentError(
                f"onnxruntime can't run the student: {first_line(error)}. Weights of float32 work everywhere "
                "(student.float()); .pt2 and .safetensors take the others, too."
            ) from error
        return torch.from_numpy(found[0])


def _last_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _causes(error: BaseException) -> str:
    words = [str(error)]
    while error.__cause__ is not None:
        error = error.__cause__
        words.append(str(error))
    return "\n".join(words)
