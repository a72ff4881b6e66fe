"""Classification: one label a sample."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.shapes import Bool, Float, Int, Num, Shaped
from lightning_ckptkd.tasks.base import Task

_ROUNDING = 0.01  # by which a row of shares in 16 bits may miss 1


class Multiclass(Task):
    """One of K classes for each sample: logits (N, K), targets (N,) or (N, 1), integers of any type.

    Targets may be shares of the classes, (N, K), in some batches: a collate function that mixes samples does so for
    training alone. They are then read as :class:`.SoftMulticlass` reads them.

    Args:
        ignore_index: Samples with this target are left out of the hard loss, of metrics and of I(Y;F); the teachers
            teach them all the same.
        class_weights: What each class counts in the hard loss, K numbers; None: all the same.
        label_smoothing: Of the hard loss, in [0, 1).

    Raises:
        ArgumentError: If an argument can't be used.
    """

    name: ClassVar[str] = "multiclass"
    reads_too: ClassVar[tuple[str, ...]] = ("soft_multiclass",)

    @override
    def flatten(self, output: Float[Tensor, "*lead N K"], lead: int = 0) -> Float[Tensor, "*lead N K"]:
        return output

    @override
    def flatten_targets(self, targets: Shaped[Tensor, "N ..."]) -> Int[Tensor, " N"] | Float[Tensor, "N K"]:
        if _are_many(targets):
            return targets if targets.is_floating_point() else targets.float()
        return targets.reshape(-1).long()

    @override
    def check(self, output: Shaped[Tensor, "N ..."], targets: Shaped[Tensor, "N ..."], model: str) -> None:
        check_logits(output, model)
        self.check_scores(output.shape[1], model)
        if targets.shape == output.shape:  # K is 2 or more, so that these are no indices
            return
        count = len(targets)
        if targets.is_floating_point() or targets.shape not in ((count,), (count, 1)):
            raise ArgumentError(
                f"Labels should be class indices of shape ({len(output)},), but are {targets.dtype} of shape "
                f"{tuple(targets.shape)}. Say what they are with task=, or which part they are with target_key."
            )
        if len(output) != count:
            raise ArgumentError(
                f"A batch of {count} samples should have logits of shape ({count}, K), but those of {model} have "
                f"{tuple(output.shape)}. Give a network that returns one score a class for each sample."
            )

    @override
    def check_targets(
        self, targets: Int[Tensor, " P"] | Float[Tensor, "P K"], num_classes: int, *, partial: bool = False
    ) -> None:
        if _are_many(targets):
            check_shares(targets)
        else:
            super().check_targets(targets, num_classes, partial=partial)


def _are_many(targets: Tensor) -> bool:
    """Whether each sample has several numbers, which class indices have not."""
    return targets.dim() == 2 and targets.shape[1] > 1


def are_shares(targets: Num[Tensor, "N K"]) -> Bool[Tensor, " N"]:
    """Which rows of targets (N, K) are 0 or more and sum to 1, shape (N,)."""
    return (targets >= 0).all(1) & ((targets.double().sum(1) - 1).abs() <= _ROUNDING)


def check_shares(targets: Num[Tensor, "N K"]) -> None:
    """Check that rows of targets (N, K) are shares of the classes.

    Raises:
        ArgumentError: If one is not.
    """
    wrong = ~are_shares(targets)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        shares = targets[row].double()
        raise ArgumentError(
            f"Soft targets should be shares, 0 or more, that sum to 1 for each sample, but those of sample {row} "
            f"(from 0) sum to {float(shares.sum()):.4g}, the smallest being {float(shares.min()):.4g}. "
            "Normalise them, or use task='multilabel' for labels of 0 and 1."
        )


def check_logits(output: Shaped[Tensor, "N K"], model: str) -> None:
    """Check that an output is (N, K).

    Raises:
        ArgumentError: If it is not.
    """
    if output.dim() != 2:
        raise ArgumentError(
            f"Logits should have the shape (N, K), but those of {model} have {tuple(output.shape)}. Give a network "
            "that returns one score a class for each sample or, with logits_key, say which part of its output "
            "holds them."
        )
