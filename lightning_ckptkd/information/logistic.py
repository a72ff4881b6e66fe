"""I(Y;F) by a multinomial logistic probe of the features."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_ckptkd.information.label import label_surprises
from lightning_ckptkd.information.robust import winsorise
from lightning_ckptkd.shapes import Float, Int, Num

_PENALTIES = (1.0, 1e-1, 1e-2, 1e-3)
_MAX_ITERATIONS = 100


def logistic_gains(
    features: Num[Tensor, "N D"], labels: Int[Tensor, " N"], folds: Int[Tensor, " N"]
) -> Float[Tensor, " N"]:
    """What each sample adds to I(Y;F), by multinomial logistic regression that is cross-fitted over folds.

    Each fold in turn is scored by a probe that was fitted (L-BFGS, float64) to the others. The L2 penalty is
    chosen once, on the last fold, from a fixed grid.

    Args:
        features: Shape (N, D).
        labels: Class indices, shape (N,).
        folds: Fold of each sample, shape (N,), three or more of them.

    Returns:
        log q(y|f) - log p(y) in nats, shape (N,), float64, p being the labels' frequencies. The mean is I(Y;F), at most
        H(Y).
    """
    features = winsorise(features)
    features = (features - features.mean(0)) / features.std(0).clamp_min(1e-12)
    num_classes = int(labels.max()) + 1
    last = int(folds.max())

    tune, fit = folds == last, folds != last
    costs, weights = [], features.new_zeros(features.shape[1] + 1, num_classes)
    for penalty in _PENALTIES:
        weights = _fit(features[fit], labels[fit], weights, penalty)
        costs.append(float(F.cross_entropy(_logits(features[tune], weights), labels[tune])))
        if len(costs) > 1 and costs[-1] > costs[-2]:  # the cost has one minimum along the path of penalties
            break
    penalty = _PENALTIES[costs.index(min(costs))]

    gains = features.new_empty(len(labels))
    for fold in range(last + 1):
        held_out = folds == fold
        fitted = _fit(features[~held_out], labels[~held_out], torch.zeros_like(weights), penalty)
        gains[held_out] = -F.cross_entropy(_logits(features[held_out], fitted), labels[held_out], reduction="none")
    return label_surprises(labels) + gains


def _logits(features: Tensor, weights: Tensor) -> Tensor:
    return features @ weights[:-1] + weights[-1]


def _fit(features: Tensor, labels: Tensor, start: Tensor, penalty: float) -> Tensor:
    """Minimise cross-entropy + penalty * |W|^2 / 2 over W, whose last row is the bias and is not penalised."""
    with torch.enable_grad():
        weights = start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [weights],
            max_iter=_MAX_ITERATIONS,
            tolerance_grad=1e-6,
            tolerance_change=1e-9,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            cost = F.cross_entropy(_logits(features, weights), labels)
            cost = cost + penalty / 2 * weights[:-1].square().sum()
            cost.backward()  # type: ignore[no-untyped-call]
            return cost

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach()
