"""How large logits are when a loss compares them at its temperature.

Snapshots differ in that, and at a fixed T those with small logits teach weakly for that alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_ckptkd.errors import ArgumentError, near_names
from lightning_ckptkd.losses.arguments import at_least_float32
from lightning_ckptkd.shapes import Float, Num

NONE, FITTED, STANDARDISED, AUTO = "none", "fitted", "standardised", "auto"
SCALES = (NONE, FITTED, STANDARDISED, AUTO)
_ROUNDING = 16  # machine epsilons within which a row counts as constant


def check_scale(scale: float | str) -> float | str:
    """A scale as losses take it.

    Raises:
        ArgumentError: If it is neither a name nor a number above 0.
    """
    if isinstance(scale, str):
        if scale not in SCALES:
            near = near_names(scale, SCALES)
            raise ArgumentError(f"scale={scale!r} is unknown: give a number, or one of these. Near names: {near}.")
        return scale
    if isinstance(scale, bool) or not (scale > 0 and math.isfinite(scale)):
        raise ArgumentError(f"scale should be above 0, or one of {', '.join(SCALES)}, got {scale}.")
    return float(scale)


def standardised(logits: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    r"""Logit standardisation (Sun et al., CVPR 2024, arXiv 2403.01427): (x - mean) / sigma over the classes of a row.

    sigma is that of the row's K logits, with 1 / K, as the paper has it. Computed in float32 at least. A row that is
    constant, to rounding, has no spread: it becomes 0, without a gradient.

    Args:
        logits: Shape (N, K), K 3 or more.

    Returns:
        Shape (N, K): rows of mean 0 and variance 1.

    Raises:
        ArgumentError: If there are two classes or fewer: of two logits the larger would be 1 and the other -1, whatever
            they are.
    """
    if logits.shape[-1] < 3:
        raise ArgumentError(
            f"scale='standardised' needs three classes or more, got {logits.shape[-1]}: of two it leaves only which is "
            "larger. Use scale='fitted', a number, or 'none'."
        )
    return unit_rows(at_least_float32(logits)) * float(logits.shape[-1] ** 0.5)


def unit_rows(rows: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """Each row (N, K) less its mean and scaled to norm 1, or 0 where it is constant."""
    centred = rows - rows.mean(1, keepdim=True)
    norm = torch.linalg.vector_norm(centred, dim=1, keepdim=True)
    info = torch.finfo(rows.dtype)
    rounding = _ROUNDING * info.eps * torch.linalg.vector_norm(rows.detach(), dim=1, keepdim=True)
    varies = norm > rounding.clamp_min(info.tiny**0.5)  # below, squares underflow
    return torch.where(varies, centred / torch.where(varies, norm, 1), 0)


def scaled(
    teacher_logits: Float[Tensor, "M N K"], scale: float | str, scales: Num[Tensor, " M"] | None
) -> Float[Tensor, "M N K"]:
    """The teachers' logits (M, N, K) times a number, or each teacher's times its own.

    Args:
        teacher_logits: Shape (M, N, K).
        scale: As a loss has it.
        scales: Of each teacher, shape (M,), for ``fitted``, and for ``auto`` where a soup teaches.

    Raises:
        ArgumentError: If ``fitted`` has no scales, or something else has.
    """
    fits = scales is not None and scales.shape == teacher_logits.shape[:1]
    if (scale == FITTED and not fits) or (scale == AUTO and scales is not None and not fits):
        raise ArgumentError(
            f"scale={scale!r} needs scales=, one for each of {len(teacher_logits)} teachers, got "
            f"{None if scales is None else tuple(scales.shape)}. DistillationModule takes them from selection.json; "
            "elsewhere give scale= a number."
        )
    if scale not in (FITTED, AUTO) and scales is not None:
        raise ArgumentError(f"scales= go with scale='fitted', got scale={scale!r}. Leave one out.")
    if scales is not None:
        logits = at_least_float32(teacher_logits)
        return logits * scales.to(logits.device, logits.dtype)[:, None, None]
    return teacher_logits if isinstance(scale, str) else at_least_float32(teacher_logits) * scale
