from __future__ import annotations

import math

import pytest
import torch

from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.information.gaussian import Moments, gaussian_information
from lightning_ckptkd.information.inputs import pool_inputs, principal_components


def estimate(x: torch.Tensor, f: torch.Tensor, seed: int = 0) -> float:
    folds = assign_folds(len(x), 5, seed)
    return gaussian_information([Moments.of(x[folds == fold], f[folds == fold]) for fold in range(5)])


@pytest.mark.parametrize("dimensions", [1, 8, 32])
@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_gaussian_channel(dimensions: int, noise: float) -> None:
    """X ~ N(0, I), F = X + noise: (d/2) ln(1 + 1/noise^2)."""
    x = torch.randn(10_000, dimensions)
    truth = dimensions / 2 * math.log(1 + 1 / noise**2)
    assert estimate(x, x + noise * torch.randn_like(x)) == pytest.approx(truth, rel=0.05, abs=0.02 * dimensions)


@pytest.mark.parametrize(("rho", "truth"), [(0.0, 0.0), (0.75, 0.4133), (-0.75, 0.4133)])
def test_bivariate(rho: float, truth: float) -> None:
    x = torch.randn(20_000, 1)
    f = rho * x + math.sqrt(1 - rho**2) * torch.randn_like(x)
    assert estimate(x, f) == pytest.approx(truth, abs=0.02)


def test_many_useless_features_cost_nothing() -> None:
    assert estimate(torch.randn(1000, 10), torch.randn(1000, 500)) == pytest.approx(0, abs=0.1)


def test_invariant_to_scale_shift_and_order_of_features() -> None:
    x = torch.randn(4000, 4).double()
    f = x @ torch.randn(4, 6).double() + torch.randn(4000, 6).double()
    shuffled = (f * torch.tensor([1e3, 1e-3, 1, 2, -5, 1]) + 7)[:, torch.randperm(6)]
    assert estimate(x, shuffled) == pytest.approx(estimate(x, f), rel=1e-6)


def test_constant_and_repeated_features() -> None:
    x = torch.randn(4000, 3).double()
    f = x + torch.randn_like(x)
    degenerate = torch.cat([f, f, torch.full((4000, 2), 3.0)], 1)
    assert estimate(x, degenerate) == pytest.approx(estimate(x, f), rel=1e-2)


def test_finite_where_features_determine_the_input() -> None:
    x = torch.randn(2000, 3)
    assert 15 < estimate(x, x) < 3 / 2 * math.log(1e6) + 1


def test_moments_of_parts_add_up() -> None:
    x, f = torch.randn(100, 3), torch.randn(100, 5)
    whole, parts = Moments.of(x, f), Moments.of(x[:30], f[:30]) + Moments.of(x[30:], f[30:])
    for name in ("count", "x", "f", "xx", "xf", "ff"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    assert whole.xf.dtype == torch.float64


def test_held_out_samples_score() -> None:
    """In-sample scoring would see much information in 150 random features of 250 samples; there is none."""
    assert estimate(torch.randn(250, 2), torch.randn(250, 150)) < 0.3


def test_too_few_samples() -> None:
    with pytest.raises(ValueError, match=r"at least twice as many samples as X has dimensions \(8\), got 10"):
        estimate(torch.randn(50, 8), torch.randn(50, 2))
    with pytest.raises(ValueError, match="three or more are needed"):
        gaussian_information([Moments.of(torch.randn(9, 1), torch.randn(9, 1))] * 2)


def test_pool_inputs() -> None:
    assert pool_inputs(torch.randn(2, 3, 32, 32)).shape == (2, 3 * 16 * 16)
    assert pool_inputs(torch.randn(2, 1, 8, 8)).shape == (2, 64)
    assert pool_inputs(torch.randn(2, 3, 224, 112)).shape == (2, 3 * 14 * 7)
    assert pool_inputs(torch.randn(2, 5, 7)).shape == (2, 35)
    assert pool_inputs(torch.full((2, 3, 32, 32), 9, dtype=torch.uint8)).unique().tolist() == [9.0]
    image = torch.arange(32 * 32.0).reshape(1, 1, 32, 32)
    assert pool_inputs(image)[0, 0] == image[0, 0, :2, :2].mean()


def test_principal_components_keep_the_variance() -> None:
    x = torch.randn(500, 4).double() @ torch.diag(torch.tensor([5.0, 3.0, 1.0, 0.0]).double()) + 10
    scores = principal_components(x, 64)
    assert scores.shape == (500, 3)
    assert scores.var(0, correction=0).sum() == pytest.approx(float(x.var(0, correction=0).sum()))
    assert scores[:, 0].var() > scores[:, 1].var() > scores[:, 2].var()


def test_folds_are_even_and_seeded() -> None:
    folds = assign_folds(103, 5, 1)
    assert sorted(torch.bincount(folds).tolist()) == [20, 20, 21, 21, 21]
    assert torch.equal(folds, assign_folds(103, 5, 1))
    assert not torch.equal(folds, assign_folds(103, 5, 2))
