from __future__ import annotations

import pytest
import torch

from lightning_ckptkd.information.likelihoods import LIKELIHOODS, image_costs, output_of_mean

NONE = torch.zeros(1, 1, 1)


@pytest.mark.parametrize("natural", [-60.0, -3.0, -0.015, 0.0, 0.005, 0.5, 20.0, 400.0])
def test_the_continuous_bernoulli_is_a_density(natural: float) -> None:
    pixels = torch.linspace(0, 1, 200_001, dtype=torch.float64).reshape(-1, 1, 1, 1)
    costs = image_costs(torch.full_like(pixels, natural), pixels, "continuous_bernoulli", NONE)
    assert float(torch.trapezoid((-costs).exp(), pixels.flatten())) == pytest.approx(1, rel=1e-4)


def test_cross_entropy_is_none() -> None:
    pixels = torch.linspace(0, 1, 1001).reshape(-1, 1, 1, 1)
    costs = image_costs(torch.zeros_like(pixels), pixels, "bce", NONE)
    assert float(torch.trapezoid((-costs).exp(), pixels.flatten())) == pytest.approx(0.5)


def test_against_torch() -> None:
    images, outputs, log_variance = torch.rand(4, 3, 5, 5), torch.randn(4, 3, 5, 5), torch.randn(3, 1, 1)
    bernoulli = torch.distributions.ContinuousBernoulli(logits=outputs).log_prob(images)
    normal = torch.distributions.Normal(outputs, (log_variance / 2).exp()).log_prob(images)
    for name, log_density in (("continuous_bernoulli", bernoulli), ("gaussian", normal)):
        expected = -log_density.flatten(1).sum(1)
        torch.testing.assert_close(image_costs(outputs, images, name, log_variance), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_no_other_constant_output_describes_the_images_better(likelihood: str) -> None:
    images = torch.rand(500, 1, 2, 2) ** 2
    output, log_variance = output_of_mean(images, likelihood)
    best = image_costs(output.expand_as(images), images, likelihood, log_variance).mean()
    for change in (-0.1, 0.1):
        other = (output + change).expand_as(images)
        assert image_costs(other, images, likelihood, log_variance).mean() > best
