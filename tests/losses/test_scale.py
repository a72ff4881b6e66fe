from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses import DISTLoss, DKDLoss, KDLoss, LogitLoss, MSELoss
from lightning_ckptkd.losses.scale import standardised

LOSSES = [KDLoss, DKDLoss, DISTLoss, MSELoss]
TARGET = torch.tensor([0, 3, 4, 2, 0, 1])


def logits(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * 3)


def z_score(rows: np.ndarray) -> np.ndarray:
    return (rows - rows.mean(-1, keepdims=True)) / rows.std(-1, keepdims=True)


def kd(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    p, log_p = softmax(teacher / temperature, 1), log_softmax(teacher / temperature, 1)
    return float(temperature**2 * (p * (log_p - log_softmax(student / temperature, 1))).sum(1).mean())


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_standardised_against_numpy(temperature: float) -> None:
    student, teachers = logits(0, 6, 5), logits(1, 3, 6, 5)
    loss = KDLoss(temperature, scale="standardised")
    expected = kd(z_score(student.numpy()), z_score(teachers.numpy().mean(0)), temperature)
    assert float(loss(student, teachers)) == pytest.approx(expected, rel=1e-9)
    each = [kd(z_score(student.numpy()), z_score(teacher), temperature) for teacher in teachers.numpy()]
    per_teacher = KDLoss(temperature, "per_teacher", "standardised")
    assert float(per_teacher(student, teachers)) == pytest.approx(np.mean(each), rel=1e-9)
    mixture = np.log(softmax(teachers.numpy() / temperature, axis=2).mean(0)) * temperature
    mixed = KDLoss(temperature, "probabilities", "standardised")(student, teachers)
    assert float(mixed) == pytest.approx(kd(z_score(student.numpy()), z_score(mixture), temperature), rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_standardised_sees_neither_scale_nor_shift(loss: type[LogitLoss]) -> None:
    student, teacher = logits(0, 2, 6, 5)
    module = loss(4.0, scale="standardised")
    expected = module(student, teacher, TARGET)
    assert float(module(7 * student - 3, 0.2 * teacher + 11, TARGET)) == pytest.approx(float(expected), rel=1e-9)
    plain = loss(4.0)(standardised(student), standardised(teacher), TARGET)
    assert float(plain) == pytest.approx(float(expected), rel=1e-12)
    same = module(2 * teacher, teacher, TARGET)
    assert loss is DISTLoss or float(same) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("combine", ["logits", "probabilities", "per_teacher"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_number_and_one_for_each_teacher_multiply_their_logits(loss: type[LogitLoss], combine: str) -> None:
    student, teachers = logits(0, 6, 5), logits(1, 3, 6, 5)
    scales = torch.tensor([0.5, 1.0, 3.0])
    plain = loss(4.0, combine)
    assert torch.equal(loss(4.0, combine, scale=2.0)(student, teachers, TARGET), plain(student, 2 * teachers, TARGET))
    expected = plain(student, scales[:, None, None] * teachers, TARGET)
    found = loss(4.0, combine, scale="fitted")(student, teachers, TARGET, None, scales)
    assert float(found) == pytest.approx(float(expected), rel=1e-12)
    assert torch.equal(loss(4.0, combine, scale="none")(student, teachers, TARGET), plain(student, teachers, TARGET))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", ["standardised", 0.5])
def test_gradcheck(loss: type[LogitLoss], scale: Any) -> None:
    student, teacher = (logits(seed, 6, 5).requires_grad_() for seed in (0, 1))
    module = loss(3.0, scale=scale)
    assert torch.autograd.gradcheck(lambda s, t: module(s, t, TARGET), (student, teacher))


def test_rows_without_a_spread_and_of_any_size() -> None:
    rows = torch.tensor([[0.0, 0.0, 0.0], [5.0, 5.0, 5.0], [1e-6, 0.0, 0.0], [1e4, 0.0, -1e4]]).requires_grad_()
    found = standardised(rows)
    assert torch.equal(found[:2], torch.zeros(2, 3))
    torch.testing.assert_close(
        found[2:].detach().double(), torch.from_numpy(z_score(rows.detach().double().numpy()[2:]))
    )
    (gradient,) = torch.autograd.grad(found.square().sum() + found[:, 0].sum(), rows)
    assert bool(gradient.isfinite().all())
    assert torch.equal(gradient[:2], torch.zeros(2, 3))
    half = standardised(logits(0, 4, 5).half())
    assert half.dtype == torch.float32


@pytest.mark.parametrize("scale", ["fit", "", 0, -1.0, float("nan"), float("inf"), True])
def test_scales_that_are_none(scale: Any) -> None:
    with pytest.raises(ArgumentError, match="scale"):
        KDLoss(scale=scale)


def test_what_does_not_go_together() -> None:
    student, teachers = logits(0, 6, 5), logits(1, 3, 6, 5)
    with pytest.raises(ArgumentError, match="scale='fitted' needs scales=, one for each of 3 teachers, got None"):
        KDLoss(scale="fitted")(student, teachers)
    with pytest.raises(ArgumentError, match=r"got \(2,\)"):
        KDLoss(scale="fitted")(student, teachers, None, None, torch.ones(2))
    with pytest.raises(ArgumentError, match="go with scale='fitted', got scale='none'"):
        KDLoss(scale="none")(student, teachers, None, None, torch.ones(3))
    with pytest.raises(ArgumentError, match="needs three classes or more, got 2"):
        KDLoss(scale="standardised")(student[:, :2], teachers[..., :2])
