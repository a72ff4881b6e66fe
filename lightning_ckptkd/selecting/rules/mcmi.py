"""MCMI: what a snapshot's predictions tell of the input beyond the label (arXiv 2401.08732)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.information.cmi import cmi_parts
from lightning_ckptkd.selecting.rows import ProbeRows
from lightning_ckptkd.selecting.rules.mean import RowRule
from lightning_ckptkd.selecting.rules.words import Words


class MCMI(RowRule):
    """I(X;Z|Y) of the predictions Z in nats; see :mod:`lightning_ckptkd.information.cmi`."""

    short_name: ClassVar[str] = "mcmi"
    soup_term: ClassVar[str | None] = None  # it tells of the input

    @property
    @override
    def words(self) -> Words:
        return Words(score="I(X;Z|Y) nats")

    @override
    def check_rows(self, rows: ProbeRows, *, joint: bool = False) -> None:
        if rows.targets.dim() != 1 or rows.targets.is_floating_point() or rows.num_classes == 1:
            raise ArgumentError(
                f"rule={self.name!r} needs class indices for targets and a logit for each class, and the task "
                f"{rows.task.name!r} has others. Use rule='loss'."
            )

    @override
    def values(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cmi_parts(logits.double().softmax(1), targets)
