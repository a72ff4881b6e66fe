from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import softmax

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses import combine_logits

WEIGHTS = torch.tensor([1.0, 0.0, 3.0, 4.0])


def teachers() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(4, 6, 5)) * 3)


@pytest.mark.parametrize("weights", [None, WEIGHTS, WEIGHTS.long()])
def test_mean_of_logits_by_a_loop(weights: torch.Tensor | None) -> None:
    shares = [0.25] * 4 if weights is None else [1 / 8, 0, 3 / 8, 4 / 8]
    expected = sum(share * logits.numpy() for share, logits in zip(shares, teachers(), strict=True))
    np.testing.assert_allclose(combine_logits(teachers(), "logits", 3.0, weights), expected, rtol=1e-10)


@pytest.mark.parametrize("weights", [None, WEIGHTS, WEIGHTS.long()])
def test_mean_of_probabilities_by_a_loop(weights: torch.Tensor | None) -> None:
    shares = [0.25] * 4 if weights is None else [1 / 8, 0, 3 / 8, 4 / 8]
    pairs = zip(shares, teachers().numpy(), strict=True)
    expected = sum(share * softmax(logits / 3, axis=1) for share, logits in pairs)
    found = combine_logits(teachers(), "probabilities", 3.0, weights)
    np.testing.assert_allclose(found, 3 * np.log(expected), rtol=1e-10)
    np.testing.assert_allclose(softmax(found.numpy() / 3, axis=1), expected, rtol=1e-10)


@pytest.mark.parametrize("how", ["logits", "probabilities"])
def test_gradcheck(how: str) -> None:
    logits, weights = teachers().requires_grad_(), torch.tensor([1.0, 2, 3, 4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t, w: combine_logits(t, how, 3.0, w), (logits, weights))


def test_one_teacher_keeps_its_logits() -> None:
    logits = teachers()[:1].float()
    assert combine_logits(logits, "logits", 3.0).equal(logits[0])
    assert combine_logits(logits, "logits", 3.0, torch.tensor([7.0])).equal(logits[0])


def test_large_logits() -> None:
    """(1, 0) and (0, 1) in probabilities; a teacher of weight 0 does not count, however sure."""
    logits = torch.tensor([[[1e4, 0.0]], [[0.0, 1e4]]], requires_grad=True)
    found = combine_logits(logits, "probabilities", 1.0)
    torch.testing.assert_close(found.detach(), torch.full((1, 2), -np.log(2)).float())
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    alone = combine_logits(logits, "probabilities", 1.0, torch.tensor([0.0, 1.0]))
    assert alone.tolist() == [[-1e4, 0.0]]


def test_half_precision_logits_are_combined_in_float32() -> None:
    logits, weights = teachers().bfloat16(), torch.tensor([1.0, 2.0, 4.0, 6.0])
    for how in ("logits", "probabilities"):
        found = combine_logits(logits, how, 3.0, weights.bfloat16())
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, combine_logits(logits.double(), how, 3.0, weights).float())


def test_bad_arguments() -> None:
    logits = teachers()
    with pytest.raises(ArgumentError, match=r"how should be one of logits, probabilities, got 'votes'"):
        combine_logits(logits, "votes", 1.0)
    with pytest.raises(ArgumentError, match=r"temperature should be above 0, got -1"):
        combine_logits(logits, "logits", -1)
    with pytest.raises(ArgumentError, match=r"teacher_logits should have the shape .* have \(6, 5\)"):
        combine_logits(logits[0], "logits", 1.0)
    with pytest.raises(ArgumentError, match=r"one teacher or more, got none"):
        combine_logits(logits[:0], "logits", 1.0)
    for bad in (torch.ones(3), torch.ones(4, 1), torch.tensor(1.0)):
        with pytest.raises(ArgumentError, match=r"weights should be one for each teacher, of shape \(4,\), but have"):
            combine_logits(logits, "logits", 1.0, bad)
    for values in ([1.0, -1, 3, 4], [0.0] * 4, [1.0, np.nan, 1, 1], [1.0, np.inf, 1, 1]):
        with pytest.raises(ArgumentError, match=r"weights should be finite, 0 or more, and not all 0, got \["):
            combine_logits(logits, "probabilities", 1.0, torch.tensor(values))
