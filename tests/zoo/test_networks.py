from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_ckptkd import ArgumentError
from lightning_ckptkd.zoo import MLP, CIFARResNet, WideResNet, small_image_mobilenet_v2


@pytest.mark.parametrize(
    ("make", "millions"),
    [
        (lambda: WideResNet(40, 2, 100), 2.26),
        (lambda: WideResNet(40, 1, 100), 0.57),
        (lambda: CIFARResNet(110, 100), 1.74),
        (lambda: CIFARResNet(32, 100), 0.47),
    ],
)
def test_published_parameter_counts(make: Callable[[], nn.Module], millions: float) -> None:
    count = sum(parameter.numel() for parameter in make().parameters())
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (CIFARResNet(8, 10, 4, in_channels=1), (2, 1, 8, 8)),
        (CIFARResNet(14, 7), (2, 3, 28, 28)),
        (CIFARResNet(8, 10, 4, stem_stride=2), (2, 3, 28, 28)),
        (WideResNet(10, 1, 5), (2, 3, 32, 32)),
        (small_image_mobilenet_v2(6), (2, 3, 32, 32)),
        (MLP(64, [256, 32], 10), (2, 1, 8, 8)),
    ],
)
def test_logits(network: nn.Module, shape: tuple[int, ...]) -> None:
    logits = network(torch.randn(shape))
    assert logits.dim() == 2
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_strided_stem_halves_the_images() -> None:
    assert CIFARResNet(8, 10, 4, stem_stride=2).stem(torch.ones(1, 3, 28, 28)).shape[-2:] == (14, 14)


def test_mobilenet_keeps_small_images_large_enough() -> None:
    assert small_image_mobilenet_v2().features(torch.randn(1, 3, 32, 32)).shape[-2:] == (4, 4)


def test_depths_that_do_not_exist() -> None:
    with pytest.raises(ArgumentError, match=r"depth should be 6n \+ 2 .* got 33"):
        CIFARResNet(33)
    with pytest.raises(ArgumentError, match=r"depth should be 6n \+ 4 .* got 41"):
        WideResNet(41)


@pytest.mark.parametrize("hidden", [[], [16, 0]])
def test_widths_that_are_none(hidden: list[int]) -> None:
    with pytest.raises(ArgumentError, match=r"hidden should be one width or more, .* such as \[256\], got"):
        MLP(64, hidden, 10)
    assert MLP(64, [256], 10)(torch.ones(2, 1, 8, 8)).shape == (2, 10)
