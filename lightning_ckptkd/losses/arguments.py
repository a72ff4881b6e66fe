"""What every loss asks of its arguments, and the precision that it computes in."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.shapes import Float, Shaped


def check_temperature(temperature: float) -> None:
    """Check that logits can be divided by a temperature.

    Raises:
        ArgumentError: If it is not above 0 and finite.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ArgumentError(f"temperature should be above 0, got {temperature}.")


def check_term_weight(name: str, value: float) -> None:
    """Check the weight of a loss's term.

    Raises:
        ArgumentError: If it is negative or not finite.
    """
    if not (value >= 0 and math.isfinite(value)):
        raise ArgumentError(f"{name} should be 0 or more, got {value}.")


def at_least_float32(tensor: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The tensor in float32, or in float64 where it is that already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def in_one_precision(
    first: Shaped[Tensor, "*first"], second: Shaped[Tensor, "*second"]
) -> tuple[Float[Tensor, "*first"], Float[Tensor, "*second"]]:
    """Both in float32, or in float64 where one of them is that already."""
    dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    return first.to(dtype), second.to(dtype)


def logit_pair(
    student_logits: Float[Tensor, "N K"], teacher_logits: Float[Tensor, "N K"]
) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"]]:
    """Both logits, checked, in one precision: float32 at least.

    Args:
        student_logits: Shape (N, K).
        teacher_logits: Shape (N, K).

    Raises:
        ArgumentError: If they are not of that shape.
    """
    if student_logits.dim() != 2 or student_logits.shape != teacher_logits.shape:
        raise ArgumentError(
            "student_logits and teacher_logits should both have the shape (samples, classes), but have "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}. Give both the same samples, and the "
            "student the teacher's number of classes."
        )
    return in_one_precision(student_logits, teacher_logits)


def tempered_pair(
    student_logits: Float[Tensor, "N K"], teacher_logits: Float[Tensor, "N K"], temperature: float
) -> tuple[Float[Tensor, "N K"], Float[Tensor, "N K"]]:
    """:func:`logit_pair` divided by T.

    Args:
        student_logits: Shape (N, K).
        teacher_logits: Shape (N, K).
        temperature: T > 0.

    Raises:
        ArgumentError: If an argument can't be used.
    """
    check_temperature(temperature)
    student, teacher = logit_pair(student_logits, teacher_logits)
    return student / temperature, teacher / temperature
