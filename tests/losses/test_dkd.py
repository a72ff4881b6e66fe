from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import softmax

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses import DISTLoss, DKDLoss, KDLoss, MSELoss, dkd_loss, kd_loss

TARGET = torch.tensor([0, 3, 4, 2, 0, 1])


def reference(
    student: np.ndarray, teacher: np.ndarray, target: np.ndarray, temperature: float, alpha: float, beta: float
) -> float:
    """The paper's equation, a sample at a time."""
    losses = []
    for s, t, y in zip(student, teacher, target, strict=True):
        q, p = softmax(s / temperature), softmax(t / temperature)
        q_others, p_others = np.delete(q, y), np.delete(p, y)
        tckd = p[y] * np.log(p[y] / q[y]) + p_others.sum() * np.log(p_others.sum() / q_others.sum())
        q_others, p_others = q_others / q_others.sum(), p_others / p_others.sum()
        losses.append(alpha * tckd + beta * np.sum(p_others * np.log(p_others / q_others)))
    return float(temperature**2 * np.mean(losses))


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * 3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (0.0, 1.0), (2.0, 0.0)])
def test_against_numpy_in_float64(temperature: float, alpha: float, beta: float) -> None:
    student, teacher = logits(0, 2, 6, 5)
    found = dkd_loss(student, teacher, TARGET, temperature, alpha, beta)
    expected = reference(student.numpy(), teacher.numpy(), TARGET.numpy(), temperature, alpha, beta)
    assert float(found) == pytest.approx(expected, rel=1e-10)
    assert DKDLoss(temperature, alpha=alpha, beta=beta)(student, teacher, TARGET) == found


def test_with_the_teachers_doubt_as_beta_it_is_kd() -> None:
    student, teacher = logits(0, 2, 6, 5)
    doubt = 1 - torch.softmax(teacher / 4, 1).gather(1, TARGET[:, None])[:, 0]
    found = dkd_loss(student, teacher, TARGET, 4.0, 1.0, doubt)
    assert float(found) == pytest.approx(float(kd_loss(student, teacher, 4.0)), rel=1e-12)


def test_gradcheck() -> None:
    student, teacher = (logits(seed, 6, 5).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda s, t: dkd_loss(s, t, TARGET, 3.0), (student, teacher))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stable_for_large_logits(dtype: torch.dtype) -> None:
    """TCKD is -log(1 - q_y) = 1e4 - log 2, NCKD is KL((1, 0) || (1/2, 1/2)) = log 2."""
    student = torch.tensor([[1e4, 0, 0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[0, 1e4, 0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([0])
    loss = dkd_loss(student, teacher, target, 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(1e4 + 7 * math.log(2), rel=1e-6)
    assert student.grad is not None
    assert teacher.grad is not None
    assert student.grad.tolist() == [[1, -0.5 - 4, -0.5 + 4]]
    assert teacher.grad.isfinite().all()
    swapped = dkd_loss(teacher, student, target, 1.0)
    assert swapped.item() == pytest.approx(1e4 + 8 * (5e3 - math.log(2)), rel=1e-6)


def test_a_sure_student_in_float32_keeps_the_small_probability_of_the_others() -> None:
    """-log(1 - q_y) where 1 - q_y is 2 exp(-40), which a difference from 1 would lose."""
    loss = dkd_loss(torch.tensor([[40.0, 0, 0]]), torch.zeros(1, 3), torch.tensor([0]), 1.0)
    log_others = math.log(2) - 40 - math.log1p(2 * math.exp(-40))
    expected = math.log(1 / 3) / 3 + 2 / 3 * (math.log(2 / 3) - log_others)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_zero_where_they_agree_up_to_a_constant() -> None:
    student = logits(0, 6, 5)
    assert float(dkd_loss(student, student - 2, TARGET, 4.0)) == pytest.approx(0, abs=1e-12)
    assert float(dkd_loss(student, student * 1.1, TARGET, 4.0)) > 1e-4


def test_two_classes_leave_the_target_term_alone() -> None:
    student, teacher = logits(0, 2, 4, 2)
    target = torch.tensor([0, 1, 1, 0])
    found = dkd_loss(student, teacher, target, 2.0)
    assert float(found) == pytest.approx(float(kd_loss(student, teacher, 2.0)), rel=1e-12)


def test_the_loss_of_scaled_logits_is_t_squared_times_that_at_temperature_1() -> None:
    student, teacher = logits(0, 2, 6, 5)
    scaled = dkd_loss(7 * student, 7 * teacher, TARGET, 7.0)
    assert float(scaled) == pytest.approx(49 * float(dkd_loss(student, teacher, TARGET, 1.0)), rel=1e-12)


def test_batch_mean() -> None:
    student, teacher = logits(0, 2, 6, 5)
    twice = dkd_loss(student.repeat(2, 1), teacher.repeat(2, 1), TARGET.repeat(2), 2.0)
    assert float(twice) == pytest.approx(float(dkd_loss(student, teacher, TARGET, 2.0)), rel=1e-12)


def test_half_precision_logits_are_computed_in_float32() -> None:
    student, teacher = logits(0, 2, 6, 5).bfloat16()
    loss = dkd_loss(student, teacher, TARGET, 2.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(float(dkd_loss(student.double(), teacher.double(), TARGET, 2.0)), rel=1e-5)


def test_bad_arguments() -> None:
    student = logits(0, 6, 5)
    with pytest.raises(ArgumentError, match=r"target should be class indices of shape \(6,\), .* \(6, 5\)"):
        dkd_loss(student, student, torch.softmax(student, 1), 1.0)
    with pytest.raises(ArgumentError, match=r"target should be class indices of shape \(6,\), .* \(5,\)"):
        dkd_loss(student, student, TARGET[:5], 1.0)
    with pytest.raises(ArgumentError, match=r"target should be class indices .* torch.float32.*target\.long\(\)"):
        dkd_loss(student, student, TARGET.float(), 1.0)
    assert dkd_loss(student, -student, TARGET.float().long(), 1.0) == dkd_loss(student, -student, TARGET, 1.0)
    for other in (KDLoss(), DISTLoss(), MSELoss()):
        assert other(student, -student[None], torch.softmax(student, 1)).isfinite()
    with pytest.raises(ArgumentError, match=r"student_logits are of 1 class"):
        dkd_loss(student[:, :1], student[:, :1], TARGET, 1.0)
    with pytest.raises(ArgumentError, match=r"temperature should be above 0, got 0"):
        dkd_loss(student, student, TARGET, 0)
    with pytest.raises(ArgumentError, match=r"\(6, 5\) and \(1, 5\)"):
        dkd_loss(student, student[:1], TARGET, 1.0)
    with pytest.raises(ArgumentError, match=r"needs target="):
        DKDLoss()(student, student)
    with pytest.raises(ArgumentError, match=r"alpha should be 0 or more, got -1"):
        DKDLoss(alpha=-1)
    with pytest.raises(ArgumentError, match=r"beta should be 0 or more, got nan"):
        DKDLoss(beta=float("nan"))
