"""Classification: one label a sample."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.tasks.base import Task


class Multiclass(Task):
    """One of K classes for each sample: logits (N, K), targets (N,) or (N, 1), integers of any type.

    Args:
        ignore_index: Samples with this target are left out of the hard loss, of metrics and of I(Y;F); the teachers
            teach them all the same.
        class_weights: What each class counts in the hard loss, K numbers; None: all the same.
        label_smoothing: Of the hard loss, in [0, 1).

    Raises:
        ArgumentError: If an argument can't be used.
    """

    name: ClassVar[str] = "multiclass"

    @override
    def flatten(self, output: Tensor, lead: int = 0) -> Tensor:
        return output

    @override
    def flatten_targets(self, targets: Tensor) -> Tensor:
        return targets.reshape(-1).long()

    @override
    def check(self, output: Tensor, targets: Tensor, model: str) -> None:
        check_logits(output, model)
        self.check_scores(output.shape[1], model)
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


def check_logits(output: Tensor, model: str) -> None:
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
