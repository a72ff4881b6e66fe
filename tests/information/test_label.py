from __future__ import annotations

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.information.label import _fit_probe, head_information, label_entropy, logistic_information


def symmetric_channel(samples: int, classes: int, error: float) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.randint(classes, (samples,))
    wrong = (labels + torch.randint(1, classes, (samples,))) % classes
    return labels, torch.where(torch.rand(samples) < error, wrong, labels)


def test_logistic_probe_on_a_symmetric_channel() -> None:
    """ln K + (1-e) ln(1-e) + e ln(e/(K-1)) for K = 10 and e = 0.1 is 1.7578 nats."""
    labels, seen = symmetric_channel(10_000, 10, 0.1)
    found = logistic_information(F.one_hot(seen, 10).float(), labels, assign_folds(10_000, 5, 0))
    assert found.nats == pytest.approx(1.7578, rel=0.02)
    assert found.accuracy == pytest.approx(0.9, abs=0.01)


def test_the_true_posterior_as_head_gives_the_truth() -> None:
    labels, seen = symmetric_channel(50_000, 10, 0.1)
    posterior = torch.full((50_000, 10), 0.1 / 9).scatter_(1, seen[:, None], 0.9)
    assert head_information(posterior.log(), labels).nats == pytest.approx(1.7578, rel=0.01)


def test_useless_features_tell_nothing() -> None:
    labels = torch.randint(4, (800,))
    found = logistic_information(torch.randn(800, 50), labels, assign_folds(800, 5, 0))
    assert abs(found.nats) < 0.05


def test_never_above_the_label_entropy() -> None:
    labels = torch.randint(10, (500,))
    found = logistic_information(100 * F.one_hot(labels, 10).float(), labels, assign_folds(500, 5, 0))
    assert 0.95 * label_entropy(labels) < found.nats <= label_entropy(labels)
    sure = head_information(1e4 * F.one_hot(labels, 10).double(), labels)
    assert sure.nats == pytest.approx(label_entropy(labels))
    assert sure.accuracy == 1


def test_label_entropy() -> None:
    assert label_entropy(torch.arange(8)) == pytest.approx(math.log(8))
    assert label_entropy(torch.tensor([3, 3, 3])) == 0


def test_the_probe_is_the_one_that_scikit_learn_finds() -> None:
    features = torch.randn(300, 4).double()
    labels = (features @ torch.randn(4, 3).double() + torch.randn(300, 3)).argmax(1)
    penalty = 0.01
    ours = _fit_probe(features, labels, torch.zeros(5, 3).double(), penalty)
    theirs = LogisticRegression(C=1 / (penalty * 300), tol=1e-10, max_iter=1000).fit(features, labels)
    ours_p = torch.softmax(features @ ours[:-1] + ours[-1], 1)
    torch.testing.assert_close(ours_p, torch.from_numpy(theirs.predict_proba(features)), atol=1e-4, rtol=0)


def test_a_class_that_a_fold_lacks() -> None:
    labels = torch.cat([torch.zeros(99, dtype=torch.long), torch.ones(1, dtype=torch.long)])
    assert math.isfinite(logistic_information(torch.randn(100, 3), labels, assign_folds(100, 5, 0)).nats)
