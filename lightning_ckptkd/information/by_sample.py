"""Means over rows whose errors are by samples: the rows of one sample (pixels, tokens, labels) are no fresh draws.

A mean over rows is a ratio of two means over samples, of what a sample's rows add up to and of how many they are. Its
standard error comes from the values of the linearised ratio (Cochran, *Sampling Techniques*, 1977, section 6.4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_ckptkd.shapes import Float, Int, Shaped


def sum_by_sample(
    values: Shaped[Tensor, " R"], samples: Int[Tensor, " R"], num_samples: int
) -> Float[Tensor, "{num_samples}"]:
    """What the rows of each sample add up to.

    Args:
        values: Of each row, shape (R,).
        samples: Sample of each row, shape (R,).
        num_samples: Number of samples N; one may have no row.

    Returns:
        Shape (N,), float64.
    """
    return values.new_zeros(num_samples, dtype=torch.float64).index_add_(0, samples, values.double())


def values_by_sample(totals: Shaped[Tensor, " N"], counts: Shaped[Tensor, " N"]) -> Float[Tensor, " N"]:
    """A value for each sample, such that their mean is the mean over all rows, and their spread its error by samples.

    With I the mean over R rows of N samples, sample n has I + (total_n - I count_n) / (R / N).

    Args:
        totals: What the rows of each sample add up to, shape (N,).
        counts: Number of rows of each sample, shape (N,), not all 0.

    Returns:
        Shape (N,), float64; the totals themselves where each sample has one row.
    """
    totals, counts = totals.double(), counts.double()
    if bool((counts == 1).all()):
        return totals
    mean = totals.sum() / counts.sum()
    return mean + (totals - mean * counts) / counts.mean()


def gains_by_sample(
    gains: Float[Tensor, " R"], samples: Int[Tensor, " R"], num_samples: int, units: Int[Tensor, " R"] | None = None
) -> Float[Tensor, "{num_samples}"]:
    """What each sample adds to a term that is the sum over units of the mean over the unit's rows.

    Each row's part is its distance from the mean of its unit (the influence of a row on that mean), so that standard
    errors over samples are right also where samples differ in their number of rows.

    Args:
        gains: Of each row in nats, shape (R,).
        samples: The sample of each row, shape (R,).
        num_samples: N. A sample without a row changes nothing: it gets the term itself.
        units: The unit of each row, shape (R,); None: one for all.

    Returns:
        Nats, shape (N,), float64, whose mean is the term.
    """
    gains = gains.double()
    units = torch.zeros_like(samples) if units is None else units
    counts = torch.bincount(units).clamp_min(1)
    means = gains.new_zeros(len(counts)).index_add_(0, units, gains) / counts
    parts = (gains - means[units]) * num_samples / counts[units]
    return means.sum() + gains.new_zeros(num_samples).index_add_(0, samples, parts)
