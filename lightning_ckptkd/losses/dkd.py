"""Decoupled knowledge distillation (Zhao, Cui, Song, Qiu and Liang, CVPR 2022, arXiv 2203.08679)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses.arguments import check_term_weight, tempered_pair
from lightning_ckptkd.losses.base import LogitLoss
from lightning_ckptkd.losses.scale import NONE
from lightning_ckptkd.shapes import Float, Shaped


def dkd_loss(
    student_logits: Float[Tensor, "N K"],
    teacher_logits: Float[Tensor, "N K"],
    target: Shaped[Tensor, " N"],
    temperature: float,
    alpha: float = 1.0,
    beta: float | Float[Tensor, " N"] = 8.0,
) -> Float[Tensor, ""]:
    r"""T^2 * (alpha * TCKD + beta * NCKD), the mean over samples, in nats.

    With p and q the teacher's and the student's probabilities at temperature T, and y the target:
    TCKD = KL((p_y, 1 - p_y) || (q_y, 1 - q_y)), and NCKD = KL(p^ || q^), where p^ and q^ are p and q over the classes
    other than y, normalised to 1. KD is TCKD + (1 - p_y) * NCKD: beta takes the place of the factor that makes NCKD
    small where the teacher is sure. All is done on logarithms, in float32 at least, also under autocast.

    The authors raise the loss's weight linearly from 0 in the first epochs; that is left to the caller.

    Args:
        student_logits: Shape (N, K), K >= 2.
        teacher_logits: Shape (N, K).
        target: y, class indices below K, shape (N,).
        temperature: T > 0.
        alpha: Weight of TCKD.
        beta: Weight of NCKD, one for all or one for each sample, shape (N,).

    Returns:
        Shape ().

    Raises:
        ArgumentError: If an argument can't be used.
    """
    check_types(dkd_loss, locals())
    student, teacher = tempered_pair(student_logits, teacher_logits, temperature)
    if target.shape != student.shape[:1] or target.is_floating_point():
        raise ArgumentError(
            f"target should be class indices of shape ({len(student)},), but is {target.dtype} of shape "
            f"{tuple(target.shape)}. Give one class a sample, as target.long() where numbers are classes, or use "
            "KDLoss, DISTLoss or MSELoss, which need no target."
        )
    if student.shape[1] < 2:
        raise ArgumentError("student_logits are of 1 class: DKD needs one other than the target. Use another loss.")
    (student_target, student_others), (teacher_target, teacher_others) = (
        _split(student, target),
        _split(teacher, target),
    )
    tckd = F.kl_div(student_target, teacher_target, reduction="none", log_target=True).sum(1)
    nckd = F.kl_div(student_others, teacher_others, reduction="none", log_target=True).sum(1)
    return (alpha * tckd + beta * nckd).mean() * temperature**2


def _split(
    logits: Float[Tensor, "N K"], target: Shaped[Tensor, " N"]
) -> tuple[Float[Tensor, "N 2"], Float[Tensor, "N K-1"]]:
    """Log-probabilities of (target, any other class), (N, 2), and among the others, (N, K - 1)."""
    target = target.long().unsqueeze(1)
    others = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, others + (others >= target).long())
    # log p_y and log(1 - p_y) of the log-odds: no difference of nearly equal numbers
    log_odds = logits.gather(1, target) - torch.logsumexp(others, 1, keepdim=True)
    return F.logsigmoid(torch.cat([log_odds, -log_odds], 1)), F.log_softmax(others, dim=1)


class DKDLoss(LogitLoss):
    """:func:`dkd_loss` as a module; it needs the target.

    Args:
        temperature: T > 0.
        combine: See :class:`LogitLoss`.
        alpha: Weight of TCKD, 0 or more.
        beta: Weight of NCKD, 0 or more.
        scale: See :class:`LogitLoss`.

    Raises:
        ArgumentError: If an argument can't be used.
    """

    def __init__(
        self,
        temperature: float = 5.0,
        combine: str = "logits",
        alpha: float = 1.0,
        beta: float = 8.0,
        scale: float | str = NONE,
    ) -> None:
        super().__init__(temperature, combine, scale)
        check_types(DKDLoss.__init__, locals())
        check_term_weight("alpha", alpha)
        check_term_weight("beta", beta)
        self.alpha, self.beta = alpha, beta

    @override
    def pair(
        self,
        student_logits: Float[Tensor, "N K"],
        teacher_logits: Float[Tensor, "N K"],
        target: Shaped[Tensor, "N ..."] | None,
    ) -> Float[Tensor, ""]:
        if target is None:
            raise ArgumentError("DKDLoss needs target=, the class indices of the samples, got None.")
        return dkd_loss(student_logits, teacher_logits, target, self.temperature, self.alpha, self.beta)
