from __future__ import annotations

import math

import numpy
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import entropy
from torch import Tensor
from torch.nn import functional as F

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.losses import DKDLoss, KDLoss
from lightning_ckptkd.tasks import Multiclass, SoftMulticlass


def logits_and_shares(samples: int = 12, classes: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, classes, dtype=torch.float64), torch.rand(samples, classes).double().softmax(1)


def test_the_hard_loss_is_the_soft_cross_entropy() -> None:
    logits, shares = logits_and_shares()
    expected = -(shares.numpy() * log_softmax(logits.numpy(), 1)).sum(1).mean()
    assert float(SoftMulticlass().hard_loss(logits, shares)) == pytest.approx(expected, rel=1e-12)
    weights = torch.tensor([1.0, 2.0, 0.5, 0.0], dtype=torch.float64)
    task = SoftMulticlass(class_weights=weights.tolist(), label_smoothing=0.1)
    expected = F.cross_entropy(logits, shares, weights, label_smoothing=0.1)
    torch.testing.assert_close(task.hard_loss(logits, shares), expected, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda z: task.hard_loss(z, shares), logits.requires_grad_())


def test_one_hot_targets_are_class_indices() -> None:
    logits = torch.randn(300, 4)
    labels = torch.randint(4, (300,))
    soft, hard = SoftMulticlass(), Multiclass()
    one_hot = F.one_hot(labels, 4)  # integers
    soft.check(logits, one_hot, "Net")
    rows = soft.rows(logits, None, one_hot)
    torch.testing.assert_close(soft.hard_loss(logits, rows.targets), hard.hard_loss(logits, labels))
    folds = assign_folds(300, 5, 0)
    torch.testing.assert_close(
        soft.label_gains(logits, rows.targets, folds), hard.label_gains(logits, labels, folds), rtol=1e-6, atol=1e-6
    )
    assert soft.label_entropy(rows.targets) == pytest.approx(hard.label_entropy(labels))
    metric = soft.metrics(4)["acc"]
    assert float(metric(logits, rows.targets)) == pytest.approx(float((logits.argmax(1) == labels).double().mean()))


def test_accuracy_takes_what_agreement_gives() -> None:
    logits, teachers = torch.randn(50, 4), torch.randn(50, 4)
    task = SoftMulticlass()
    metric = task.metrics(4)["acc"]
    expected = float((logits.argmax(1) == teachers.argmax(1)).double().mean())
    agreement = task.agreement(teachers)
    assert agreement is not None
    assert float(metric(logits, agreement)) == pytest.approx(expected)


def test_what_noisy_shares_tell_in_closed_form() -> None:
    """Y is drawn from shares that the features determine: I(Y;F) = H(mean) - mean of H."""
    truth = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]], dtype=torch.float64)
    shares = truth[torch.arange(900) % 3]
    gains = SoftMulticlass().label_gains(3 * shares.log(), shares, assign_folds(900, 5, 0))
    expected = entropy(shares.mean(0).numpy()) - numpy.mean([entropy(row) for row in truth.numpy()])
    assert float(gains.mean()) == pytest.approx(expected, rel=0.01)  # of the temperatures 2.83 is the nearest to 3
    assert SoftMulticlass().label_entropy(shares) == pytest.approx(entropy(shares.mean(0).numpy()))


def test_never_above_the_entropy_of_the_mean() -> None:
    shares = F.one_hot(torch.arange(400) % 4, 4).double()
    gains = SoftMulticlass().label_gains(1e4 * shares, shares, assign_folds(400, 5, 0))
    assert float(gains.mean()) == pytest.approx(math.log(4))
    assert float(gains.mean()) <= math.log(4)


@pytest.mark.parametrize("targets", [[[0.5, 0.6]], [[1.5, -0.5]], [[float("nan"), 1.0]]])
def test_what_is_no_share(targets: list[list[float]]) -> None:
    with pytest.raises(ArgumentError, match=r"shares, 0 or more, that sum to 1 .* sample 0"):
        SoftMulticlass().check_targets(torch.tensor(targets), 2)
    SoftMulticlass().check_targets(torch.tensor([[0.4, 0.6]]), 2)


def test_shapes() -> None:
    with pytest.raises(ArgumentError, match="task='multiclass' for class indices"):
        SoftMulticlass().check(torch.randn(5, 3), torch.zeros(5, 4), "Net")
    with pytest.raises(ArgumentError, match="Use task='binary'"):
        SoftMulticlass().check(torch.randn(5, 1), torch.ones(5, 1), "Net")


@pytest.mark.parametrize("task", [Multiclass(), SoftMulticlass()])
def test_either_kind_of_targets_in_either_task(task: Multiclass) -> None:
    """A collate function that mixes does so in training alone."""
    logits, shares = logits_and_shares()
    labels = torch.arange(len(logits)) % logits.shape[1]
    for targets in (shares, labels, labels[:, None]):
        task.check(logits, targets, "Net")
        rows = task.rows(logits, None, targets)
        task.check_targets(rows.targets, logits.shape[1])
        wanted = targets.reshape(-1) if targets is not shares else shares
        torch.testing.assert_close(task.hard_loss(logits, rows.targets), F.cross_entropy(logits, wanted))
        right = logits.argmax(1) == (wanted.argmax(1) if targets is shares else wanted)
        assert float(task.metrics(4)["acc"](logits, rows.targets)) == pytest.approx(float(right.double().mean()))
        assert len(task.labelled(targets)) == len(logits)
    with pytest.raises(ArgumentError, match="that sum to 1"):
        task.check_targets(2 * shares, logits.shape[1])
    with pytest.raises(ArgumentError, match="Labels run from 1 to 4"):
        task.check_targets(labels + 1, logits.shape[1])


def test_dkd_has_no_right_class() -> None:
    with pytest.raises(ArgumentError, match="Use KDLoss"):
        SoftMulticlass().check_kd_loss(DKDLoss())
    SoftMulticlass().check_kd_loss(KDLoss())
    Multiclass().check_kd_loss(DKDLoss())
