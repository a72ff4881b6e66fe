from __future__ import annotations

import torch

from lightning_ckptkd.information.convolutional import (
    ConvolutionalDecoder,
    convolutional_information,
    unit_range,
)
from lightning_ckptkd.information.folds import assign_folds
from tests.projects import digits


def digit_images(count: int = 500) -> torch.Tensor:
    return digits(0, count).tensors[0]


def test_more_of_the_image_is_more_information() -> None:
    images, folds = digit_images(), assign_folds(500, 5, 0)
    whole = convolutional_information(images, images, folds)
    coarse = convolutional_information(images, torch.nn.functional.avg_pool2d(images, 4), folds)
    noise = convolutional_information(images, torch.randn(500, 1, 4, 4), folds)
    assert whole > coarse + 1 > noise + 2
    assert noise < 0.5


def test_seeded_and_scored_on_held_out_samples() -> None:
    images, folds = digit_images(200), assign_folds(200, 5, 0)
    maps = torch.randn(200, 4, 2, 2)
    state = torch.get_rng_state()
    first = convolutional_information(images, maps, folds, steps=20, seed=3)
    assert torch.equal(torch.get_rng_state(), state), "the user's random numbers are not touched"
    assert first == convolutional_information(images, maps, folds, steps=20, seed=3)
    assert first != convolutional_information(images, maps, folds, steps=20, seed=4)


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
