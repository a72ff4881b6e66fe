r"""I(Y;F): what the features tell of the label.

For any classifier q(y|f), I(Y;F) = H(Y) - H(Y|F) >= H(Y) + E[log q(y|f)], that is H(Y) less the cross-entropy
(the paper's second estimator). H(Y) is the entropy of the probe's labels, the same for each snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_PENALTIES = (1.0, 1e-1, 1e-2, 1e-3)
_MAX_ITERATIONS = 100


@dataclass(frozen=True)
class LabelInformation:
    """What a classifier gets out of features.

    Attributes:
        nats: H(Y) less the cross-entropy, in nats; at most H(Y), below zero for a classifier worse than chance.
        accuracy: Share of samples classified correctly.
    """

    nats: float
    accuracy: float


def label_entropy(labels: Tensor) -> float:
    """H(Y) in nats of the labels' empirical distribution.

    Args:
        labels: Class indices, shape (N,).
    """
    shares = torch.bincount(labels).double() / len(labels)
    return float(torch.special.entr(shares).sum())


def head_information(logits: Tensor, labels: Tensor) -> LabelInformation:
    """I(Y;F) by the teacher's own head.

    Args:
        logits: Shape (N, K).
        labels: Class indices below K, shape (N,).
    """
    logits = logits.double()
    return LabelInformation(
        nats=label_entropy(labels) - float(F.cross_entropy(logits, labels)),
        accuracy=float((logits.argmax(1) == labels).double().mean()),
    )


def logistic_information(features: Tensor, labels: Tensor, folds: Tensor) -> LabelInformation:
    """I(Y;F) by a multinomial logistic probe, cross-fitted over folds.

    Each fold in turn is scored by a probe that was fitted (L-BFGS, float64) to the others. The L2 penalty is
    chosen once, on the last fold, from a fixed grid.

    Args:
        features: Shape (N, D).
        labels: Class indices, shape (N,).
        folds: Fold of each sample, shape (N,), three or more of them.
    """
    features = features.double()
    features = (features - features.mean(0)) / features.std(0).clamp_min(1e-12)
    num_classes = int(labels.max()) + 1
    last = int(folds.max())

    tune, fit = folds == last, folds != last
    costs, weights = [], torch.zeros(features.shape[1] + 1, num_classes, dtype=torch.float64)
    for penalty in _PENALTIES:
        weights = _fit_probe(features[fit], labels[fit], weights, penalty)
        costs.append(float(F.cross_entropy(_probe_logits(features[tune], weights), labels[tune])))
        if len(costs) > 1 and costs[-1] > costs[-2]:  # the cost has one minimum along the path of penalties
            break
    penalty = _PENALTIES[costs.index(min(costs))]

    logits = torch.empty(len(labels), num_classes, dtype=torch.float64)
    for fold in range(last + 1):
        held_out = folds == fold
        start = torch.zeros_like(weights)
        fitted = _fit_probe(features[~held_out], labels[~held_out], start, penalty)
        logits[held_out] = _probe_logits(features[held_out], fitted)
    return head_information(logits, labels)


def _probe_logits(features: Tensor, weights: Tensor) -> Tensor:
    return features @ weights[:-1] + weights[-1]


def _fit_probe(features: Tensor, labels: Tensor, start: Tensor, penalty: float) -> Tensor:
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
            cost = F.cross_entropy(_probe_logits(features, weights), labels)
            cost = cost + penalty / 2 * weights[:-1].square().sum()
            cost.backward()  # type: ignore[no-untyped-call]
            return cost

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach()
