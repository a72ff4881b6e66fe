r"""No sample and no unit decides alone: values far outside of all others are pulled in before anything is fitted.

A fence lies half of the range of the middle samples outside of that range (Tukey's fences, with nearly all samples in
the middle: normal values are within it but for one in a million or so). What is done is a function of F alone, or of X
alone, so that no estimate becomes too large by it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_ckptkd.shapes import Bool, Float, Int, Num

_AT_ONCE = 2**18  # numbers of rows that are in memory in float64 at one time
_OUTSIDE = 0.005  # share of the samples that is left out at each end
_LEAST_OUTSIDE = 5  # samples, likewise
_BEYOND = 0.5  # of the range of the middle samples
_OUTLYING = 0.2  # share of its units by which a sample as a whole is outside: half of the units of a ReLU are zero
_DECIDES = 20.0  # times what a slope is fitted to: one sample of 2,000 then costs more than a nat of ten dimensions


def winsorise(features: Num[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Pull what is outside of its unit's fence to the fence.

    Args:
        features: Shape (N, D).

    Returns:
        Shape (N, D), float64.
    """
    values = features.double()
    return values.clamp(*fences(values))


def outlying_samples(features: Num[Tensor, "N D"]) -> Bool[Tensor, " N"]:
    """Which samples have a fifth of their units or more outside of the fences, shape (N,), bool.

    Args:
        features: Shape (N, D).
    """
    values = features.double()
    return (values != winsorise(values)).double().mean(1) >= _OUTLYING


def deciding_units(features: Num[Tensor, "N D"], folds: Int[Tensor, " N"]) -> Bool[Tensor, " D"]:
    """Which units would let one sample decide, shape (D,), bool: those that are almost always the same.

    Of such a unit a sample of a fold is many times as far from the rest as all samples that its slope is fitted to
    are together.

    Args:
        features: Shape (N, D).
        folds: Fold of each sample, shape (N,).
    """
    usual = ~outlying_samples(features)
    values, folds = features[usual].double(), folds[usual]
    found = torch.zeros(features.shape[1], dtype=torch.bool, device=features.device)
    for fold in range(int(folds.max()) + 1):
        fit, held_out = values[folds != fold], values[folds == fold]
        if not len(fit) or not len(held_out):
            continue
        mean = fit.mean(0)
        together, farthest = (fit - mean).square().sum(0).sqrt(), (held_out - mean).abs().amax(0)
        found |= (farthest > _DECIDES * together) & (together > 1e-9 * farthest)
    return found


def pull_in(vectors: Num[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Move vectors that are farther from the median than the fence towards it, each as a whole.

    For inputs and logits, of which a single number may well be rare and large: directions stay as they are.

    Args:
        vectors: Shape (N, D).

    Returns:
        Shape (N, D), float64; the very same values where none is outside.
    """
    values = vectors.double()
    if not values.shape[1]:
        return values
    centre = values.median(0).values
    differences = values - centre
    lengths = differences.square().sum(1, keepdim=True).sqrt()
    fence = fences(lengths)[1]
    outside = lengths > fence
    return torch.where(outside, centre + differences * (fence / lengths.clamp_min(1e-300)), values)


def within_fence(rows: Float[Tensor, "R K"]) -> Float[Tensor, "R K"]:
    """Logits, or feature maps, whose spread is far outside of that of all others, scaled down to the fence.

    Args:
        rows: Shape (R, K).

    Returns:
        Shape (R, K); the very same rows where none is outside.
    """
    size = max(1, _AT_ONCE // max(1, rows.shape[1]))
    spread = torch.cat([some.double().std(1, correction=0) for some in torch.split(rows, size)])[:, None]
    fence = fences(spread)[1]
    outside = spread > fence
    if not bool(outside.any()):
        return rows
    return rows * torch.where(outside, fence / spread.clamp_min(1e-300), 1.0).to(rows.dtype)


def fences(values: Float[Tensor, "N D"]) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """The fences of each column of values (N, D), float64: the lower and the upper ones, shapes (D,)."""
    count = len(values)
    cut = min(max(math.ceil(_OUTSIDE * count), _LEAST_OUTSIDE), (count - 1) // 4)
    columns = values.T.contiguous()
    low, high = (columns.topk(cut + 1, 1, largest=largest).values.T[-1] for largest in (False, True))
    beyond = _BEYOND * (high - low)
    return low - beyond, high + beyond


def _deviation(values: Float[Tensor, "N D"]) -> Float[Tensor, " D"]:
    return (values - values.mean(0)).square().mean(0).sqrt()
