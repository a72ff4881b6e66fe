"""Several labels a sample, each of which may hold or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.shapes import Int, Shaped
from lightning_ckptkd.tasks.binary import YesOrNo
from lightning_ckptkd.tasks.rows import rows_of_samples

if TYPE_CHECKING:
    from torchmetrics import Metric


class Multilabel(YesOrNo):
    """K labels that each hold or not: logits (N, K), targets (N, K) of 0 and 1, of any type.

    Rows are (N * K, 2): the labels of the first sample, then those of the second. Losses are means over labels and
    samples. Each label is a unit of its own, so that I(Y;F) is the sum over labels of H(Y_k) less its cross-entropy.

    Args:
        ignore_index: Labels of this value (not known) are left out of the hard loss, of metrics and of I(Y;F).
        pos_weight: What each positive label counts in the hard loss, K numbers, as in torch's BCEWithLogitsLoss.

    Raises:
        ArgumentError: If an argument can't be used.
    """

    name: ClassVar[str] = "multilabel"

    def __init__(self, ignore_index: int | None = -100, pos_weight: list[float] | None = None) -> None:
        check_types(Multilabel.__init__, locals())
        super().__init__(ignore_index, pos_weight)

    @override
    def check(self, output: Shaped[Tensor, "N ..."], targets: Shaped[Tensor, "N ..."], model: str) -> None:
        if output.dim() != 2:
            raise ArgumentError(
                f"task=multilabel needs logits (N, K), one for each label, but those of {model} have "
                f"{tuple(output.shape)}. Say with logits_key which part of its output holds them."
            )
        if targets.shape != output.shape:
            raise ArgumentError(
                f"task=multilabel needs targets of the logits' shape {tuple(output.shape)}, one of 0 and 1 for each "
                f"label, but these have {tuple(targets.shape)}. Say with target_key which part of a batch they are, or "
                "use task='multiclass' for class indices."
            )
        if self._pos_weights is not None and len(self._pos_weights) != output.shape[1]:
            raise ArgumentError(
                f"pos_weight has {len(self._pos_weights)} numbers, but {model} gives {output.shape[1]} logits. Give "
                "one for each label."
            )

    @override
    def samples(self, targets: Shaped[Tensor, "N K"]) -> Int[Tensor, " P"] | None:
        return rows_of_samples(targets, targets.shape[1])

    @override
    def units(self, targets: Shaped[Tensor, "N K"]) -> Int[Tensor, " P"] | None:
        return torch.arange(targets.shape[1], device=targets.device).repeat(len(targets))

    @override
    def num_units(self, output: Shaped[Tensor, "N K"]) -> int:
        return output.shape[1]

    @override
    def metrics(self, num_classes: int, num_units: int | None = None) -> dict[str, Metric]:
        """``acc``: the share of labels that are right; with ``num_units`` also ``f1``, the mean over labels."""
        from lightning_ckptkd.tasks.metrics import RowF1  # with torchmetrics, which is slow to import

        found = super().metrics(num_classes, num_units)
        return found if num_units is None else {**found, "f1": RowF1(num_units, self.ignore_index)}
