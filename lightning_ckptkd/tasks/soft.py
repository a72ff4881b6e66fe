"""Classification where a target says how much of each class a sample is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses import DKDLoss
from lightning_ckptkd.tasks.base import Task
from lightning_ckptkd.tasks.multiclass import check_logits

_ROUNDING = 0.01  # by which a row of shares in 16 bits may miss 1


class SoftMulticlass(Task):
    """Shares of K classes for each sample (one-hot, or mixed when collated): logits (N, K), targets (N, K).

    The hard loss is the soft cross-entropy, I(Y;F) the entropy of the mean target less that, and accuracy is that of
    the largest share. There is no ``ignore_index``, as in torch.

    Args:
        class_weights: What each class counts in the hard loss, K numbers; None: all the same. As in torch, the mean
            is over samples, not over their weights.
        label_smoothing: Of the hard loss, in [0, 1).

    Raises:
        ArgumentError: If an argument can't be used.
    """

    name: ClassVar[str] = "soft_multiclass"

    def __init__(self, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__(None, class_weights, label_smoothing)

    @override
    def flatten(self, output: Tensor, lead: int = 0) -> Tensor:
        return output

    @override
    def flatten_targets(self, targets: Tensor) -> Tensor:
        return targets if targets.is_floating_point() else targets.float()

    @override
    def check(self, output: Tensor, targets: Tensor, model: str) -> None:
        check_logits(output, model)
        self.check_scores(output.shape[1], model)
        if targets.shape != output.shape:
            raise ArgumentError(
                f"Soft targets should be shares of the classes, of the logits' shape {tuple(output.shape)}, but have "
                f"{tuple(targets.shape)}. Give one share a class for each sample, or task='multiclass' for class "
                "indices."
            )

    @override
    def check_targets(self, targets: Tensor, num_classes: int, *, partial: bool = False) -> None:
        wrong = ~are_shares(targets)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            shares = targets[row].double()
            raise ArgumentError(
                f"Soft targets should be shares, 0 or more, that sum to 1 for each sample, but those of sample {row} "
                f"(from 0) sum to {float(shares.sum()):.4g}, the smallest being {float(shares.min()):.4g}. "
                "Normalise them, or use task='multilabel' for labels of 0 and 1."
            )

    @override
    def check_kd_loss(self, kd_loss: object) -> None:
        if isinstance(kd_loss, DKDLoss):
            raise ArgumentError(
                "kd_loss=DKDLoss splits the classes by the one that is right, and task=soft_multiclass has shares of "
                "several. Use KDLoss, DISTLoss or MSELoss, or targets that are class indices."
            )

    @override
    def describe(self) -> dict[str, Any]:
        described = super().describe()
        del described["ignore_index"]
        return described


def are_shares(targets: Tensor) -> Tensor:
    """Which rows of targets (N, K) are 0 or more and sum to 1, shape (N,)."""
    return (targets >= 0).all(1) & ((targets.double().sum(1) - 1).abs() <= _ROUNDING)
