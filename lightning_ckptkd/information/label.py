r"""I(Y;F) by the teacher's own head, and what all estimators of the label term share.

For any classifier q(y|f), I(Y;F) = H(Y) - H(Y|F) >= H(Y) + E[log q(y|f)], that is H(Y) less the cross-entropy
(the paper's second estimator). H(Y) is the entropy of the probe's labels, the same for each snapshot.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURES = tuple(2.0 ** (power / 4) for power in range(-8, 17))  # 1/4 to 16


def label_entropy(labels: Tensor) -> float:
    """H(Y) in nats of the labels' empirical distribution.

    Args:
        labels: Class indices, shape (N,).
    """
    shares = torch.bincount(labels).double() / len(labels)
    return float(torch.special.entr(shares).sum())


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of samples classified correctly.

    Args:
        logits: Shape (N, K).
        labels: Class indices, shape (N,).
    """
    return float((logits.argmax(1) == labels).double().mean())


def tempered_costs(logits: Tensor, labels: Tensor, temperatures: Sequence[float] = TEMPERATURES) -> Tensor:
    """-log softmax(logits / T)[label] of each sample and temperature in nats, shape (N, T), float64.

    Args:
        logits: Shape (N, K).
        labels: Class indices below K, shape (N,).
        temperatures: Each above 0.
    """
    logits = logits.double()
    return torch.stack([F.cross_entropy(logits / t, labels, reduction="none") for t in temperatures], 1)


def head_gains(logits: Tensor, labels: Tensor, folds: Tensor, temperatures: Sequence[float] = TEMPERATURES) -> Tensor:
    """What each sample adds to I(Y;F) by the teacher's own head with a fitted temperature.

    The temperature takes back over- and under-confidence (Guo et al. 2017), which tell nothing of the features. Each
    fold has the one that suits the other folds best.

    Args:
        logits: Shape (N, K).
        labels: Class indices below K, shape (N,).
        folds: Fold of each sample, shape (N,), two or more of them.
        temperatures: To choose from.

    Returns:
        H(Y) + log q(y|f) in nats, shape (N,), float64. The mean is I(Y;F), at most H(Y).
    """
    costs = tempered_costs(logits, labels, temperatures)
    best = costs.new_empty(len(costs))
    for fold in range(int(folds.max()) + 1):
        held_out = folds == fold
        best[held_out] = costs[held_out, costs[~held_out].mean(0).argmin()]
    return label_entropy(labels) - best
