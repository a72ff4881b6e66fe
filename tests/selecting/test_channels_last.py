from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_ckptkd.selecting.channels_last import channels_last, gains


class Viewing(nn.Module):
    """Asks how its features lie in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 4, 3), nn.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).view(len(x), -1))


class ByMemory(Viewing):
    """Takes its features as they lie in memory, whatever that means."""

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x)
        return self.linear(features.as_strided((len(x), 144), (144, 1)))


class Drawing(Viewing):
    """Draws random numbers whenever it runs."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).flatten(1) + torch.rand(1))


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def run(module: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = module(images)
    return found


@pytest.mark.parametrize(("make", "expected"), [(plain, True), (Drawing, True), (Viewing, False), (ByMemory, False)])
def test_only_what_says_the_same_runs_so(make: Any, expected: bool) -> None:
    torch.manual_seed(0)
    module, images = make().eval(), torch.randn(5, 1, 8, 8)
    own = {name: (value.data_ptr(), value.stride(), value.clone()) for name, value in module.state_dict().items()}
    torch.manual_seed(1)
    before = run(module, images)
    torch.manual_seed(1)
    with channels_last(module, lambda: run(module, images)) as laid:
        assert laid == expected
        strides = [part.weight.stride() for part in module.modules() if isinstance(part, nn.Conv2d)]
        assert strides == [(9, 1, 3, 1) if expected else (9, 9, 3, 1)]
        torch.testing.assert_close(run(module, images), before, rtol=0, atol=1e-5)
    for name, value in module.state_dict().items():
        assert (value.data_ptr(), value.stride()) == own[name][:2] and torch.equal(value, own[name][2])


def test_weights_that_were_loaded_meanwhile_stay() -> None:
    module, images = plain().eval(), torch.randn(2, 1, 8, 8)
    other = plain().state_dict()
    with pytest.raises(KeyboardInterrupt), channels_last(module, lambda: run(module, images)) as laid:
        assert laid
        module.load_state_dict(other)
        raise KeyboardInterrupt
    assert all(torch.equal(value, other[name]) for name, value in module.state_dict().items())


def test_networks_that_gain_nothing() -> None:
    assert gains(plain())
    assert not gains(nn.Linear(2, 2))
    assert not gains(plain().double())
    assert not gains(plain().to("meta"))
