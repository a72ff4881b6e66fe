"""Knowledge distillation on logits (Hinton, Vinyals and Dean 2015, arXiv 1503.02531)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    r"""T^2 * KL(softmax(t / T) || softmax(s / T)), the mean over samples, in nats.

    T^2 keeps the gradient's size independent of T. Computed in float32 at least, also under autocast.

    Args:
        student_logits: s, shape (N, K).
        teacher_logits: t, shape (N, K): of one teacher, or the mean over an ensemble (the checkpoint paper's rule).
        temperature: T > 0.

    Returns:
        Shape ().
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


class KDLoss(nn.Module):
    """:func:`kd_loss` as a module.

    Args:
        temperature: T > 0.
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """The loss of a batch; shapes as in :func:`kd_loss`."""
        return kd_loss(student_logits, teacher_logits, self.temperature)
