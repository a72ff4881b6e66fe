from __future__ import annotations

import math

import pytest
import torch
from sklearn.feature_selection import mutual_info_regression

from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.information.gaussian import (
    _RIDGES,
    Moments,
    fit_decoders,
    gaussian_ceiling,
    gaussian_gains,
    gaussian_information,
)
from lightning_ckptkd.information.inputs import pool_inputs, principal_components, within_classes
from lightning_ckptkd.information.uncertainty import jackknife_error, leave_one_out


def estimate(x: torch.Tensor, f: torch.Tensor, seed: int = 0) -> float:
    return float(gaussian_gains(x, f, assign_folds(len(x), 5, seed)).mean())


def correlated(samples: int, dimensions: int, rho: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of normal variables, each pair with that correlation."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, samples, dimensions, generator=generator, dtype=torch.float64)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize(("dimensions", "samples"), [(1, 1000), (4, 1000), (16, 1000), (16, 4000), (64, 3200)])
def test_correlated_gaussians(dimensions: int, samples: int, rho: float) -> None:
    """-d/2 ln(1 - rho^2); the bias over seeds is within 3% or 0.02 nats a dimension from 50 samples a dimension on."""
    truth = -dimensions / 2 * math.log(1 - rho**2)
    found = torch.tensor([estimate(*correlated(samples, dimensions, rho, seed), seed=seed) for seed in range(8)])
    spread = float(found.std()) / math.sqrt(8)
    bound = max(0.03 * truth, 0.02 * dimensions) if samples >= 50 * dimensions else 0.05 * dimensions
    assert abs(float(found.mean()) - truth) < bound + 2 * spread


@pytest.mark.parametrize("dimensions", [1, 8, 32])
@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_gaussian_channel(dimensions: int, noise: float) -> None:
    """X ~ N(0, I), F = X + noise: (d/2) ln(1 + 1/noise^2)."""
    x = torch.randn(10_000, dimensions)
    truth = dimensions / 2 * math.log(1 + 1 / noise**2)
    assert estimate(x, x + noise * torch.randn_like(x)) == pytest.approx(truth, rel=0.03, abs=0.02 * dimensions)


def test_agrees_with_nearest_neighbours() -> None:
    """scikit-learn's estimator (Kraskov et al. 2004) assumes nothing of the distribution."""
    x, f = correlated(5000, 1, 0.8, 0)
    theirs = mutual_info_regression(f.numpy(), x.squeeze(1).numpy(), n_neighbors=5, random_state=0)[0]
    assert estimate(x, f) == pytest.approx(theirs, abs=0.03)


def test_the_mean_gain_is_the_information_from_moments() -> None:
    x, f = correlated(700, 5, 0.7, 1)
    folds = assign_folds(700, 5, 0)
    moments = [Moments.of(x[folds == fold], f[folds == fold]) for fold in range(5)]
    assert gaussian_information(moments) == pytest.approx(float(gaussian_gains(x, f, folds).mean()), rel=1e-9)


def test_the_standard_error_is_that_of_repeated_draws() -> None:
    found, errors = [], []
    for seed in range(40):
        gains = gaussian_gains(*correlated(500, 3, 0.7, seed), assign_folds(500, 5, seed))
        found.append(float(gains.mean()))
        errors.append(float(jackknife_error(leave_one_out(gains, seed))))
    assert sum(errors) / 40 == pytest.approx(float(torch.tensor(found).std()), rel=0.4)


def test_zero_for_independence_by_a_permutation_test() -> None:
    x, f = correlated(600, 4, 0.0, 3)
    permuted = [estimate(x, f[torch.randperm(600)]) for _ in range(30)]
    assert min(permuted) - 0.01 <= estimate(x, f) <= max(permuted) + 0.01
    x, f = correlated(600, 4, 0.3, 3)
    assert estimate(x, f) > max(estimate(x, f[torch.randperm(600)]) for _ in range(30)) + 0.05


def test_a_function_of_the_features_tells_no_more() -> None:
    x, f = correlated(4000, 6, 0.8, 4)
    for g in (f[:, :4], f @ torch.randn(6, 3, dtype=torch.float64), f + torch.randn_like(f), f.sign()):
        assert estimate(x, g) < estimate(x, f)


def test_additive_over_independent_parts() -> None:
    first, second = correlated(8000, 3, 0.5, 5), correlated(8000, 5, 0.8, 6)
    both = estimate(torch.cat([first[0], second[0]], 1), torch.cat([first[1], second[1]], 1))
    assert both == pytest.approx(estimate(*first) + estimate(*second), rel=0.02)


def test_monotone_in_noise() -> None:
    x = torch.randn(3000, 5).double()
    noise = torch.randn_like(x)
    found = [estimate(x, x + level * noise) for level in (0.1, 0.3, 1.0, 3.0, 10.0)]
    assert found == sorted(found, reverse=True)


def test_invariant_to_invertible_maps_and_the_order_of_samples() -> None:
    x, f = correlated(4000, 4, 0.7, 7)
    mapped = f @ torch.randn(4, 4).double() + 3
    assert estimate(x, mapped) == pytest.approx(estimate(x, f), rel=0.01)
    assert estimate(x @ torch.randn(4, 4).double() - 1, f) == pytest.approx(estimate(x, f), rel=0.01)
    order = torch.randperm(4000)
    folds = assign_folds(4000, 5, 0)
    shuffled = gaussian_gains(x[order], f[order], folds[order])
    torch.testing.assert_close(shuffled, gaussian_gains(x, f, folds)[order])


def test_given_the_label_only_what_is_beyond_it_counts() -> None:
    """X and F share the class mean and, within a class, a part that tells (d/2) ln(1 + 1/noise^2)."""
    labels = torch.randint(5, (10_000,))
    within = torch.randn(10_000, 4).double()
    means = 10 * torch.randn(5, 4).double()
    x, f = within + means[labels], within + torch.randn(10_000, 4).double() + means[labels]
    truth = 2 * math.log(2)
    assert estimate(within_classes(x, labels), within_classes(f, labels)) == pytest.approx(truth, rel=0.05)
    assert estimate(x, f) > truth + 2
    alone = means[labels] + torch.randn(10_000, 4).double()
    assert abs(estimate(within_classes(x, labels), within_classes(alone, labels))) < 0.02


def test_nothing_is_above_the_ceiling() -> None:
    x = torch.randn(2000, 3).double() * torch.tensor([1.0, 5.0, 0.1]).double()
    assert estimate(x, x) == pytest.approx(gaussian_ceiling(x), rel=0.01)
    assert estimate(x, x + torch.randn_like(x)) < gaussian_ceiling(x)


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


def test_features_that_differ_in_their_last_digits() -> None:
    """As those of a network that hardly began to learn: sums of squares of 1 would lose differences of 1e-9."""
    x, f = correlated(200, 4, 0.8, 0)
    expected = gaussian_gains(x, f, assign_folds(200, 5, 0))
    torch.testing.assert_close(gaussian_gains(x, 1 + 1e-9 * f, assign_folds(200, 5, 0)), expected, rtol=0, atol=1e-4)
    rounded = 1 + 1e-9 * torch.randn(64, 128, dtype=torch.float64)
    assert estimate(correlated(64, 4, 0.8, 0)[0], rounded) < 0.2


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
    with pytest.raises(ValueError, match=r"at least twice as many samples as X has dimensions \(8\), got 12"):
        estimate(torch.randn(15, 8), torch.randn(15, 2))
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


def test_a_fold_is_not_in_its_own_covariance() -> None:
    """What the decoder of a fold has not seen is judged by what the others taught it, and not by itself."""
    generator = torch.Generator().manual_seed(0)
    f = torch.randn(1000, 2, generator=generator, dtype=torch.float64)
    folds = torch.arange(1000) % 5
    noise = torch.randn(1000, 2, generator=generator, dtype=torch.float64)
    gains = gaussian_gains(f + noise * torch.where(folds == 0, 10, 0.1)[:, None], f, folds)
    assert float(gains[folds == 0].mean()) < -500, "100 times the noise that the other folds have"


def test_a_fold_scored_by_sums_is_scored_as_by_its_samples() -> None:
    """The residual of a decoder, from moments and from the samples, features far from zero."""
    x, f = torch.randn(600, 4).double(), 50 + torch.randn(600, 30).double()
    x = x + f[:, :4]
    folds = [Moments.of(x[fold::5], f[fold::5]) for fold in range(5)]
    for fold, decoder in enumerate(fit_decoders(folds)):
        assert decoder.mean_gain(folds[fold]) == pytest.approx(float(decoder.gains(x[fold::5], f[fold::5]).mean()))
        others = torch.arange(600) % 5 != fold
        z = (f[others] - f[others].mean(0)) / f[others].std(0, correction=0)
        target = x[others] - x[others].mean(0)
        solved = [
            torch.linalg.solve(z.T @ z / len(z) + ridge * torch.eye(30), z.T @ target / len(z))
            / f[others].std(0, correction=0)[:, None]
            for ridge in _RIDGES
        ]
        assert min(float((decoder.slope - slope).abs().max()) for slope in solved) < 1e-7, (
            "of features 50 deviations from zero"
        )
