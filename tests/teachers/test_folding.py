from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision.models import mobilenet_v2, resnet18

from lightning_ckptkd.teachers.folding import fold_batch_norms
from lightning_ckptkd.zoo import CIFARResNet


def trained(network: nn.Module) -> nn.Module:
    """Statistics and weights as training leaves them, not the zeros and ones of a new network."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: CIFARResNet(8, 10, 4, 1), (3, 1, 12, 12)),
        (lambda: resnet18(num_classes=5), (2, 3, 32, 32)),
        (lambda: mobilenet_v2(num_classes=5), (2, 3, 32, 32)),
        (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)), (5, 6)),
        (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4, affine=False)), (5, 2, 9)),
        (lambda: nn.Sequential(nn.Conv3d(2, 4, 2, bias=False), nn.SyncBatchNorm(4)), (2, 2, 4, 4, 4)),
    ],
)
def test_nothing_changes_and_no_norm_is_left(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    network, x = trained(make()), torch.randn(shape)
    folded = copy.deepcopy(network)
    with torch.no_grad():
        before = network(x)
        assert fold_batch_norms(folded, lambda: folded(x)) == norms(network) > 0
        assert norms(folded) == 0
        torch.testing.assert_close(folded(x), before, rtol=1e-5, atol=1e-5 * float(before.abs().max()))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in folded.modules())


class Odd(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
        self.other = nn.Conv2d(2, 2, 1)
        if how == "parametrised":
            self.conv = weight_norm(self.conv)
        if how == "without statistics":
            self.norm = nn.BatchNorm2d(2, track_running_stats=False)
        if how == "one norm for two":
            self.alias = self.norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.how == "twice":
            y = self.conv(self.norm(y))
            return self.norm(y)
        if self.how == "layer twice":
            return self.conv(self.norm(y))
        if self.how == "norm twice":
            return self.norm(self.norm(y))
        if self.how == "seen by another layer":
            return self.norm(y) + self.other(y)
        if self.how == "something between":
            return self.norm(y.relu())
        if self.how == "norm first":
            return self.conv(self.norm(x))
        if self.how == "one norm for two":
            return self.alias(y) + self.norm(self.other(x))
        return self.norm(y)


@pytest.mark.parametrize(
    "how",
    [
        "twice",
        "layer twice",
        "norm twice",
        "seen by another layer",
        "something between",
        "norm first",
        "parametrised",
        "without statistics",
        "one norm for two",
    ],
)
def test_what_can_not_be_folded_is_left(how: str) -> None:
    network, x = trained(Odd(how)), torch.randn(4, 2, 5, 5)
    before = network(x)
    assert fold_batch_norms(network, lambda: network(x)) == 0
    torch.testing.assert_close(network(x), before)
