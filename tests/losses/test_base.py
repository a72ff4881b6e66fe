from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses import (
    DISTLoss,
    DKDLoss,
    KDLoss,
    LogitLoss,
    MSELoss,
    dist_loss,
    dkd_loss,
    kd_loss,
    mse_loss,
)

LOSSES = [KDLoss, DKDLoss, DISTLoss, MSELoss]
TARGET = torch.tensor([0, 3, 4, 2, 0, 1])
WEIGHTS = torch.tensor([1.0, 2.0, 4.0])
SHARES = (1 / 7, 2 / 7, 4 / 7)


def logits(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * 3)


def pair(loss: type[LogitLoss], student: Tensor, teacher: Tensor) -> float:
    """The pure function at temperature 4 with its default weights."""
    if loss is KDLoss:
        return float(kd_loss(student, teacher, 4.0))
    if loss is DKDLoss:
        return float(dkd_loss(student, teacher, TARGET, 4.0, 1.0, 8.0))
    if loss is DISTLoss:
        return float(dist_loss(student, teacher, 4.0, 1.0, 1.0))
    return float(mse_loss(student, teacher))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_three_combinations_by_loops(loss: type[LogitLoss], weights: Tensor | None) -> None:
    student, teachers = logits(0, 6, 5), logits(1, 3, 6, 5)
    shares = (1 / 3,) * 3 if weights is None else SHARES
    expected: dict[str, float] = {}
    mean = np.zeros((6, 5))
    for share, teacher in zip(shares, teachers.numpy(), strict=True):
        mean += share * teacher
    expected["logits"] = pair(loss, student, torch.from_numpy(mean))
    probabilities = np.zeros((6, 5))
    for share, teacher in zip(shares, teachers.numpy(), strict=True):
        probabilities += share * softmax(teacher / 4, axis=1)
    combined = 4 * np.log(probabilities)
    if loss is MSELoss:
        combined += (mean.mean(1) - combined.mean(1))[:, None]
    expected["probabilities"] = pair(loss, student, torch.from_numpy(combined))
    expected["per_teacher"] = sum(s * pair(loss, student, t) for s, t in zip(shares, teachers, strict=True))
    assert len(set(expected.values())) == 3
    for combine, value in expected.items():
        found = loss(4.0, combine)(student, teachers, TARGET, weights)
        assert found.shape == ()
        assert float(found) == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("combine", ["logits", "probabilities", "per_teacher"])
@pytest.mark.parametrize("loss", LOSSES)
def test_one_teacher_is_the_pure_function(loss: type[LogitLoss], combine: str) -> None:
    student, teacher = logits(0, 2, 6, 5)
    module = loss(4.0, combine)
    expected = pair(loss, student, teacher)
    assert float(module(student, teacher, TARGET)) == pytest.approx(expected, rel=1e-10)
    assert float(module(student, teacher.unsqueeze(0), TARGET)) == pytest.approx(expected, rel=1e-10)
    assert float(module(student, teacher, TARGET, torch.tensor([3.0]))) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("combine", ["logits", "probabilities", "per_teacher"])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss: type[LogitLoss], combine: str) -> None:
    module = loss(4.0, combine)
    inputs = logits(0, 6, 5).requires_grad_(), logits(1, 3, 6, 5).requires_grad_(), WEIGHTS.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t, w: module(s, t, TARGET, w), inputs)


@pytest.mark.parametrize("combine", ["logits", "probabilities", "per_teacher"])
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_and_autocast_are_computed_in_float32(loss: type[LogitLoss], combine: str) -> None:
    module = loss(4.0, combine)
    student, teachers = logits(0, 6, 5).bfloat16(), logits(1, 3, 6, 5).bfloat16()
    expected = float(module(student.double(), teachers.double(), TARGET, WEIGHTS.double()))
    weights = WEIGHTS.bfloat16()
    found = module(student, teachers, TARGET, weights)
    with torch.autocast("cpu", torch.bfloat16):
        cast = [module(student, teachers, TARGET, weights), module(student.float(), teachers.float(), TARGET, weights)]
    for value in (found, *cast):
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_defaults(loss: type[LogitLoss]) -> None:
    module = loss()
    assert (module.temperature, module.combine) == (5.0, "logits")
    student, teachers = logits(0, 6, 5), logits(1, 3, 6, 5)
    assert module(student, teachers, TARGET) == loss(5.0, "logits")(student, teachers, TARGET)


def test_the_pair_of_a_subclass_gets_the_target() -> None:
    class Sum(LogitLoss):
        def pair(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor | None) -> Tensor:
            assert target is TARGET
            return (student_logits * 0 + teacher_logits).sum()

    student, teachers = logits(0, 6, 5), logits(1, 3, 6, 5)
    found = Sum(combine="per_teacher")(student, teachers, TARGET, WEIGHTS)
    assert float(found) == pytest.approx(sum(s * float(t.sum()) for s, t in zip(SHARES, teachers, strict=True)))
    with pytest.raises(TypeError, match="abstract"):
        LogitLoss()  # type: ignore[abstract]


@pytest.mark.parametrize("loss", LOSSES)
def test_bad_arguments(loss: type[LogitLoss]) -> None:
    for temperature in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ArgumentError, match=rf"temperature should be above 0, got {temperature}"):
            loss(temperature)
    with pytest.raises(ArgumentError, match=r"combine should be one of .*, per_teacher, got 'votes'"):
        loss(combine="votes")


@pytest.mark.parametrize("combine", ["logits", "probabilities", "per_teacher"])
def test_bad_shapes(combine: str) -> None:
    module: Any = KDLoss(combine=combine)
    student = logits(0, 6, 5)
    for bad in (student[:, :4], student[:1], logits(1, 3, 1, 5), logits(1, 2, 3, 6, 5), student[0]):
        with pytest.raises(ArgumentError, match=r"student_logits should have .* \(6, 5\) and"):
            module(student, bad)
    with pytest.raises(ArgumentError, match=r"student_logits should have .* they have \(5,\)"):
        module(student[0], student)
    with pytest.raises(ArgumentError, match=r"student_logits should have .* they have \(6, 5, 2\)"):
        module(logits(0, 6, 5, 2), logits(1, 3, 6, 5, 2))
    with pytest.raises(ArgumentError, match=r"one teacher or more, got none"):
        module(student, logits(1, 0, 6, 5))
    with pytest.raises(ArgumentError, match=r"weights should be one for each teacher, of shape \(3,\)"):
        module(student, logits(1, 3, 6, 5), weights=WEIGHTS[:2])
    with pytest.raises(ArgumentError, match=r"weights should be finite, 0 or more"):
        module(student, logits(1, 3, 6, 5), weights=-WEIGHTS)


@pytest.mark.parametrize("loss", [KDLoss(), DKDLoss(), DISTLoss(), MSELoss(), KDLoss(combine="per_teacher")])
def test_a_batch_without_samples_costs_nothing(loss: LogitLoss) -> None:
    student = torch.zeros(0, 4, requires_grad=True)
    found = loss(student, torch.zeros(2, 0, 4), torch.zeros(0, dtype=torch.long))
    found.backward()
    assert float(found.detach()) == 0
