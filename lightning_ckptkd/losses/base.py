"""A loss between a student's logits and those of one teacher or several."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses.arguments import check_temperature
from lightning_ckptkd.losses.combine import COMBINATIONS, combine_logits, normalised_weights
from lightning_ckptkd.losses.scale import NONE, STANDARDISED, check_scale, scaled, standardised
from lightning_ckptkd.shapes import Float, Num, Shaped

PER_TEACHER = "per_teacher"


class LogitLoss(nn.Module, ABC):
    """Compare the student with a combination of its teachers, or with each of them.

    A subclass implements :meth:`pair`. Losses are computed in float32 at least, also under autocast, and gradients
    reach whatever logits ask for them.

    Args:
        temperature: T > 0.
        combine: ``logits`` or ``probabilities``: the loss of :func:`combine_logits`. ``per_teacher``: the mean over
            teachers of the loss with each.
        scale: What the teachers' logits are multiplied by before that: a number, or ``none``; ``fitted``, each
            teacher's by its own, so that its fitted temperature is the last snapshot's, as ``selection.json`` has them
            (see :func:`.fitted_scales`); ``auto``, a soup's as by ``fitted`` and others as they are; or
            ``standardised``: the teachers' logits (their combination) and the student's are standardised over the
            classes of each sample, see :func:`.losses.scale.standardised`.

    Raises:
        ArgumentError: If an argument can't be used.
    """

    def __init__(self, temperature: float = 5.0, combine: str = "logits", scale: float | str = NONE) -> None:
        super().__init__()
        check_types(LogitLoss.__init__, locals())
        check_temperature(temperature)
        choices = (*COMBINATIONS, PER_TEACHER)
        if combine not in choices:
            raise ArgumentError(f"combine should be one of {', '.join(choices)}, got {combine!r}.")
        self.temperature = temperature
        self.combine = combine
        self.scale = check_scale(scale)

    @abstractmethod
    def pair(
        self,
        student_logits: Float[Tensor, "N K"],
        teacher_logits: Float[Tensor, "N K"],
        target: Shaped[Tensor, "N ..."] | None,
    ) -> Float[Tensor, ""]:
        """The loss with one teacher, the mean over samples.

        Args:
            student_logits: Shape (N, K).
            teacher_logits: Shape (N, K).
            target: Class indices, shape (N,), or None where the caller has none.

        Returns:
            Shape ().
        """

    def combined(
        self, teacher_logits: Float[Tensor, "M N K"], weights: Num[Tensor, " M"] | None
    ) -> Float[Tensor, "N K"]:
        """What :meth:`pair` gets as the teacher's logits: (N, K) of (M, N, K)."""
        return combine_logits(teacher_logits, self.combine, self.temperature, weights)

    @override
    def forward(
        self,
        student_logits: Float[Tensor, "N K"],
        teacher_logits: Float[Tensor, "M N K"] | Float[Tensor, "N K"],
        target: Shaped[Tensor, "N ..."] | None = None,
        weights: Num[Tensor, " M"] | None = None,
        scales: Num[Tensor, " M"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of a batch; 0 where it has no sample, as where no pixel of it has a label.

        Args:
            student_logits: Shape (N, K).
            teacher_logits: Shape (M, N, K), or (N, K) of one teacher.
            target: Class indices, shape (N,); None where the loss does not need them.
            weights: Of the teachers, shape (M,), each 0 or more and not all 0, divided by their sum; None: the same
                for all.
            scales: What the logits of each teacher are multiplied by, shape (M,), for ``scale`` ``fitted`` or ``auto``.

        Returns:
            Shape ().

        Raises:
            ArgumentError: If an argument can't be used.
        """
        teachers = teacher_logits.unsqueeze(0) if teacher_logits.dim() == 2 else teacher_logits
        if student_logits.dim() != 2 or teachers.shape[1:] != student_logits.shape:
            raise ArgumentError(
                "student_logits should have the shape (samples, classes) and teacher_logits (teachers, samples, "
                f"classes), or the student's, but they have {tuple(student_logits.shape)} and "
                f"{tuple(teacher_logits.shape)}. Give both the same samples, and the student the teachers' number of "
                "classes."
            )
        if not len(student_logits):
            return student_logits.sum() * 0
        teachers = scaled(teachers, self.scale, scales)
        student = standardised(student_logits) if self.scale == STANDARDISED else student_logits
        if self.combine != PER_TEACHER:
            return self._pair(student, self.combined(teachers, weights), target)
        shares = normalised_weights(weights, teachers)
        losses = torch.stack([self._pair(student, teacher, target) for teacher in teachers])
        return (losses * shares).sum()

    def _pair(
        self, student: Float[Tensor, "N K"], teacher: Float[Tensor, "N K"], target: Shaped[Tensor, "N ..."] | None
    ) -> Float[Tensor, ""]:
        return self.pair(student, standardised(teacher) if self.scale == STANDARDISED else teacher, target)
