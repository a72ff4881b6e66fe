from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from lightning_ckptkd.losses import KDLoss, kd_loss


def reference(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    p = softmax(teacher / temperature, axis=1)
    difference = log_softmax(teacher / temperature, axis=1) - log_softmax(student / temperature, axis=1)
    return float(temperature**2 * (p * difference).sum(1).mean())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5.0, 20.0])
def test_against_numpy_in_float64(temperature: float) -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 32, 10)) * 3
    found = kd_loss(torch.from_numpy(student), torch.from_numpy(teacher), temperature)
    assert float(found) == pytest.approx(reference(student, teacher, temperature), rel=1e-4)
    assert KDLoss(temperature)(torch.from_numpy(student), torch.from_numpy(teacher)) == found


def test_zero_where_they_agree_and_stable_for_large_logits() -> None:
    logits = torch.randn(8, 5)
    assert float(kd_loss(logits, logits + 3, 4.0)) == pytest.approx(0, abs=1e-5)
    large = kd_loss(torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]]), 1.0)
    assert float(large) == pytest.approx(1e4)


def test_gradient_is_the_difference_of_probabilities() -> None:
    """d/ds of T^2 KL is T (softmax(s/T) - softmax(t/T)) / N."""
    student, teacher = torch.randn(6, 4, requires_grad=True), torch.randn(6, 4)
    kd_loss(student, teacher, 3.0).backward()
    expected = 3 * (torch.softmax(student / 3, 1) - torch.softmax(teacher / 3, 1)) / 6
    torch.testing.assert_close(student.grad, expected.detach(), atol=1e-6, rtol=1e-5)


def test_half_precision_logits_are_computed_in_float32() -> None:
    assert kd_loss(torch.randn(2, 3).bfloat16(), torch.randn(2, 3).bfloat16(), 2.0).dtype == torch.float32
