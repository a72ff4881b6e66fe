from __future__ import annotations

import math

import numpy
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor
from torch.nn import functional as F

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.losses import DISTLoss, DKDLoss
from lightning_ckptkd.tasks import Binary

DTYPES = [torch.bool, torch.uint8, torch.int64, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", [((9,), (9,)), ((9, 1), (9,)), ((9, 1), (9, 1)), ((9,), (9, 1))])
def test_rows_are_the_two_classes(dtype: torch.dtype, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    output = torch.randn(shapes[0], dtype=torch.float64)
    targets = torch.randint(2, shapes[1]).to(dtype)
    task = Binary()
    task.check(output, targets, "Net")
    rows = task.rows(output, torch.stack([output, 3 * output]), targets)
    assert torch.equal(rows.student, torch.stack([torch.zeros(9), output.reshape(9)], 1))
    assert rows.teachers is not None and torch.equal(rows.teachers[1], 3 * rows.student)
    assert rows.targets.dtype == torch.int64
    task.check_targets(rows.targets, 2)
    expected = log_loss(rows.targets.numpy(), output.reshape(9).sigmoid().numpy(), labels=[0, 1])
    assert float(task.hard_loss(rows.student, rows.targets)) == pytest.approx(expected, rel=1e-10)


def test_the_distillation_loss_is_that_of_two_classes() -> None:
    z, t = torch.randn(20, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    task = Binary()
    rows = task.rows(z, t[None], torch.randint(2, (20,)))
    q, p = torch.sigmoid(z / 3).numpy(), torch.sigmoid(t / 3).numpy()
    expected = 9 * numpy.mean(p * numpy.log(p / q) + (1 - p) * numpy.log((1 - p) / (1 - q)))
    assert rows.teachers is not None
    assert float(task.kd_loss(3.0)(rows.student, rows.teachers)) == pytest.approx(expected, rel=1e-10)
    for loss in (DKDLoss(3.0), DISTLoss(3.0)):
        task.check_kd_loss(loss)
        assert bool(loss(rows.student, rows.teachers, rows.targets).isfinite())


def test_options_and_gradient() -> None:
    z = torch.randn(8, dtype=torch.float64)
    targets = torch.tensor([0, 1, 1, 0, -1, 1, -1, 0])
    task = Binary(ignore_index=-1, pos_weight=2.5)
    valid = targets != -1
    expected = F.binary_cross_entropy_with_logits(z[valid], targets[valid].double(), pos_weight=torch.tensor(2.5))
    torch.testing.assert_close(task.hard_loss(task.flatten(z), targets), expected, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda z: task.hard_loss(task.flatten(z), targets), z.requires_grad_())
    nothing = task.hard_loss(task.flatten(z.detach()), torch.full((8,), -1))
    assert float(nothing) == 0
    assert task.describe() == {"name": "binary", "ignore_index": -1, "pos_weight": [2.5]}


def test_accuracy_is_that_of_the_sign_also_where_logits_look_like_probabilities() -> None:
    z = torch.tensor([0.2, 0.4, -0.3, 0.9, 0.1])
    targets = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0])
    task = Binary()
    rows = task.rows(z, None, targets)
    assert float(task.metrics(2)["acc"](rows.student, rows.targets)) == pytest.approx(0.8)
    assert accuracy_score(targets, z > 0) == 0.8


@pytest.mark.parametrize(("error", "confidence"), [(0.1, 1.0), (0.3, 4.0)])
def test_a_symmetric_channel(error: float, confidence: float) -> None:
    labels = torch.randint(2, (10_000,))
    seen = torch.where(torch.rand(10_000) < error, 1 - labels, labels)
    z = confidence * math.log((1 - error) / error) * (2.0 * seen - 1)
    task = Binary()
    gains = task.label_gains(task.flatten(z), labels, assign_folds(10_000, 5, 0))
    truth = math.log(2) + error * math.log(error) + (1 - error) * math.log(1 - error)
    assert float(gains.mean()) == pytest.approx(truth, abs=3 * float(gains.std()) / 100)
    entropy = task.label_entropy(labels)
    assert entropy is not None and float(gains.mean()) <= entropy <= math.log(2)


@pytest.mark.parametrize("targets", [[0.5, 1.0], [float("nan"), 1.0], [2.0, 1.0], [-1.0, 1.0]])
def test_targets_that_are_not_yes_or_no(targets: list[float]) -> None:
    task = Binary()
    with pytest.raises(ArgumentError, match=r"needs targets of 0 and 1|Labels run from"):
        task.check_targets(task.flatten_targets(torch.tensor(targets)), 2)


def test_what_the_errors_advise() -> None:
    Binary(ignore_index=-1).check_targets(torch.tensor([-1, 1]), 2)
    task = Binary()
    task.check_targets(task.flatten_targets(torch.tensor([0.5, 1.0]).round()), 2)


@pytest.mark.parametrize(("output", "targets"), [((5, 2), (5,)), ((5,), (4,)), ((5, 1), (5, 2))])
def test_shapes_that_do_not_meet(output: tuple[int, ...], targets: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match="task=binary needs"):
        Binary().check(torch.randn(output), torch.zeros(targets), "Net")


def test_a_weight_that_can_not_be() -> None:
    with pytest.raises(ArgumentError, match="pos_weight should be finite"):
        Binary(pos_weight=-1.0)


def test_no_value_is_lost(recwarn: pytest.WarningsRecorder) -> None:
    z: Tensor = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = Binary().hard_loss(Binary().flatten(z), torch.tensor([1, 0]))
    assert float(loss) == 0
