r"""I(X;Z|Y) of a teacher's predictions Z: how much they tell of the input beyond the label (MCMI, arXiv 2401.08732).

Z is drawn from the softmax P(x) of the teacher's logits, so that X, Y and Z form a chain and

    I(X;Z|Y) = E[KL(P(x) || Q(y))],   Q(y) = E[P(x) | y],

which needs nothing but the logits. The estimator takes the mean over the samples of a class for Q.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_ckptkd.shapes import Float, Int


def cmi_parts(probabilities: Float[Tensor, "N K"], labels: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """KL(P(x) || Q(y)) of each sample in nats, shape (N,), float64; the mean is I(X;Z|Y).

    Args:
        probabilities: P(x), rows that sum to 1, shape (N, K).
        labels: Class indices, shape (N,).
    """
    probabilities = probabilities.double()
    counts = torch.bincount(labels)
    sums = probabilities.new_zeros(len(counts), probabilities.shape[1]).index_add_(0, labels, probabilities)
    means = sums / counts.clamp_min(1)[:, None]
    divergence: Tensor = torch.special.xlogy(probabilities, probabilities / means[labels].clamp_min(1e-300)).sum(1)
    return divergence
