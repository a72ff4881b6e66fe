"""Tasks with a label for each place of a sample: pixels and tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses import KDLoss
from lightning_ckptkd.losses.arguments import at_least_float32
from lightning_ckptkd.losses.combine import normalised_weights
from lightning_ckptkd.losses.hard import cross_entropy
from lightning_ckptkd.losses.kd import CANCELS_ABOVE, kd_loss_of_planes
from lightning_ckptkd.losses.scale import AUTO as SCALES_SOUPS
from lightning_ckptkd.losses.scale import NONE as UNSCALED
from lightning_ckptkd.shapes import Float, Int, Num, Shaped
from lightning_ckptkd.tasks.base import Task
from lightning_ckptkd.tasks.rows import PlaneRows, Rows, rows_of_samples

if TYPE_CHECKING:
    from torchmetrics import Metric


class Placewise(Task):
    """One of K classes for each place of a sample; those with ``ignore_index`` are left out of everything.

    Rows are the places in order, sample by sample. Losses, metrics and I(Y;F) are means over all places of a batch
    that have a label.
    """

    @override
    def kept(self, targets: Int[Tensor, " P"]) -> Int[Tensor, " R"] | None:
        if self.ignore_index is None:
            return None
        valid = (targets != self.ignore_index).nonzero().squeeze(1)
        return None if len(valid) == len(targets) else valid

    @override
    def samples(self, targets: Shaped[Tensor, "N ..."]) -> Int[Tensor, " P"] | None:
        count = len(targets)
        return rows_of_samples(targets, len(self.flatten_targets(targets)) // count if count else 0)


class Dense(Placewise):
    """One of K classes for each pixel: logits (N, K, *), targets (N, *), or (N, 1, *), integers of any type.

    Args:
        ignore_index: Pixels with this target are left out of losses, metrics and I(Y;F); 255 and -1 are usual.
        class_weights: What each class counts in the hard loss, K numbers; None: all the same.
        label_smoothing: Of the hard loss, in [0, 1).

    Raises:
        ArgumentError: If an argument can't be used.
    """

    name: ClassVar[str] = "dense"

    @override
    def flatten(self, output: Float[Tensor, "..."], lead: int = 0) -> Float[Tensor, "*lead P K"]:
        return output.movedim(lead + 1, -1).reshape(*output.shape[:lead], -1, output.shape[lead + 1])

    @override
    def flatten_targets(self, targets: Shaped[Tensor, "N ..."]) -> Int[Tensor, " P"]:
        return targets.reshape(-1).long()

    @override
    def rows(
        self,
        student: Float[Tensor, "N ..."],
        teachers: Float[Tensor, "M N ..."] | None,
        targets: Shaped[Tensor, "N ..."],
    ) -> Rows:
        if type(self) is not Dense or not student.is_contiguous():  # channels_last is rows already
            return super().rows(student, teachers, targets)
        flat = targets.reshape(len(student), -1).long()
        valid = None if self.ignore_index is None else flat != self.ignore_index
        valid = None if valid is None or bool(valid.all()) else valid
        return PlaneRows(student.flatten(2), None if teachers is None else teachers.flatten(3), flat, valid)

    @override
    def taught(self, rows: Rows) -> Float[Tensor, ""]:
        if not isinstance(rows, PlaneRows):
            return super().taught(rows)
        return cross_entropy(
            rows.planes, rows.plane_targets, self.class_weights, self.ignore_index, self.label_smoothing
        )

    @override
    def distilled(
        self,
        kd_loss: Callable[..., Tensor],
        rows: Rows,
        weights: Num[Tensor, " M"] | None = None,
        scales: Num[Tensor, " M"] | None = None,
    ) -> Float[Tensor, ""]:
        if not isinstance(rows, PlaneRows) or not isinstance(kd_loss, KDLoss) or type(kd_loss) is not KDLoss:
            return super().distilled(kd_loss, rows, weights, scales)
        if scales is not None or kd_loss.scale not in (UNSCALED, SCALES_SOUPS):
            return super().distilled(kd_loss, rows, weights, scales)
        if kd_loss.combine != "logits" or kd_loss.temperature > CANCELS_ABOVE or rows.teacher_planes is None:
            return super().distilled(kd_loss, rows, weights)
        student, teachers = at_least_float32(rows.planes), at_least_float32(rows.teacher_planes)
        shares = normalised_weights(weights, teachers)
        teacher = teachers.mean(0) if weights is None else torch.tensordot(shares, teachers, 1)
        return kd_loss_of_planes(student, teacher, rows.valid, kd_loss.temperature)

    @override
    def check(self, output: Shaped[Tensor, "N ..."], targets: Shaped[Tensor, "N ..."], model: str) -> None:
        if output.dim() < 3:
            raise ArgumentError(
                f"task=dense needs logits (N, K, ...) with one score a class for each pixel, but those of {model} have "
                f"{tuple(output.shape)}. Use task='multiclass' for one label a sample, or say with logits_key which "
                "part of the output holds them."
            )
        self.check_scores(output.shape[1], model)
        places = (len(output), *output.shape[2:])
        if targets.is_floating_point() or targets.shape not in (places, (places[0], 1, *places[1:])):
            raise ArgumentError(
                f"Logits of {model} of shape {tuple(output.shape)} need targets of class indices of shape {places}, "
                f"but these are {targets.dtype} of shape {tuple(targets.shape)}. Let the network scale its logits to "
                "the targets' size, or say with target_key which part the targets are."
            )

    @override
    def metrics(self, num_classes: int, num_units: int | None = None) -> dict[str, Metric]:
        """``acc`` of all pixels, and ``miou``: the mean over classes, those that neither has left out."""
        from lightning_ckptkd.tasks.metrics import RowJaccard  # with torchmetrics, which is slow to import

        return {**super().metrics(num_classes, num_units), "miou": RowJaccard(num_classes, self.ignore_index)}


class Tokens(Placewise):
    """One of K classes for each token: logits (N, L, K), targets (N, L), integers of any type.

    Args:
        ignore_index: Tokens with this target (padding, parts of words) are left out of losses, metrics and I(Y;F).
        class_weights: What each class counts in the hard loss, K numbers; None: all the same.
        label_smoothing: Of the hard loss, in [0, 1).

    Raises:
        ArgumentError: If an argument can't be used.
    """

    name: ClassVar[str] = "tokens"

    @override
    def flatten(self, output: Float[Tensor, "*lead N L K"], lead: int = 0) -> Float[Tensor, "*lead P K"]:
        return output.flatten(lead, lead + 1)

    @override
    def flatten_targets(self, targets: Shaped[Tensor, "N L"]) -> Int[Tensor, " P"]:
        return targets.reshape(-1).long()

    @override
    def check(self, output: Shaped[Tensor, "N ..."], targets: Shaped[Tensor, "N ..."], model: str) -> None:
        if output.dim() != 3:
            raise ArgumentError(
                f"task={self.name} needs logits (N, L, K) with one score a class for each token, but those of {model} "
                f"have {tuple(output.shape)}. Use task='multiclass' for one label a sample, or say with logits_key "
                "which part of the output holds them."
            )
        self.check_scores(output.shape[2], model)
        if targets.is_floating_point() or targets.shape != output.shape[:2]:
            raise ArgumentError(
                f"Logits of {model} of shape {tuple(output.shape)} need targets of class indices of shape "
                f"{tuple(output.shape[:2])}, but these are {targets.dtype} of shape {tuple(targets.shape)}. Give one "
                "target a token, with ignore_index where there is none, or say with target_key which part they are."
            )
