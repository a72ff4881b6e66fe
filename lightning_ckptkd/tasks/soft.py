"""Classification where a target says how much of each class a sample is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses import DKDLoss
from lightning_ckptkd.shapes import Shaped
from lightning_ckptkd.tasks.multiclass import Multiclass, check_logits


class SoftMulticlass(Multiclass):
    """Shares of K classes for each sample (one-hot, or mixed when collated): logits (N, K), targets (N, K).

    Targets may be class indices in some batches, as those of validation are where training mixes. The hard loss is the
    soft cross-entropy, I(Y;F) the entropy of the mean target less that, and accuracy is that of the largest share.
    There is no ``ignore_index``, as in torch.

    Args:
        class_weights: What each class counts in the hard loss, K numbers; None: all the same. As in torch, the mean
            is over samples, not over their weights.
        label_smoothing: Of the hard loss, in [0, 1).

    Raises:
        ArgumentError: If an argument can't be used.
    """

    name: ClassVar[str] = "soft_multiclass"
    reads_too: ClassVar[tuple[str, ...]] = ("multiclass",)

    def __init__(self, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__(None, class_weights, label_smoothing)

    @override
    def check(self, output: Shaped[Tensor, "N ..."], targets: Shaped[Tensor, "N ..."], model: str) -> None:
        if targets.is_floating_point() and targets.shape != output.shape:
            check_logits(output, model)
            raise ArgumentError(
                f"Soft targets should be shares of the classes, of the logits' shape {tuple(output.shape)}, but have "
                f"{tuple(targets.shape)}. Give one share a class for each sample, or task='multiclass' for class "
                "indices."
            )
        super().check(output, targets, model)

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
