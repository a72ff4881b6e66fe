from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses import MSELoss, kd_loss, mse_loss


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * 3)


def test_against_numpy_in_float64() -> None:
    student, teacher = logits(0, 2, 6, 5)
    losses = [np.linalg.norm(s - t) ** 2 / 5 for s, t in zip(student.numpy(), teacher.numpy(), strict=True)]
    found = mse_loss(student, teacher)
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-10)
    assert MSELoss()(student, teacher) == found


def test_gradcheck() -> None:
    student, teacher = (logits(seed, 4, 5).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(mse_loss, (student, teacher))


def test_zero_only_where_they_are_equal() -> None:
    student = logits(0, 6, 5)
    assert float(mse_loss(student, student.clone())) == 0
    assert float(mse_loss(student, student + 2)) == pytest.approx(4, rel=1e-12)


def test_large_logits() -> None:
    student = torch.tensor([[1e4, 0.0]], requires_grad=True)
    loss = mse_loss(student, torch.tensor([[-1e4, 0.0]]))
    loss.backward()
    assert loss.item() == pytest.approx(2e8)
    assert student.grad is not None
    assert student.grad.tolist() == [[2e4, 0]]


def test_kd_of_centred_logits_tends_to_half_of_it() -> None:
    student, teacher = logits(0, 2, 6, 5)
    student, teacher = (x - x.mean(1, keepdim=True) for x in (student, teacher))
    assert float(kd_loss(student, teacher, 1e4)) == pytest.approx(float(mse_loss(student, teacher)) / 2, rel=1e-3)


def test_batch_mean() -> None:
    student, teacher = logits(0, 2, 6, 5)
    twice = mse_loss(student.repeat(2, 1), teacher.repeat(2, 1))
    assert float(twice) == pytest.approx(float(mse_loss(student, teacher)), rel=1e-12)


def test_half_precision_logits_are_computed_in_float32() -> None:
    student, teacher = logits(0, 2, 6, 5).bfloat16()
    loss = mse_loss(student, teacher)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(float(mse_loss(student.double(), teacher.double())), rel=1e-5)


@pytest.mark.parametrize("combine", ["logits", "per_teacher"])
def test_the_temperature_is_of_no_use_elsewhere_than_in_probabilities(combine: str) -> None:
    student, teachers = logits(0, 6, 5), logits(1, 3, 6, 5)
    cold, warm = (MSELoss(temperature, combine)(student, teachers) for temperature in (1.0, 9.0))
    assert cold == warm


def test_mean_probabilities_keep_the_mean_level_of_the_teachers_logits() -> None:
    student, teachers, weights = logits(0, 6, 5), logits(1, 3, 6, 5), torch.tensor([1.0, 2.0, 5.0]).double()
    loss = MSELoss(4.0, "probabilities")
    one = loss(student, teachers[0])
    assert float(one) == pytest.approx(float(mse_loss(student, teachers[0])), rel=1e-10)

    w, t = weights.numpy() / 8, teachers.numpy()
    p = np.exp(t / 4) / np.exp(t / 4).sum(2, keepdims=True)
    mean = 4 * np.log(np.tensordot(w, p, 1))
    mean += (np.tensordot(w, t, 1).mean(1) - mean.mean(1))[:, None]
    found = loss(student, teachers, weights=weights)
    assert float(found) == pytest.approx(((student.numpy() - mean) ** 2).mean(), rel=1e-10)


def test_bad_arguments() -> None:
    student = logits(0, 6, 5)
    with pytest.raises(ArgumentError, match=r"\(6, 5\) and \(1, 5\)"):
        mse_loss(student, student[:1])
    with pytest.raises(ArgumentError, match=r"\(6,\) and \(6,\)"):
        mse_loss(student[:, 0], student[:, 0])
