"""Knowledge distillation on logits (Hinton, Vinyals and Dean 2015, arXiv 1503.02531)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.losses.arguments import logit_pair, tempered_pair
from lightning_ckptkd.losses.base import LogitLoss
from lightning_ckptkd.losses.scale import AUTO
from lightning_ckptkd.shapes import Bool, Float, Shaped

CANCELS_ABOVE = 10.0  # temperature from which on float32 leaves too little of a sum whose terms cancel


def kd_loss(
    student_logits: Float[Tensor, "N K"], teacher_logits: Float[Tensor, "N K"], temperature: float
) -> Float[Tensor, ""]:
    r"""T^2 * KL(softmax(t / T) || softmax(s / T)), the mean over samples, in nats.

    T^2 keeps the gradient's size independent of T. Computed in float32 at least, also under autocast. Above T = 10 the
    value is summed in a form that does not cancel, with the gradient of the usual one.

    Args:
        student_logits: s, shape (N, K).
        teacher_logits: t, shape (N, K): of one teacher, or the mean over an ensemble (the checkpoint paper's rule).
        temperature: T > 0.

    Returns:
        Shape ().

    Raises:
        ArgumentError: If an argument can't be used.
    """
    check_types(kd_loss, locals())
    student, teacher = tempered_pair(student_logits, teacher_logits, temperature)
    divergence = F.kl_div(
        F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1), reduction="batchmean", log_target=True
    )
    if temperature > CANCELS_ABOVE:
        exact = _divergence(*logit_pair(student_logits.detach(), teacher_logits.detach()), temperature)
        exact = torch.where(exact.isfinite(), exact, divergence)  # logits so far apart that exp overflows do not cancel
        divergence = exact.detach() + (divergence - divergence.detach())
    return divergence * temperature**2


def kd_loss_of_planes(
    student: Float[Tensor, "N K L"],
    teacher: Float[Tensor, "N K L"],
    valid: Bool[Tensor, "N L"] | None,
    temperature: float,
) -> Float[Tensor, ""]:
    """:func:`kd_loss` of pixels whose classes lie as planes, up to a temperature of 10.

    Args:
        student: Shape (N, K, L).
        teacher: Likewise.
        valid: Pixels that count, shape (N, L), bool; None for all.
        temperature: T, above 0.

    Returns:
        Shape (): the mean over pixels that count; 0 where none does.
    """
    log_q, log_p = F.log_softmax(student / temperature, dim=1), F.log_softmax(teacher / temperature, dim=1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(1)
    if valid is None:
        return divergence.mean() * temperature**2
    return (divergence * valid).sum() / valid.sum().clamp_min(1) * temperature**2


def _divergence(student: Float[Tensor, "N K"], teacher: Float[Tensor, "N K"], temperature: float) -> Float[Tensor, ""]:
    """KL(p || q) as the mean over samples of sum_k p_k (e^u_k - 1 - u_k), u = log(q / p): no term is negative."""
    difference = (student - teacher) / temperature
    p = F.softmax(teacher / temperature, dim=1)
    u = difference - torch.log1p((p * torch.expm1(difference)).sum(1, keepdim=True))
    series = u * u * (1 / 2 + u * (1 / 6 + u * (1 / 24 + u * (1 / 120 + u / 720))))
    return (p * torch.where(u.abs() < 0.1, series, torch.expm1(u) - u)).sum(1).mean()


class KDLoss(LogitLoss):
    """:func:`kd_loss` as a module; it needs no target.

    Args:
        temperature: T > 0.
        combine: See :class:`LogitLoss`.
        scale: Likewise.
    """

    def __init__(self, temperature: float = 5.0, combine: str = "logits", scale: float | str = AUTO) -> None:
        check_types(KDLoss.__init__, locals())
        super().__init__(temperature, combine, scale)

    @override
    def pair(
        self,
        student_logits: Float[Tensor, "N K"],
        teacher_logits: Float[Tensor, "N K"],
        target: Shaped[Tensor, "N ..."] | None = None,
    ) -> Float[Tensor, ""]:
        return kd_loss(student_logits, teacher_logits, self.temperature)
