from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from lightning_ckptkd.information import temperature
from lightning_ckptkd.information.temperature import COLDEST, HOTTEST, fitted_temperature


def drawn(scale: float, count: int = 400, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and labels that are drawn from the softmax of logits / scale."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(count, classes, generator=generator)
    return logits, torch.multinomial((logits / scale).softmax(1), 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("soft", [False, True])
def test_against_scipy_in_float64(scale: float, soft: bool) -> None:
    logits, labels = drawn(scale)
    shares = torch.nn.functional.one_hot(labels, 5).double().numpy()
    if soft:
        shares = 0.9 * shares + 0.02

    def cost(log_temperature: float) -> float:
        wide = logits.double().numpy() / np.exp(log_temperature)
        return float(-(shares * log_softmax(wide, axis=1)).sum(1).mean())

    expected = np.exp(minimize_scalar(cost, bounds=(-2.5, 4), method="bounded", options={"xatol": 1e-9}).x)
    truth = torch.from_numpy(shares) if soft else labels
    assert fitted_temperature(logits, truth) == pytest.approx(expected, rel=1e-4)


def test_it_goes_with_the_scale_of_the_logits() -> None:
    logits, labels = drawn(1.0)
    once = fitted_temperature(logits, labels)
    assert once == pytest.approx(1.0, abs=0.2)
    assert fitted_temperature(3 * logits, labels) == pytest.approx(3 * once, rel=1e-5)


def test_where_no_temperature_is_the_best() -> None:
    logits, labels = drawn(1.0)
    right = logits.argmax(1)
    assert fitted_temperature(logits, right) == pytest.approx(COLDEST, rel=1e-3)
    assert fitted_temperature(logits, logits.argmin(1)) == pytest.approx(HOTTEST, rel=1e-3)
    assert fitted_temperature(torch.zeros_like(logits), labels) == 1


def test_many_rows_have_the_temperature_that_is_sought_from_one() -> None:
    """The search begins at what a part of the rows has, even where that part has another one than all."""
    logits, labels = drawn(2.0, count=20_000)
    logits[:: temperature._SHARE] *= 8
    assert fitted_temperature(logits, labels) == pytest.approx(temperature._newton(logits, labels, 1.0), rel=1e-6)
    right = logits.argmax(1)
    assert fitted_temperature(logits, right) == pytest.approx(COLDEST, rel=1e-3)


def test_the_number_of_threads_is_as_before() -> None:
    logits, labels = drawn(1.0)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fitted_temperature(logits, labels)
        with pytest.raises(RuntimeError):
            fitted_temperature(logits, labels + 100)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
