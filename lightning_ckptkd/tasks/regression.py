"""Numbers instead of classes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.information.label import gaussian_head_gains
from lightning_ckptkd.losses import DISTLoss, DKDLoss, KDLoss, LogitLoss, MSELoss
from lightning_ckptkd.losses.arguments import in_one_precision
from lightning_ckptkd.losses.scale import NONE as UNSCALED
from lightning_ckptkd.shapes import Float, Int, Shaped
from lightning_ckptkd.tasks.base import Task
from lightning_ckptkd.tasks.rows import without_ones

if TYPE_CHECKING:
    from torchmetrics import Metric


class Regression(Task):
    """One number or D for each sample: outputs and targets (N,), (N, 1) or (N, D), or more dimensions; floats.

    The hard loss is the mean squared error, the distillation loss that to the teachers' mean. I(Y;F) is 1/2 ln(var /
    mse), summed over the D numbers; it is below 0 where a snapshot predicts worse than the mean target does, which
    counts as 0 in a score. There is no agreement, no ``ignore_index``, and no class.
    """

    name: ClassVar[str] = "regression"
    classes: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__(None)

    @override
    def flatten(self, output: Float[Tensor, "..."], lead: int = 0) -> Float[Tensor, "*lead N D"]:
        return output.reshape(*output.shape[: lead + 1], math.prod(output.shape[lead + 1 :]))

    @override
    def flatten_targets(self, targets: Shaped[Tensor, "N ..."]) -> Float[Tensor, "N D"]:
        flat = targets.reshape(len(targets), math.prod(targets.shape[1:]))
        return flat if flat.is_floating_point() else flat.float()

    @override
    def check(self, output: Shaped[Tensor, "N ..."], targets: Shaped[Tensor, "N ..."], model: str) -> None:
        if not output.dim() or without_ones(output) != without_ones(targets):
            raise ArgumentError(
                f"task=regression needs targets of the shape of the outputs of {model}, {tuple(output.shape)}, but "
                f"these have {tuple(targets.shape)}. Give a network with one output for each target number, or say "
                "with target_key and logits_key which parts to compare."
            )

    @override
    def check_targets(self, targets: Float[Tensor, "N D"], num_classes: int, *, partial: bool = False) -> None:
        finite = targets.isfinite().all(1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise ArgumentError(
                f"Targets of task=regression should be finite, but sample {row} (from 0) has "
                f"{targets[row][~targets[row].isfinite()][0].item()}. Leave such samples out of the data, or mend them."
            )

    @override
    def hard_loss(self, logits: Float[Tensor, "R D"], targets: Float[Tensor, "R D"]) -> Float[Tensor, ""]:
        """The mean squared error over samples and numbers, shape ().

        Args:
            logits: Shape (R, D).
            targets: Shape (R, D).
        """
        return F.mse_loss(*in_one_precision(logits, targets))

    @override
    def kd_loss(self, temperature: float) -> LogitLoss:
        return MSELoss(temperature)

    @override
    def check_kd_loss(self, kd_loss: object) -> None:
        if isinstance(kd_loss, (KDLoss, DKDLoss, DISTLoss)):
            raise ArgumentError(
                f"kd_loss={type(kd_loss).__name__} compares probabilities of classes, and task=regression has none. "
                "Use MSELoss, or leave kd_loss out."
            )
        if isinstance(kd_loss, LogitLoss) and kd_loss.combine == "probabilities":
            raise ArgumentError(
                "combine='probabilities' makes probabilities of the outputs, and task=regression has none. Use "
                "combine='logits', which is the mean of the teachers' numbers, or 'per_teacher'."
            )

        if isinstance(kd_loss, LogitLoss) and kd_loss.scale != UNSCALED:
            raise ArgumentError(
                f"scale={kd_loss.scale!r} is of logits, whose softmax is meant, and outputs of task=regression are the "
                "numbers themselves. Leave scale out."
            )

    @override
    def metrics(self, num_classes: int, num_units: int | None = None) -> dict[str, Metric]:
        """``rmse`` over samples and numbers, and ``r2``, the mean over the D numbers (NaN of less than two samples)."""
        from lightning_ckptkd.tasks.metrics import RowR2, RowRMSE  # with torchmetrics, which is slow to import

        return {"rmse": RowRMSE(), "r2": RowR2(num_classes)}

    @override
    def agreement(self, teachers: Float[Tensor, "R D"]) -> None:
        return None

    @override
    def unit_gains(
        self, logits: Float[Tensor, "R D"], targets: Float[Tensor, "R D"], folds: Int[Tensor, " R"]
    ) -> Float[Tensor, " R"]:
        return gaussian_head_gains(logits, targets, folds)

    @override
    def costs(self, logits: Float[Tensor, "R D"], targets: Float[Tensor, "R D"]) -> Float[Tensor, " R"]:
        """The squared error of each row, summed over its D numbers, shape (R,), float64."""
        return (logits.double() - targets.double()).square().sum(1)

    @override
    def hits(self, logits: Float[Tensor, "R D"], targets: Float[Tensor, "R D"]) -> None:
        return None

    @override
    def label_entropy(self, targets: Float[Tensor, "R D"], units: Int[Tensor, " R"] | None = None) -> None:
        return None

    @override
    def label_surprises(self, targets: Float[Tensor, "R D"], units: Int[Tensor, " R"] | None = None) -> None:
        return None

    @override
    def describe(self) -> dict[str, Any]:
        return {"name": self.name}
