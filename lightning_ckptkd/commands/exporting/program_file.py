"""The student as torch's exported program, ``.pt2``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from lightning_ckptkd.commands.exporting.tracing import Call


class ProgramFile:
    """Writes and runs a ``.pt2`` file. It is torch's own format; a foreign one can run code when it is loaded."""

    suffix = ".pt2"

    def check_packages(self) -> None:
        """Nothing but torch is needed."""

    def write(self, program: ExportedProgram, path: Path) -> str:
        """Write the file.

        Returns:
            What it is, in words.
        """
        torch.export.save(program, path)
        return f"torch {torch.__version__}'s exported program"

    def run(self, path: Path, call: Call) -> Tensor:
        """What the written file makes of a call."""
        output: Tensor = torch.export.load(path).module()(*call.args, **call.kwargs)
        return output
