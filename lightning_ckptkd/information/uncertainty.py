"""Standard errors over probe samples, by a jackknife that leaves out one group of samples at a time.

What every estimator here gives is a mean over samples. Kept are that mean and the means without each of a few groups,
from which any function of it (a normalised score, the difference of two) gets its standard error, without the samples.
The error is that of the finite probe set, with the fitted decoders taken as they are.
"""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor

from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.shapes import Float

NUM_GROUPS = 20


def leave_one_out(
    values: Float[Tensor, " N"], seed: int, num_groups: int = NUM_GROUPS
) -> Float[Tensor, "{num_groups}"]:
    """The mean without each group of samples in turn, shape (G,), float64.

    Args:
        values: Of each sample, shape (N,), N at least G.
        seed: Of the groups; the same seed and N give the same groups.
        num_groups: Number of groups G, two or more.
    """
    groups = assign_folds(len(values), num_groups, seed).to(values.device)
    sums = values.new_zeros(num_groups, dtype=torch.float64).index_add_(0, groups, values.double())
    return (sums.sum() - sums) / (len(values) - torch.bincount(groups))


def jackknife_error(replicates: Float[Tensor, "G *statistic"]) -> Float[Tensor, "*statistic"]:
    """Standard error of a statistic, shape (...).

    Args:
        replicates: The statistic without each group in turn, shape (G, ...).
    """
    count = len(replicates)
    return ((count - 1) / count * (replicates - replicates.mean(0)).square().sum(0)).sqrt()


def student_quantile(share: float, degrees: int) -> float:
    """Of Student's t, since a jackknife of few groups is not sure of its error; by Cornish and Fisher's expansion.

    Args:
        share: In (0, 1).
        degrees: Of freedom: one less than the groups.
    """
    z = NormalDist().inv_cdf(share)
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
