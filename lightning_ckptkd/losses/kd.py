"""Knowledge distillation on logits (Hinton, Vinyals and Dean 2015, arXiv 1503.02531)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lightning_ckptkd.losses.arguments import tempered_pair
from lightning_ckptkd.losses.base import LogitLoss


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    r"""T^2 * KL(softmax(t / T) || softmax(s / T)), the mean over samples, in nats.

    T^2 keeps the gradient's size independent of T. Computed in float32 at least, also under autocast.

    Args:
        student_logits: s, shape (N, K).
        teacher_logits: t, shape (N, K): of one teacher, or the mean over an ensemble (the checkpoint paper's rule).
        temperature: T > 0.

    Returns:
        Shape ().

    Raises:
        ArgumentError: If an argument can't be used.
    """
    student, teacher = tempered_pair(student_logits, teacher_logits, temperature)
    divergence = F.kl_div(
        F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1), reduction="batchmean", log_target=True
    )
    return divergence * temperature**2


class KDLoss(LogitLoss):
    """:func:`kd_loss` as a module; it needs no target.

    Args:
        temperature: T > 0.
        combine: See :class:`LogitLoss`.
    """

    @override
    def pair(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor | None = None) -> Tensor:
        return kd_loss(student_logits, teacher_logits, self.temperature)
