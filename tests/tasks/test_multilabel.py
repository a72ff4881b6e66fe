from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss
from torch import Tensor
from torch.nn import functional as F

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.information.by_sample import gains_by_sample
from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.tasks import Binary, Multilabel


def binary_entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(7, 3, dtype=torch.float64), torch.randint(2, (7, 3)).float()


def test_losses_are_means_over_samples_and_labels() -> None:
    output, targets = batch()
    teacher = torch.randn(7, 3, dtype=torch.float64)
    task = Multilabel()
    task.check(output, targets, "Net")
    rows = task.rows(output, teacher[None], targets)
    assert rows.student.shape == (21, 2) and rows.teachers is not None
    by_label = [log_loss(targets[:, k], output[:, k].sigmoid().numpy(), labels=[0, 1]) for k in range(3)]
    assert float(task.hard_loss(rows.student, rows.targets)) == pytest.approx(sum(by_label) / 3, rel=1e-10)
    q, p = torch.sigmoid(output / 2), torch.sigmoid(teacher / 2)
    expected = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert float(task.kd_loss(2.0)(rows.student, rows.teachers)) == pytest.approx(float(expected), rel=1e-10)


def test_options_and_gradient() -> None:
    output, targets = batch()
    targets[0, 1] = targets[3, 2] = -1
    weights = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    task = Multilabel(ignore_index=-1, pos_weight=weights.tolist())
    valid = targets != -1
    costs = F.binary_cross_entropy_with_logits(output, targets.double(), pos_weight=weights, reduction="none")
    found = task.hard_loss(task.flatten(output), task.flatten_targets(targets))
    torch.testing.assert_close(found, costs[valid].mean(), rtol=1e-12, atol=0)
    flat = task.flatten_targets(targets)
    assert torch.autograd.gradcheck(lambda z: task.hard_loss(task.flatten(z), flat), output.requires_grad_())
    with pytest.raises(ArgumentError, match="pos_weight has 3 numbers, but Net gives 4 logits"):
        task.check(torch.randn(2, 4), torch.zeros(2, 4), "Net")


def test_metrics_are_scikit_learns_also_where_logits_look_like_probabilities() -> None:
    task = Multilabel()
    metrics = task.metrics(2, num_units=task.num_units(torch.empty(7, 3)))
    outputs, truth = [], []
    for scale in (1.0, 0.1):
        output, targets = batch()
        output = (output * scale).abs()  # all above 0, and of the second batch below 1 too
        rows = task.rows(output, None, targets)
        for metric in metrics.values():
            metric(rows.student, rows.targets)
        outputs.append(output > 0)
        truth.append(targets.bool())
    predicted, labels = torch.cat(outputs).numpy(), torch.cat(truth).numpy()
    assert list(metrics) == ["acc", "f1"]
    assert float(metrics["acc"].compute()) == pytest.approx(accuracy_score(labels.ravel(), predicted.ravel()))
    assert float(metrics["f1"].compute()) == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert list(task.metrics(2)) == ["acc"]


def test_a_label_that_is_not_known_is_not_measured() -> None:
    task = Multilabel(ignore_index=-1)
    output, targets = torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([[1, -1], [0, 1]])
    rows = task.rows(output, None, targets)
    assert float(task.metrics(2, 2)["acc"](rows.student, rows.targets)) == pytest.approx(2 / 3)
    assert task.metrics(2, 2)["f1"](rows.student, rows.targets) == pytest.approx((2 / 3 + 1) / 2)


def test_the_term_is_the_sum_over_labels_each_with_its_own_entropy_and_temperature() -> None:
    """Symmetric channels of different noise, rarity and confidence: I = H(Y_k) - H(Y_k|F), summed."""
    count = 8000
    shares, errors, confidences = (0.5, 0.2, 0.5), (0.1, 0.2, 0.4), (1.0, 5.0, 0.5)
    targets = torch.stack([(torch.rand(count) < share).long() for share in shares], 1)
    flips = torch.stack([torch.rand(count) < error for error in errors], 1)
    seen = torch.where(flips, 1 - targets, targets)
    columns, truth = [], 0.0
    for k, (share, error, confidence) in enumerate(zip(shares, errors, confidences, strict=True)):
        likelihood = math.log((1 - error) / error) * (2 * seen[:, k] - 1)
        columns.append(confidence * (math.log(share / (1 - share)) + likelihood))
        truth += binary_entropy(share * (1 - error) + (1 - share) * error) - binary_entropy(error)
    output = torch.stack(columns, 1)
    task = Multilabel()
    known = task.labelled(targets)
    folds = assign_folds(count, 5, 0)[known.samples]
    gains = task.label_gains(task.flatten(output)[known.places], known.targets, folds, known.units)
    values = gains_by_sample(gains, known.samples, count, known.units)
    by_label = [
        float(Binary().label_gains(Binary().flatten(output[:, k]), targets[:, k], assign_folds(count, 5, 0)).mean())
        for k in range(3)
    ]
    assert float(values.mean()) == pytest.approx(sum(by_label), rel=1e-9)
    assert float(values.mean()) == pytest.approx(truth, abs=3 * float(values.std()) / math.sqrt(count))
    entropy = task.label_entropy(known.targets, known.units)
    assert entropy is not None
    assert entropy == pytest.approx(sum(binary_entropy(float(targets[:, k].double().mean())) for k in range(3)))
    assert float(values.mean()) <= entropy


def test_labels_that_are_not_known_leave_the_others_term() -> None:
    targets = torch.randint(2, (600, 2))
    output = (4.0 * targets - 2) + torch.randn(600, 2)
    hidden = targets.clone()
    hidden[300:, 1] = -1
    task = Multilabel(ignore_index=-1)
    known = task.labelled(hidden)
    folds = assign_folds(600, 5, 0)[known.samples]
    gains = task.label_gains(task.flatten(output)[known.places], known.targets, folds, known.units)
    values = gains_by_sample(gains, known.samples, 600, known.units)
    assert known.units is not None
    assert float(values.mean()) == pytest.approx(
        float(gains[known.units == 0].mean()) + float(gains[known.units == 1].mean()), rel=1e-12
    )


@pytest.mark.parametrize(("output", "targets"), [((5, 3, 1), (5, 3)), ((5, 3), (5,)), ((5, 3), (5, 2))])
def test_shapes_that_do_not_meet(output: tuple[int, ...], targets: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match="task=multilabel needs"):
        Multilabel().check(torch.randn(output), torch.zeros(targets), "Net")
