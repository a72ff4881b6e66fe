from __future__ import annotations

import math

import numpy
import pytest
import torch
from sklearn.metrics import mean_squared_error, r2_score
from torch import Tensor

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.losses import DISTLoss, DKDLoss, KDLoss, MSELoss
from lightning_ckptkd.tasks import Regression

FOLDS = assign_folds(4000, 5, 0)


@pytest.mark.parametrize("shapes", [((9,), (9,)), ((9, 1), (9,)), ((9,), (9, 1)), ((9, 4), (9, 4)), ((9, 2, 3),) * 2])
def test_losses(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    output, targets = torch.randn(shapes[0]).double(), torch.randn(shapes[1]).double()
    teachers = torch.randn(3, *shapes[0]).double()
    task = Regression()
    task.check(output, targets, "Net")
    rows = task.rows(output, teachers, targets)
    assert rows.student.shape == rows.targets.shape and rows.student.dim() == 2
    errors = (output.reshape(9, -1) - targets.reshape(9, -1)).numpy()
    assert float(task.hard_loss(rows.student, rows.targets)) == pytest.approx((errors**2).mean(), rel=1e-12)
    weights = torch.tensor([1.0, 2.0, 5.0])
    mean = numpy.average(teachers.numpy(), axis=0, weights=weights)
    expected = ((output.numpy() - mean) ** 2).mean()
    assert rows.teachers is not None
    assert float(task.kd_loss(5.0)(rows.student, rows.teachers, None, weights)) == pytest.approx(expected, rel=1e-6)
    assert torch.autograd.gradcheck(
        lambda z: task.hard_loss(task.flatten(z), rows.targets) + task.kd_loss(5.0)(task.flatten(z), rows.teachers),
        output.requires_grad_(),
    )


def test_costs_are_the_squared_errors_of_rows() -> None:
    output, targets = torch.randn(9, 3), torch.randn(9, 3)
    expected = ((output.double() - targets.double()).numpy() ** 2).sum(1)
    assert Regression().costs(output, targets).tolist() == pytest.approx(expected.tolist(), rel=1e-12)


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (5000.0, 1.0), (0.0, 1e-4)])
def test_metrics_are_scikit_learns(columns: int, offset: float, scale: float) -> None:
    task = Regression()
    metrics = task.metrics(columns)
    seen, truth = [], []
    for size in (20, 1, 13):  # the last batch of an epoch may be of one sample
        targets = offset + scale * torch.randn(size, columns)
        output = targets + 0.5 * scale * torch.randn(size, columns)
        for metric in metrics.values():
            metric(output, targets)
        seen.append(output)
        truth.append(targets)
    predicted, numbers = torch.cat(seen).double().numpy(), torch.cat(truth).double().numpy()
    assert list(metrics) == ["rmse", "r2"]
    assert float(metrics["rmse"].compute()) == pytest.approx(mean_squared_error(numbers, predicted) ** 0.5, rel=1e-3)
    assert float(metrics["r2"].compute()) == pytest.approx(r2_score(numbers, predicted), rel=1e-3)


def test_r2_of_one_sample_and_of_constant_targets() -> None:
    metric = Regression().metrics(1)["r2"]
    assert math.isnan(float(metric(torch.ones(1, 1), torch.ones(1, 1))))
    assert float(Regression().metrics(1)["r2"](torch.ones(4, 1), torch.ones(4, 1))) == 1
    assert float(Regression().metrics(1)["r2"](torch.zeros(4, 1), torch.ones(4, 1))) == 0


def test_r2_over_ranks() -> None:
    targets, output = torch.randn(40, 2), torch.randn(40, 2)
    ranks = [Regression().metrics(2)["r2"] for _ in range(2)]
    for rank, metric in enumerate(ranks):
        metric.update(output[rank::2], targets[rank::2])
    together = Regression().metrics(2)["r2"]
    together.moments = torch.stack([metric.moments for metric in ranks])  # as torchmetrics gathers it
    together._update_count = 1
    assert float(together.compute()) == pytest.approx(r2_score(targets, output), rel=1e-4)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.95])
def test_a_gaussian_channel(rho: float) -> None:
    """Y and F of correlation rho: I = -1/2 ln(1 - rho^2), whatever the scale and the mean of Y."""
    f = torch.randn(4000, 1)
    y = 1000 + 30 * (rho * f + math.sqrt(1 - rho**2) * torch.randn(4000, 1))
    gains = Regression().label_gains(1000 + 30 * rho * f, y, FOLDS)
    truth = -0.5 * math.log(1 - rho**2)
    assert float(gains.mean()) == pytest.approx(truth, abs=3 * float(gains.std()) / math.sqrt(4000) + 1e-3)


def test_it_is_half_the_logarithm_of_variance_over_mse_summed() -> None:
    y = torch.randn(4000, 3) * torch.tensor([1.0, 10.0, 0.1])
    seen = y + torch.randn(4000, 3) * torch.tensor([0.5, 2.0, 0.3])
    mse = (seen - y).double().square().mean(0)
    plain = float((0.5 * (y.double().var(0, correction=0) / mse).log()).sum())
    term = float(Regression().label_gains(seen, y, FOLDS).mean())
    assert plain - 0.01 < term < plain  # fitting on other folds costs a little
    assert float(Regression().label_gains(seen + 5, y, FOLDS).mean()) < 0  # worse than the mean


def test_predictions_that_are_right_and_targets_that_are_constant() -> None:
    y = torch.randn(4000, 1)
    gains = Regression().label_gains(y, y, FOLDS)
    assert bool(gains.isfinite().all()) and float(gains.mean()) > 10
    constant = torch.full((4000, 1), 7.3)
    assert float(Regression().label_gains(constant + 1, constant, FOLDS).abs().max()) == 0


def test_the_term_has_no_bound_and_there_is_no_agreement() -> None:
    task = Regression()
    assert task.label_entropy(torch.randn(5, 1)) is None
    assert task.agreement(torch.randn(5, 1)) is None
    assert not task.classes and task.ignore_index is None
    assert task.describe() == {"name": "regression"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_targets_that_are_not_finite(value: float) -> None:
    task = Regression()
    targets = torch.tensor([1.0, value, 2.0])
    with pytest.raises(ArgumentError, match=r"should be finite, but sample 1 \(from 0\) has (nan|inf)"):
        task.check_targets(task.flatten_targets(targets), 1)
    task.check_targets(task.flatten_targets(targets[targets.isfinite()]), 1)


@pytest.mark.parametrize("loss", [KDLoss(), DKDLoss(), DISTLoss(), MSELoss(combine="probabilities")])
def test_losses_that_need_classes(loss: torch.nn.Module) -> None:
    with pytest.raises(ArgumentError, match="task=regression has none"):
        Regression().check_kd_loss(loss)
    Regression().check_kd_loss(MSELoss(combine="per_teacher"))
    Regression().check_kd_loss(lambda student, teachers, targets: student.sum())


@pytest.mark.parametrize(("output", "targets"), [((5, 2), (5,)), ((5,), (4,)), ((5, 2), (5, 3)), ((), (5,))])
def test_shapes_that_do_not_meet(output: tuple[int, ...], targets: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match="task=regression needs targets of the shape"):
        Regression().check(torch.randn(output), torch.zeros(targets), "Net")


def test_whole_numbers_become_floats() -> None:
    ages: Tensor = torch.tensor([3, 70, 41])
    rows = Regression().rows(torch.randn(3, 1), None, ages)
    assert rows.targets.dtype == torch.float32 and rows.targets.shape == (3, 1)
