"""I(X;F) where X is not normal: what is claimed to be a bound is one, and the Gaussian gain is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from lightning_ckptkd.information.contrastive import contrastive_ceiling, contrastive_gains
from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.information.gaussian import gaussian_gains
from lightning_ckptkd.information.uncertainty import jackknife_error, leave_one_out

N = 2000
FOLDS = assign_folds(N, 5, 0)


@dataclass(frozen=True)
class Input:
    """A distribution of X: how it is drawn, and its mass on a grid."""

    draw: Callable[[int], Tensor]
    grid: np.ndarray
    mass: np.ndarray

    def truth(self, noise: float) -> float:
        """I(X; X + N(0, noise^2)) = h(F) - h(noise), in nats, by summing over grids."""
        f = np.linspace(self.grid.min() - 6 * noise, self.grid.max() + 6 * noise, 2500)
        density = np.zeros_like(f)
        for some in np.array_split(np.arange(len(self.grid)), 20):
            density += np.exp(-(((f[:, None] - self.grid[some]) / noise) ** 2) / 2) @ self.mass[some]
        density /= noise * math.sqrt(2 * math.pi)
        entropy = -np.sum(density * np.log(np.maximum(density, 1e-300))) * (f[1] - f[0])
        return float(entropy - 0.5 * math.log(2 * math.pi * math.e * noise**2))


def continuous(distribution: stats.rv_continuous, low: float, high: float) -> Input:
    edges = np.linspace(low, high, 1001)
    mass = np.diff(distribution.cdf(edges))
    return Input(
        lambda n: torch.from_numpy(distribution.rvs((n, 1), random_state=0)), (edges[1:] + edges[:-1]) / 2, mass
    )


def discrete(values: np.ndarray, mass: np.ndarray) -> Input:
    drawn = np.random.default_rng(0)
    return Input(lambda n: torch.from_numpy(drawn.choice(values, (n, 1), p=mass / mass.sum())), values, mass)


COUNTS = np.arange(20.0)
EXPONENTIAL = continuous(stats.expon(), 0, 14)
INPUTS = {
    "bits": discrete(np.array([0.0, 1.0]), np.array([0.5, 0.5])),
    "exponential": EXPONENTIAL,
    "Poisson": discrete(COUNTS, stats.poisson(3).pmf(COUNTS)),
    "uniform": continuous(stats.uniform(), 0, 1),
    "Student-t": continuous(stats.t(3), -30, 30),
    "zero-inflated": Input(
        lambda n: EXPONENTIAL.draw(n) * (torch.rand(n, 1, generator=torch.Generator().manual_seed(1)) < 0.3),
        np.append(EXPONENTIAL.grid, 0.0),
        np.append(0.3 * EXPONENTIAL.mass, 0.7),
    ),
}


def estimate(gains: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, noise: float) -> tuple[float, float]:
    f = x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = gains(x, f, FOLDS)
    return float(found.mean()), float(jackknife_error(leave_one_out(found, 0)))


@pytest.mark.parametrize("name", list(INPUTS))
@pytest.mark.parametrize("noise", [0.1, 0.5, 2.0])
def test_the_contrastive_bound_is_never_above_the_truth(name: str, noise: float) -> None:
    x, truth = INPUTS[name].draw(N).double(), INPUTS[name].truth(noise)
    found, error = estimate(contrastive_gains, x, noise)
    assert found <= truth + 2 * error
    assert found >= 0.9 * truth - 0.02


@pytest.mark.parametrize("name", list(INPUTS))
def test_the_gaussian_gain_exceeds_the_information_or_not(name: str) -> None:
    """By what the Gaussian model of X lacks: much for counts and bits, little for uniform inputs."""
    x, truth = INPUTS[name].draw(N).double(), INPUTS[name].truth(0.1)
    gain, error = estimate(gaussian_gains, x, 0.1)
    assert gain > truth + 2 * error
    assert (gain > 1.4 * truth) == (name in ("bits", "Poisson", "zero-inflated"))


def test_known_truths() -> None:
    assert INPUTS["bits"].truth(0.05) == pytest.approx(math.log(2), abs=1e-3)
    normal = continuous(stats.norm(), -8, 8)
    assert normal.truth(0.5) == pytest.approx(0.5 * math.log(1 + 1 / 0.25), abs=1e-3)


def test_the_gaussian_gain_can_exceed_the_information() -> None:
    """One bit can tell 0.693 nats; a Gaussian model of X knows less of it than that it is a bit."""
    x = INPUTS["bits"].draw(N).double()
    gain, _ = estimate(gaussian_gains, x, 0.05)
    bound, error = estimate(contrastive_gains, x, 0.05)
    assert gain > 2 > math.log(2) >= bound - 2 * error
    assert bound == pytest.approx(math.log(2), abs=0.02)


def test_the_contrastive_bound_of_normal_variables_and_its_ceiling() -> None:
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(0)).double()
    found, error = estimate(contrastive_gains, x, 1.0)
    assert 2 * math.log(2) * 0.9 < found < 2 * math.log(2) + 2 * error
    saturated, _ = estimate(contrastive_gains, x, 0.001)
    assert saturated == pytest.approx(contrastive_ceiling(FOLDS), abs=0.05)
    assert contrastive_ceiling(FOLDS) == pytest.approx(math.log(N / 5))
    alone = contrastive_gains(x, torch.randn(N, 4, dtype=torch.float64), FOLDS)
    assert abs(float(alone.mean())) < 0.01
