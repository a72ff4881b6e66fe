"""DIST, distillation from a stronger teacher (Huang, You, Wang, Qian and Xu, NeurIPS 2022, arXiv 2205.10536)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.losses.arguments import check_term_weight, tempered_pair
from lightning_ckptkd.losses.base import LogitLoss
from lightning_ckptkd.losses.scale import NONE, unit_rows
from lightning_ckptkd.shapes import Float, Shaped


def dist_loss(
    student_logits: Float[Tensor, "N K"],
    teacher_logits: Float[Tensor, "N K"],
    temperature: float,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Float[Tensor, ""]:
    r"""T^2 * (beta * inter + gamma * intra).

    With P and Q, of shape (N, K), the teacher's and the student's probabilities at temperature T, and d(u, v) one
    minus Pearson's correlation of u and v: inter is the mean over samples of d(Q[i, :], P[i, :]), intra the mean over
    classes of d(Q[:, j], P[:, j]). T^2 as in the authors' code. Computed in float32 at least, also under autocast.

    The correlation with a row or column that is constant, to rounding, is not defined. It counts as 0, without a
    gradient; so the intra term of a single sample is gamma * T^2 whatever the logits. Near there gradients are
    large, since a correlation does not see how small a spread is.

    Args:
        student_logits: Shape (N, K).
        teacher_logits: Shape (N, K).
        temperature: T > 0.
        beta: Weight of the relations between the classes of a sample.
        gamma: Weight of the relations between the samples of a class.

    Returns:
        Shape ().

    Raises:
        ArgumentError: If an argument can't be used.
    """
    check_types(dist_loss, locals())
    student, teacher = tempered_pair(student_logits, teacher_logits, temperature)
    q, p = F.softmax(student, dim=1), F.softmax(teacher, dim=1)
    return (beta * _distance(q, p) + gamma * _distance(q.T, p.T)) * temperature**2


def _distance(a: Float[Tensor, "N K"], b: Float[Tensor, "N K"]) -> Float[Tensor, ""]:
    """One minus Pearson's correlation, the mean over rows."""
    return 1 - (unit_rows(a) * unit_rows(b)).sum(1).mean()


class DISTLoss(LogitLoss):
    """:func:`dist_loss` as a module; it needs no target.

    Args:
        temperature: T > 0.
        combine: See :class:`LogitLoss`.
        beta: Weight of the relations between the classes of a sample, 0 or more.
        gamma: Weight of the relations between the samples of a class, 0 or more.
        scale: See :class:`LogitLoss`.

    Raises:
        ArgumentError: If an argument can't be used.
    """

    def __init__(
        self,
        temperature: float = 5.0,
        combine: str = "logits",
        beta: float = 1.0,
        gamma: float = 1.0,
        scale: float | str = NONE,
    ) -> None:
        super().__init__(temperature, combine, scale)
        check_types(DISTLoss.__init__, locals())
        check_term_weight("beta", beta)
        check_term_weight("gamma", gamma)
        self.beta, self.gamma = beta, gamma

    @override
    def pair(
        self,
        student_logits: Float[Tensor, "N K"],
        teacher_logits: Float[Tensor, "N K"],
        target: Shaped[Tensor, "N ..."] | None = None,
    ) -> Float[Tensor, ""]:
        return dist_loss(student_logits, teacher_logits, self.temperature, self.beta, self.gamma)
