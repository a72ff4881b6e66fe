"""Tasks whose labels are yes or no: one logit z for each, of which rows are the two classes [0, z]."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses import LogitLoss
from lightning_ckptkd.losses.hard import as_weights, binary_cross_entropy
from lightning_ckptkd.losses.scale import STANDARDISED
from lightning_ckptkd.shapes import Float, Int, Shaped
from lightning_ckptkd.tasks.base import Task

NO_LABEL = -(2**31)  # of a float target that is no whole number, so that check_targets finds it


class YesOrNo(Task):
    """Labels of 0 and 1, each with a logit z.

    Rows (R, 2) are the logits of its two classes, 0 and z, whose softmax is 1 - sigmoid(z) and sigmoid(z). So the
    cross-entropy of a row is the binary cross-entropy, and each loss between logits means what it means for classes.

    Args:
        ignore_index: Labels of this value are left out of the hard loss, of metrics and of I(Y;F).
        pos_weights: What positive labels count in the hard loss, as in torch's BCEWithLogitsLoss; None: 1.
    """

    def __init__(self, ignore_index: int | None, pos_weights: list[float] | None) -> None:
        super().__init__(ignore_index)
        self._pos_weights = as_weights("pos_weight", pos_weights)

    @override
    def flatten(self, output: Float[Tensor, "..."], lead: int = 0) -> Float[Tensor, "*lead P 2"]:
        z = output.reshape(*output.shape[:lead], -1)
        return torch.stack([torch.zeros_like(z), z], -1)

    @override
    def flatten_targets(self, targets: Shaped[Tensor, "N ..."]) -> Int[Tensor, " P"]:
        flat = targets.reshape(-1)
        return flat.where(flat == flat.round(), NO_LABEL).long() if flat.is_floating_point() else flat.long()

    @override
    def check_targets(self, targets: Int[Tensor, " P"], num_classes: int, *, partial: bool = False) -> None:
        if bool((targets == NO_LABEL).any()):
            raise ArgumentError(
                f"task={self.name} needs targets of 0 and 1, but some are in between, or NaN. Round them, or use "
                "task='regression' for numbers."
            )
        super().check_targets(targets, num_classes, partial=partial)

    @override
    def hard_loss(self, logits: Float[Tensor, "R 2"], targets: Int[Tensor, " R"]) -> Float[Tensor, ""]:
        """The mean binary cross-entropy in nats of the rows that have a target, shape (); 0 where none has.

        Args:
            logits: Shape (R, 2).
            targets: Shape (R,).
        """
        return binary_cross_entropy(logits[:, 1] - logits[:, 0], targets, self._pos_weights, self.ignore_index)

    @override
    def check_kd_loss(self, kd_loss: object) -> None:
        if isinstance(kd_loss, LogitLoss) and kd_loss.scale == STANDARDISED:
            raise ArgumentError(
                f"scale='standardised' needs three classes or more, and a label of task={self.name} has two, of which "
                "it leaves only which is larger. Use scale='fitted', a number, or 'none'."
            )

    @override
    def describe(self) -> dict[str, Any]:
        weights = None if self._pos_weights is None else self._pos_weights.tolist()
        return {"name": self.name, "ignore_index": self.ignore_index, "pos_weight": weights}


class Binary(YesOrNo):
    """Yes or no for each sample: logits (N,) or (N, 1), targets (N,) or (N, 1) of 0 and 1, of any type.

    Args:
        ignore_index: Samples with this target are left out of the hard loss, of metrics and of I(Y;F).
        pos_weight: What positive samples count in the hard loss, as in torch's BCEWithLogitsLoss.

    Raises:
        ArgumentError: If an argument can't be used.
    """

    name: ClassVar[str] = "binary"

    def __init__(self, ignore_index: int | None = -100, pos_weight: float | None = None) -> None:
        check_types(Binary.__init__, locals())
        super().__init__(ignore_index, None if pos_weight is None else [pos_weight])

    @override
    def check(self, output: Shaped[Tensor, "N ..."], targets: Shaped[Tensor, "N ..."], model: str) -> None:
        if output.shape not in ((len(output),), (len(output), 1)):
            raise ArgumentError(
                f"task=binary needs one logit a sample, (N,) or (N, 1), but those of {model} have "
                f"{tuple(output.shape)}. Use task='multiclass' for one score a class, or task='multilabel' for several "
                "labels a sample."
            )
        if targets.shape not in ((len(output),), (len(output), 1)):
            raise ArgumentError(
                f"task=binary needs targets of shape ({len(output)},) for the logits {tuple(output.shape)} of {model}, "
                f"but these have {tuple(targets.shape)}. Say with target_key which part of a batch they are."
            )
