from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import pearsonr

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses import DISTLoss, dist_loss


def reference(student: np.ndarray, teacher: np.ndarray, temperature: float, beta: float, gamma: float) -> float:
    q, p = softmax(student / temperature, axis=1), softmax(teacher / temperature, axis=1)
    inter = np.mean([1 - pearsonr(q[i], p[i]).statistic for i in range(q.shape[0])])
    intra = np.mean([1 - pearsonr(q[:, j], p[:, j]).statistic for j in range(q.shape[1])])
    return float(temperature**2 * (beta * inter + gamma * intra))


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * 3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 1.0), (2.0, 0.0), (0.0, 3.0)])
def test_against_scipy_in_float64(temperature: float, beta: float, gamma: float) -> None:
    student, teacher = logits(0, 2, 9, 5)
    found = dist_loss(student, teacher, temperature, beta, gamma)
    expected = reference(student.numpy(), teacher.numpy(), temperature, beta, gamma)
    assert float(found) == pytest.approx(expected, rel=1e-10)
    assert DISTLoss(temperature, beta=beta, gamma=gamma)(student, teacher) == found


def test_gradcheck() -> None:
    student, teacher = (logits(seed, 4, 5).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda s, t: dist_loss(s, t, 3.0, 1.0, 2.0), (student, teacher))


def test_a_class_that_all_find_unlikely_is_compared_like_the_others() -> None:
    """Probabilities around 1e-14 vary by much more than they are rounded."""
    student, teacher = logits(0, 2, 9, 5)
    student[:, 2] -= 30
    teacher[:, 2] -= 30
    expected = reference(student.numpy(), teacher.numpy(), 1.0, 0.0, 1.0)
    assert float(dist_loss(student, teacher, 1.0, 0.0, 1.0)) == pytest.approx(expected, rel=1e-10)
    assert float(dist_loss(student.float(), teacher.float(), 1.0, 0.0, 1.0)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stable_for_large_logits(dtype: torch.dtype) -> None:
    """One-hot rows and columns: correlated -1/2 between three classes, and for the columns likewise."""
    student = (1e4 * torch.eye(3, dtype=dtype)).requires_grad_()
    teacher = 1e4 * torch.eye(3, dtype=dtype).roll(1, 0)
    loss = dist_loss(student, teacher, 2.0, 1.0, 10.0)
    loss.backward()
    assert loss.item() == pytest.approx(4 * (1.5 + 15), rel=1e-6)
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_what_is_constant_counts_as_uncorrelated(dtype: torch.dtype, scale: float) -> None:
    """All samples alike, so that each column is constant; at scale 0 each row as well."""
    student = (scale * logits(0, 1, 10).repeat(7, 1)).to(dtype).requires_grad_()
    teacher = logits(1, 7, 10).to(dtype)
    with torch.no_grad():
        inter = float(dist_loss(student, teacher, 4.0, 1.0, 0.0))
    loss = dist_loss(student, teacher, 4.0, 1.0, 2.0)
    loss.backward()
    assert loss.item() == pytest.approx(inter + 2 * 16, rel=1e-6)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 100
    if scale == 0:
        assert inter == pytest.approx(16)
        assert not student.grad.any()


def test_a_single_sample() -> None:
    student = logits(0, 1, 5).requires_grad_()
    teacher = logits(1, 1, 5)
    loss = dist_loss(student, teacher, 4.0, 1.0, 2.0)
    loss.backward()
    q, p = (softmax(x.detach().numpy()[0] / 4) for x in (student, teacher))
    assert loss.item() == pytest.approx(16 * (1 - pearsonr(q, p).statistic + 2), rel=1e-10)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.any()


@pytest.mark.parametrize("exponent", range(-120, 0, 10))
def test_tiny_probabilities_give_finite_gradients_in_float32(exponent: int) -> None:
    student, teacher = logits(0, 2, 6, 4).float()
    student[:, 1] += exponent
    teacher[:, 1] += exponent
    student.requires_grad_()
    loss = dist_loss(student, teacher, 1.0)
    loss.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert 0 < loss.item() < 4


def test_a_class_whose_squared_probabilities_underflow_counts_as_constant() -> None:
    student = logits(0, 6, 4).float()
    student[:, 1] -= 50
    assert float(dist_loss(student, student, 1.0, 0.0, 1.0)) == pytest.approx(1 / 4, abs=1e-6)
    student = student.double()
    assert float(dist_loss(student, student, 1.0, 0.0, 1.0)) == pytest.approx(0, abs=1e-12)


def test_zero_where_probabilities_are_proportional_up_to_a_constant() -> None:
    student = logits(0, 6, 5)
    assert float(dist_loss(student, student + 2, 4.0)) == pytest.approx(0, abs=1e-12)
    blurred = torch.log(0.3 * torch.softmax(student, 1) + 0.7 / 5)
    assert float(dist_loss(student, blurred, 1.0)) == pytest.approx(0, abs=1e-12)
    assert float(dist_loss(student, student * 1.1, 4.0)) > 1e-4


def test_the_loss_of_scaled_logits_is_t_squared_times_that_at_temperature_1() -> None:
    student, teacher = logits(0, 2, 6, 5)
    scaled = dist_loss(7 * student, 7 * teacher, 7.0)
    assert float(scaled) == pytest.approx(49 * float(dist_loss(student, teacher, 1.0)), rel=1e-12)


@pytest.mark.parametrize("size", [1, 6])
@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 0.0), (0.0, 1.0)])
def test_batch_mean(size: int, beta: float, gamma: float) -> None:
    student, teacher = logits(0, 2, size, 5)
    twice = dist_loss(student.repeat(2, 1), teacher.repeat(2, 1), 2.0, beta, gamma)
    assert float(twice) == pytest.approx(float(dist_loss(student, teacher, 2.0, beta, gamma)), rel=1e-12)


def test_half_precision_logits_are_computed_in_float32() -> None:
    student, teacher = logits(0, 2, 6, 5).bfloat16()
    loss = dist_loss(student, teacher, 2.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(float(dist_loss(student.double(), teacher.double(), 2.0)), rel=1e-5)


def test_bad_arguments() -> None:
    student = logits(0, 6, 5)
    with pytest.raises(ArgumentError, match=r"temperature should be above 0, got 0"):
        dist_loss(student, student, 0)
    with pytest.raises(ArgumentError, match=r"\(6, 5\) and \(1, 5\)"):
        dist_loss(student, student[:1], 1.0)
    with pytest.raises(ArgumentError, match=r"beta should be 0 or more, got -1"):
        DISTLoss(beta=-1)
    with pytest.raises(ArgumentError, match=r"gamma should be 0 or more, got inf"):
        DISTLoss(gamma=float("inf"))
