from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch.nn import functional as F

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses import KDLoss, kd_loss


def reference(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    p = softmax(teacher / temperature, axis=1)
    difference = log_softmax(teacher / temperature, axis=1) - log_softmax(student / temperature, axis=1)
    return float(temperature**2 * (p * difference).sum(1).mean())


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * 3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0, 20.0])
def test_against_numpy_in_float64(temperature: float) -> None:
    student, teacher = logits(0, 2, 32, 10)
    found = kd_loss(student, teacher, temperature)
    assert float(found) == pytest.approx(reference(student.numpy(), teacher.numpy(), temperature), rel=1e-10)
    assert KDLoss(temperature)(student, teacher) == found


def test_gradcheck() -> None:
    student, teacher = (logits(seed, 4, 5).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda s, t: kd_loss(s, t, 3.0), (student, teacher))


def test_zero_where_they_agree_up_to_a_constant() -> None:
    student = logits(0, 8, 5)
    assert float(kd_loss(student, student + 3, 4.0)) == pytest.approx(0, abs=1e-12)
    assert float(kd_loss(student, student * 1.1, 4.0)) > 1e-4


def test_stable_for_large_logits() -> None:
    student = torch.tensor([[1e4, 0.0]], requires_grad=True)
    loss = kd_loss(student, torch.tensor([[0.0, 1e4]]), 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert student.grad is not None
    assert student.grad.tolist() == [[1, -1]]


def test_the_loss_of_scaled_logits_is_t_squared_times_that_at_temperature_1() -> None:
    student, teacher = logits(0, 2, 8, 5)
    assert float(kd_loss(7 * student, 7 * teacher, 7.0)) == pytest.approx(49 * float(kd_loss(student, teacher, 1.0)))


def test_batch_mean() -> None:
    student, teacher = logits(0, 2, 8, 5)
    twice = kd_loss(student.repeat(2, 1), teacher.repeat(2, 1), 2.0)
    assert float(twice) == pytest.approx(float(kd_loss(student, teacher, 2.0)), rel=1e-12)
    each = [float(kd_loss(student[i : i + 1], teacher[i : i + 1], 2.0)) for i in range(8)]
    assert float(twice) == pytest.approx(np.mean(each), rel=1e-12)


def test_gradient_is_the_difference_of_probabilities() -> None:
    """d/ds of T^2 KL is T (softmax(s/T) - softmax(t/T)) / N."""
    student, teacher = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    kd_loss(student, teacher, 3.0).backward()
    expected = 3 * (torch.softmax(student / 3, 1) - torch.softmax(teacher / 3, 1)) / 6
    torch.testing.assert_close(student.grad, expected.detach(), atol=1e-6, rtol=1e-5)


def test_half_precision_logits_are_computed_in_float32() -> None:
    student, teacher = logits(0, 2, 4, 3).bfloat16()
    loss = kd_loss(student, teacher, 2.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(float(kd_loss(student.double(), teacher.double(), 2.0)), rel=1e-5)


def test_bad_arguments() -> None:
    student = logits(0, 4, 3)
    for temperature in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ArgumentError, match=r"temperature should be above 0, got"):
            kd_loss(student, student, temperature)
    with pytest.raises(ArgumentError, match=r"\(4, 3\) and \(1, 3\)"):
        kd_loss(student, student[:1], 1.0)
    with pytest.raises(ArgumentError, match=r"\(4,\) and \(4,\)"):
        kd_loss(student[:, 0], student[:, 0], 1.0)


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("difference", [1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("temperature", [20.0, 100.0, 1000.0])
def test_the_value_at_high_temperatures(temperature: float, difference: float, classes: int) -> None:
    """Of float32 logits that are nearly the teacher's, where the usual sum is all rounding."""
    generator = torch.Generator().manual_seed(0)
    teacher = 3 * torch.randn(64, classes, generator=generator)
    student = teacher + difference * torch.randn(64, classes, generator=generator)
    expected = longdouble_reference(student.numpy(), teacher.numpy(), temperature)
    assert float(kd_loss(student, teacher, temperature)) == pytest.approx(expected, rel=1e-4)
    assert float(kd_loss(student.double(), teacher.double(), temperature)) == pytest.approx(expected, rel=1e-5)


def longdouble_reference(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """The usual sum, in numbers of 19 digits where the machine has them."""
    logs = []
    for logits in (student, teacher):
        scaled = logits.astype(np.longdouble) / np.longdouble(temperature)
        scaled -= scaled.max(1, keepdims=True)
        logs.append(scaled - np.log(np.exp(scaled).sum(1, keepdims=True)))
    return float((np.exp(logs[1]) * (logs[1] - logs[0])).sum(1).mean() * temperature**2)


@pytest.mark.parametrize("temperature", [5.0, 10.0, 10.1, 100.0])
def test_the_gradient_and_usual_temperatures_are_the_usual_sums(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(8, 10, generator=generator, requires_grad=True) for _ in range(2))
    logs = [F.log_softmax(logits / temperature, 1) for logits in (student, teacher)]
    usual = F.kl_div(*logs, reduction="batchmean", log_target=True) * temperature**2
    found = kd_loss(student, teacher, temperature)
    for a, b in zip(
        torch.autograd.grad(found, (student, teacher)), torch.autograd.grad(usual, (student, teacher)), strict=True
    ):
        assert torch.equal(a, b)
    assert torch.equal(found, usual) is (temperature <= 10)


def test_logits_far_apart_at_a_high_temperature() -> None:
    student, teacher = torch.tensor([[5e4, 0.0]]), torch.tensor([[0.0, 5e4]])
    assert float(kd_loss(student, teacher, 20.0)) == pytest.approx(5e4 / 20 * 400, rel=1e-5)
    same = torch.randn(4, 10)
    assert float(kd_loss(same, same, 100.0)) == 0
