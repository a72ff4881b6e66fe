from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_ckptkd.information.convolutional import (
    ConvolutionalClassifier,
    ConvolutionalDecoder,
    convolutional_input_gains,
    convolutional_label_gains,
    unit_range,
)
from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.information.likelihoods import LIKELIHOODS
from lightning_ckptkd.information.uncertainty import jackknife_error, leave_one_out
from tests.projects import digits


def digit_images(count: int = 500) -> torch.Tensor:
    return digits(0, count).tensors[0]


def estimate(images: Tensor, maps: Tensor, **options: Any) -> tuple[float, float]:
    """I(X;F) and its standard error."""
    gains = convolutional_input_gains(images, maps, assign_folds(len(images), 5, 0), **options)
    return float(gains.mean()), float(jackknife_error(leave_one_out(gains, 0, 10)))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_more_of_the_image_is_more_information(likelihood: str) -> None:
    images = digit_images()
    whole, _ = estimate(images, images, likelihood=likelihood)
    coarse, _ = estimate(images, torch.nn.functional.avg_pool2d(images, 4), likelihood=likelihood)
    noise, _ = estimate(images, torch.randn(500, 1, 4, 4), likelihood=likelihood)
    assert whole > coarse + 1 > noise + 2
    assert noise < 0.5


def test_never_above_the_truth_for_binary_pixels() -> None:
    """Fair coins, a tenth of which are seen turned over: ln 2 - h(0.1) a pixel."""
    images = (torch.rand(1500, 1, 6, 6) < 0.5).float()
    maps = (images + (torch.rand_like(images) < 0.1).float()) % 2
    truth = 36 * (math.log(2) + 0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    found, error = estimate(images, maps, likelihood="bce")
    assert 0.7 * truth < found < truth + 2 * error


def test_never_above_the_truth_for_normal_pixels() -> None:
    """X ~ N(0, I), F = X + noise: (d/2) ln(1 + 1/noise^2)."""
    images = torch.randn(1500, 1, 6, 6)
    truth = 18 * math.log(1 + 1 / 0.5**2)
    found, error = estimate(images, images + 0.5 * torch.randn_like(images), likelihood="gaussian")
    assert 0.7 * truth < found < truth + 2 * error


def test_never_above_the_truth_for_labels() -> None:
    labels = torch.randint(5, (3000,))
    wrong = (labels + torch.randint(1, 5, (3000,))) % 5
    seen = torch.where(torch.rand(3000) < 0.2, wrong, labels)
    maps = torch.nn.functional.one_hot(seen, 5).float()[:, :, None, None].expand(-1, -1, 2, 2)
    truth = math.log(5) + 0.8 * math.log(0.8) + 0.2 * math.log(0.2 / 4)
    gains = convolutional_label_gains(labels, maps, assign_folds(3000, 5, 0))
    error = float(jackknife_error(leave_one_out(gains, 0)))
    assert 0.9 * truth < float(gains.mean()) < truth + 2 * error


def test_it_stops_before_it_learns_noise_by_heart() -> None:
    images, maps = torch.rand(60, 1, 8, 8), torch.randn(60, 64, 8, 8)
    assert estimate(images, maps, steps=600)[0] > -2, "without stopping it is -17"


def test_seeded_and_scored_on_held_out_samples() -> None:
    images, folds = digit_images(200), assign_folds(200, 5, 0)
    maps = torch.randn(200, 4, 2, 2)
    state = torch.get_rng_state()
    first = convolutional_input_gains(images, maps, folds, steps=20, seed=3)
    assert torch.equal(torch.get_rng_state(), state), "the user's random numbers are not touched"
    assert first.shape == (40,)
    assert torch.equal(first, convolutional_input_gains(images, maps, folds, steps=20, seed=3))
    assert not torch.equal(first, convolutional_input_gains(images, maps, folds, steps=20, seed=4))


def test_the_papers_classifier() -> None:
    classifier = ConvolutionalClassifier(16, 10)
    assert classifier(torch.randn(2, 16, 8, 8)).shape == (2, 10)
    assert [type(layer).__name__ for layer in classifier] == [
        "Conv2d",
        "BatchNorm2d",
        "ReLU",
        "AdaptiveAvgPool2d",
        "Flatten",
        "Linear",
        "ReLU",
        "Linear",
    ]


def test_the_papers_layers() -> None:
    decoder = ConvolutionalDecoder(64, (3, 32, 32))
    assert decoder(torch.randn(2, 64, 8, 8)).shape == (2, 3, 32, 32)
    parameters = 64 * 12 * 9 + 12 + 24 + 12 * 3 * 9 + 3
    assert sum(parameter.numel() for parameter in decoder.parameters()) == parameters


def test_the_papers_layers_for_large_images() -> None:
    decoder = ConvolutionalDecoder(32, (3, 224, 224))
    assert decoder(torch.randn(2, 32, 7, 7)).shape == (2, 3, 224, 224)
    convolutions = [layer.weight.shape[:2] for layer in decoder if isinstance(layer, torch.nn.Conv2d)]
    assert convolutions == [(128, 32), (32, 128), (12, 32), (3, 12)]


def test_unit_range_undoes_a_normalisation() -> None:
    images = torch.rand(50, 3, 8, 8)
    images[0, :, 0, 0], images[0, :, 0, 1] = 0, 1
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.1]).view(3, 1, 1)
    torch.testing.assert_close(unit_range((images - mean) / std), images, atol=1e-5, rtol=0)
    assert torch.isfinite(unit_range(torch.ones(2, 1, 2, 2))).all()


def test_the_scored_fold_teaches_nothing() -> None:
    """What a sample gains does not change with the other samples of its fold, which no decoder may have seen."""
    images, folds = digit_images(200), torch.arange(200) % 5
    maps = torch.nn.functional.avg_pool2d(images, 2)
    first = convolutional_input_gains(images, maps, folds, steps=20)
    others = (folds == 4).nonzero()[1:, 0]
    images, maps = images.clone(), maps.clone()
    images[others], maps[others] = 1 - images[others], 5 * torch.rand(len(others), 1, 4, 4)
    again = convolutional_input_gains(images, maps, folds, steps=20)
    assert float(again[0]) == pytest.approx(float(first[0]), abs=1e-5)
    assert (again[1:] - first[1:]).abs().min() > 0.01
