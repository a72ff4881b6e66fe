"""What the logits of several teachers become before a loss compares them with the student's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses.arguments import at_least_float32, check_temperature
from lightning_ckptkd.shapes import Float, Num

COMBINATIONS = ("logits", "probabilities")


def normalised_weights(
    weights: Num[Tensor, " M"] | None, teacher_logits: Float[Tensor, "M ..."]
) -> Float[Tensor, " M"]:
    """The teachers' weights, of sum 1, where the logits are and with their dtype, float32 at least.

    Values are checked on the CPU only: elsewhere a check waits for the device.

    Args:
        weights: Shape (M,), each 0 or more and not all 0; None: the same for all.
        teacher_logits: Shape (M, ...).

    Returns:
        Shape (M,).

    Raises:
        ArgumentError: If the weights can't be used, or there is no teacher.
    """
    number = len(teacher_logits)
    dtype = torch.promote_types(teacher_logits.dtype, torch.float32)
    if number == 0:
        raise ArgumentError("teacher_logits should be of one teacher or more, got none.")
    if weights is None:
        return torch.full((number,), 1 / number, dtype=dtype, device=teacher_logits.device)
    if weights.shape != (number,):
        raise ArgumentError(
            f"weights should be one for each teacher, of shape ({number},), but have {tuple(weights.shape)}."
        )
    if weights.device.type == "cpu":
        values = weights.detach().double()
        if not ((values >= 0).all() and values.isfinite().all() and values.any()):
            raise ArgumentError(f"weights should be finite, 0 or more, and not all 0, got {values.tolist()}.")
    weights = weights.to(torch.promote_types(weights.dtype, dtype))
    return (weights / weights.sum()).to(teacher_logits.device, dtype)


def combine_logits(
    teacher_logits: Float[Tensor, "M N K"], how: str, temperature: float, weights: Num[Tensor, " M"] | None = None
) -> Float[Tensor, "N K"]:
    r"""One set of logits for an ensemble, with w_m the weights and t_m the logits of teacher m.

    ``logits``: sum_m w_m t_m, the checkpoint paper's rule. Softmax makes of it the normalised geometric mean of the
    teachers' probabilities. ``probabilities``: T log(sum_m w_m softmax(t_m / T)), so that softmax(result / T) is the
    arithmetic mean of the probabilities at temperature T. Computed in float32 at least, also under autocast.

    Args:
        teacher_logits: Shape (M, N, K).
        how: ``logits`` or ``probabilities``.
        temperature: T > 0, of the probabilities.
        weights: Shape (M,), each 0 or more and not all 0, divided by their sum; None: the same for all.

    Returns:
        Shape (N, K).

    Raises:
        ArgumentError: If an argument can't be used.
    """
    check_types(combine_logits, locals())
    if how not in COMBINATIONS:
        raise ArgumentError(f"how should be one of {', '.join(COMBINATIONS)}, got {how!r}.")
    check_temperature(temperature)
    if teacher_logits.dim() != 3:
        raise ArgumentError(
            f"teacher_logits should have the shape (teachers, samples, classes), but have "
            f"{tuple(teacher_logits.shape)}. Put those of one teacher through unsqueeze(0)."
        )
    logits = at_least_float32(teacher_logits)
    shares = normalised_weights(weights, logits)[:, None, None]
    if how == "logits":
        return (shares * logits).sum(0)
    return temperature * torch.logsumexp(F.log_softmax(logits / temperature, dim=2) + shares.log(), dim=0)
