r"""I(Y;F) by the teacher's own head, and what all estimators of the label term share.

For any classifier q(y|f), I(Y;F) = H(Y) - H(Y|F) >= H(Y) + E[log q(y|f)], that is H(Y) less the cross-entropy
(the paper's second estimator). H(Y) is the entropy of the probe's labels, the same for each snapshot. Labels may be
shares of the classes, of which Y is then drawn. Numbers have a Gaussian for q, and I(Y;F) = 1/2 ln(var / mse).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_ckptkd.information.blocks import blocks, one_thread
from lightning_ckptkd.information.robust import fences, within_fence
from lightning_ckptkd.shapes import Float, Int

TEMPERATURES = tuple(2.0 ** (power / 4) for power in range(-8, 17))  # 1/4 to 16


def label_entropy(labels: Int[Tensor, " N"] | Float[Tensor, "N K"]) -> float:
    """H(Y) in nats of the labels' empirical distribution.

    Args:
        labels: Class indices, shape (N,); or shares of the classes, rows that sum to 1, shape (N, K).
    """
    shares = labels.double().mean(0) if labels.dim() == 2 else torch.bincount(labels).double() / len(labels)
    return float(torch.special.entr(shares).sum())


def label_surprises(labels: Int[Tensor, " N"] | Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
    """-log p(y) of each sample under the labels' empirical distribution, in nats, whose mean is :func:`label_entropy`.

    So the standard error of H(Y) less a cross-entropy has that of H(Y) in it.

    Args:
        labels: As :func:`label_entropy` takes them.

    Returns:
        Shape (N,), float64.
    """
    if labels.dim() == 2:
        shares = labels.double().mean(0)
        surprises: Tensor = -torch.special.xlogy(labels.double(), shares).sum(1)
    else:
        shares = torch.bincount(labels).double() / len(labels)
        surprises = -shares.log()[labels]
    return surprises


def accuracy(logits: Float[Tensor, "N K"], labels: Int[Tensor, " N"]) -> float:
    """Share of samples classified correctly.

    Args:
        logits: Shape (N, K).
        labels: Class indices, shape (N,).
    """
    return float((logits.argmax(1) == labels).double().mean())


@one_thread()
def tempered_costs(
    logits: Float[Tensor, "N K"],
    labels: Int[Tensor, " N"] | Float[Tensor, "N K"],
    temperatures: Sequence[float] = TEMPERATURES,
) -> Float[Tensor, "N T"]:
    """-log softmax(logits / T)[label] of each sample and temperature in nats, shape (N, T), float64.

    Args:
        logits: Shape (N, K).
        labels: Class indices below K, shape (N,); or shares of the classes, shape (N, K), by which the costs of the
            classes are weighted.
        temperatures: Each above 0.
    """
    chains = _halvings(temperatures)
    costs = logits.new_empty(len(logits), len(temperatures), dtype=torch.float64)
    for rows in blocks(logits):
        wide, truth = logits[rows].double(), labels[rows]
        wide = wide - wide.amax(1, keepdim=True)
        # shares of the classes sum to 1 but for their rounding, which cross-entropy counts too
        mass: Tensor | float = truth.double().sum(1) if truth.dim() == 2 else 1.0
        right = (truth.double() * wide).sum(1) if truth.dim() == 2 else wide.gather(1, truth[:, None])[:, 0]
        for chain in chains:
            powers = (wide / temperatures[chain[0]]).exp_()
            for link, place in enumerate(chain):
                if link:
                    powers.square_()
                costs[rows, place] = mass * powers.sum(1).log_() - right / temperatures[place]
    return costs


def _halvings(temperatures: Sequence[float]) -> list[list[int]]:
    """Places of temperatures, in chains of which each one is half of that before it: e^(z / T) is squared for it."""
    left = sorted(range(len(temperatures)), key=lambda place: -temperatures[place])
    chains: list[list[int]] = []
    while left:
        chain = [left.pop(0)]
        while (half := next((p for p in left if temperatures[p] == temperatures[chain[-1]] / 2), None)) is not None:
            left.remove(half)
            chain.append(half)
        chains.append(chain)
    return chains


def head_gains(
    logits: Float[Tensor, "N K"],
    labels: Int[Tensor, " N"] | Float[Tensor, "N K"],
    folds: Int[Tensor, " N"],
    temperatures: Sequence[float] = TEMPERATURES,
) -> Float[Tensor, " N"]:
    """What each sample adds to I(Y;F) by the teacher's own head with a fitted temperature.

    The temperature takes back over- and under-confidence (Guo et al. 2017), which tell nothing of the features. Each
    fold has the one that suits the other folds best. Rows of logits whose spread is far outside of all others' are
    pulled in before (see :mod:`.robust`).

    Args:
        logits: Shape (N, K).
        labels: Class indices below K, shape (N,); or shares of the classes, rows that sum to 1, shape (N, K).
        folds: Fold of each sample, shape (N,), two or more of them.
        temperatures: To choose from; the one nearest to 1 is taken where no other fold has a sample.

    Returns:
        log q(y|f) - log p(y) in nats, shape (N,), float64, p being the labels' frequencies. The mean is I(Y;F), at most
        H(Y).
    """
    costs = tempered_costs(within_fence(logits), labels, temperatures)
    best = costs.new_empty(len(costs))
    plain = min(range(len(temperatures)), key=lambda place: abs(math.log(temperatures[place])))
    for fold in range(int(folds.max()) + 1):
        held_out = folds == fold
        others = costs[~held_out]
        best[held_out] = costs[held_out, others.mean(0).argmin() if len(others) else plain]
    return label_surprises(labels) - best


def gaussian_head_gains(
    predictions: Float[Tensor, "N D"], targets: Float[Tensor, "N D"], folds: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    r"""What each sample adds to I(Y;F) by predicted numbers, with a Gaussian of fitted variance around each.

    For a density q(y|f), I(Y;F) >= E[log q(y|f) - log p(y)] where p is Y's own; here both are Gaussian, one number at
    a time. q has the mean squared error of the other folds for its variance, p the mean and variance of all samples,
    so that the mean over samples is 1/2 ln(var / mse) where the folds' errors are alike, and less where they are not.
    It is below 0 where the predictions are worse than the mean of Y. Predictions far outside of all targets and of all
    other predictions are pulled in, so that no sample decides.

    Args:
        predictions: Shape (N, D).
        targets: Shape (N, D).
        folds: Fold of each sample, shape (N,), two or more of them.

    Returns:
        Nats, summed over the D numbers, shape (N,), float64. One that is the same for all samples adds nothing.
    """
    targets = targets.double()
    low, high = fences(predictions.double())
    lowest, highest = targets.amin(0), targets.amax(0)
    beyond = (highest - lowest) / 2
    predictions = predictions.double().clamp(torch.minimum(low, lowest - beyond), torch.maximum(high, highest + beyond))
    centred = targets - targets.mean(0)
    variance = centred.square().mean(0)
    varies = variance > (torch.finfo(torch.float32).eps * targets.abs().amax(0)).square()
    scale = torch.where(varies, variance, 1)
    errors = (predictions - targets).square() / scale
    gains = centred.square() / scale / 2
    for fold in range(int(folds.max()) + 1):
        held_out = folds == fold
        others = errors[~held_out] if bool((~held_out).any()) else errors
        # below what float32 can tell from the target there is no error to be measured
        mse = others.mean(0).clamp_min(torch.finfo(torch.float32).eps ** 2)
        gains[held_out] -= (mse.log() + errors[held_out] / mse) / 2
    return torch.where(varies, gains, 0).sum(1)
