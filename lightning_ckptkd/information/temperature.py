"""The temperature that makes a network's probabilities fit held-out labels best (Guo et al., ICML 2017)."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_ckptkd.information.blocks import blocks, one_thread
from lightning_ckptkd.shapes import Float, Int

COLDEST, HOTTEST = 2.0**-4, 2.0**6  # where no temperature is the best (all labels foretold, or worse than chance)
_FEW, _SHARE = 4096, 16  # logits from which on the search begins on a part of the rows, and one in how many
_STEPS, _PRECISION = 60, 1e-6


@one_thread()
def fitted_temperature(logits: Float[Tensor, "R K"], labels: Int[Tensor, " R"] | Float[Tensor, "R K"]) -> float:
    """The T between 1/16 and 64 with the lowest mean cross-entropy of softmax(logits / T).

    The cross-entropy is convex in 1 / T; its root is found by Newton's steps in a bracket. Of many rows they begin at
    the root of a part of them, so that two or three steps are left.

    Args:
        logits: Shape (R, K).
        labels: Class indices below K, shape (R,); or shares of the classes, shape (R, K).

    Returns:
        T; an end of the range where the cross-entropy still falls there, 1 where it does not depend on T.
    """
    few = len(logits) > _SHARE and logits.numel() > _SHARE * _FEW
    return _newton(logits, labels, 1 / _newton(logits[::_SHARE], labels[::_SHARE], 1.0) if few else 1.0)


def _newton(logits: Float[Tensor, "R K"], labels: Int[Tensor, " R"] | Float[Tensor, "R K"], inverse: float) -> float:
    """T, sought from a given 1 / T on."""
    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(_STEPS):
        slope, curvature = _derivatives(logits, labels, inverse)
        if slope == 0 and curvature == 0:
            return 1 / inverse
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = inverse - slope / curvature if curvature > 0 else math.inf
        step = step if low < step < high else math.sqrt(low * high)
        if abs(step - inverse) <= _PRECISION * inverse:
            return 1 / step
        inverse = step
    return 1 / inverse


def _derivatives(
    logits: Float[Tensor, "R K"], labels: Int[Tensor, " R"] | Float[Tensor, "R K"], inverse: float
) -> tuple[float, float]:
    """The first two derivatives of the mean cross-entropy by 1 / T."""
    slope = curvature = 0.0
    for rows in blocks(logits):
        some, truth = logits[rows], labels[rows]
        wide = some.double()
        right = (
            (truth.double() * wide).sum(1) if truth.dim() == 2 else wide.gather(1, truth.unsqueeze(1).long()).squeeze(1)
        )
        share = (wide * inverse).softmax(1)
        mean = (share * wide).sum(1)
        slope += float((mean - right).sum())
        curvature += float((share * (wide - mean.unsqueeze(1)).square()).sum())
    return slope / len(logits), curvature / len(logits)
