"""Regression on logits (Ba and Caruana, NeurIPS 2014, arXiv 1312.6184)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.losses.arguments import logit_pair
from lightning_ckptkd.losses.base import LogitLoss
from lightning_ckptkd.losses.combine import combine_logits
from lightning_ckptkd.shapes import Float, Num, Shaped


def mse_loss(student_logits: Float[Tensor, "N K"], teacher_logits: Float[Tensor, "N K"]) -> Float[Tensor, ""]:
    r"""The mean over samples of ||s - t||^2 / K, that is the mean of (s - t)^2 over all N * K logits.

    The paper has the mean over samples of ||s - t||^2 / 2, which is K / 2 times this. For large T, and logits that
    are centred over classes, T^2 * KL of KD tends to half of this. Computed in float32 at least, also under autocast.

    Args:
        student_logits: s, shape (N, K).
        teacher_logits: t, shape (N, K).

    Returns:
        Shape ().

    Raises:
        ArgumentError: If an argument can't be used.
    """
    check_types(mse_loss, locals())
    return F.mse_loss(*logit_pair(student_logits, teacher_logits))


class MSELoss(LogitLoss):
    """:func:`mse_loss` as a module; it needs no target.

    Args:
        temperature: T > 0; of use with ``probabilities`` only.
        combine: See :class:`LogitLoss`. With ``probabilities``, which leave open what is added to all logits of a
            sample, that is chosen such that their mean over classes is the teachers'. So one teacher stays as it is.
        scale: See :class:`LogitLoss`.
    """

    @override
    def pair(
        self,
        student_logits: Float[Tensor, "N K"],
        teacher_logits: Float[Tensor, "N K"],
        target: Shaped[Tensor, "N ..."] | None = None,
    ) -> Float[Tensor, ""]:
        return mse_loss(student_logits, teacher_logits)

    @override
    def combined(
        self, teacher_logits: Float[Tensor, "M N K"], weights: Num[Tensor, " M"] | None
    ) -> Float[Tensor, "N K"]:
        logits = super().combined(teacher_logits, weights)
        if self.combine == "logits":
            return logits
        mean = combine_logits(teacher_logits, "logits", self.temperature, weights).mean(1, keepdim=True)
        return logits - logits.mean(1, keepdim=True) + mean
