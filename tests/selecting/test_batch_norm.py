from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from lightning_ckptkd.selecting.batch_norm import batch_norms, estimate_statistics
from lightning_ckptkd.tasks.batch import Batch


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()),
        *(nn.Linear(64, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)),
    )


def batches(sizes: tuple[int, ...] = (16, 16, 16)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [2 + 3 * torch.randn(size, 1, 4, 4, generator=generator) for size in sizes]


def estimated(module: nn.Module, data: list[Tensor], names: set[str] | None = None) -> nn.Module:
    module = module.eval()
    found = batch_norms(module, names)
    estimate_statistics(module, found.values(), [Batch(x, torch.zeros(len(x))) for x in data])
    return module


def test_they_are_torchs_own_where_nothing_is_dropped() -> None:
    plain = network()
    plain[3] = nn.Identity()
    expected = copy.deepcopy(plain)
    update_bn(batches(), expected)
    found = estimated(plain, batches())
    for name, value in found.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(value, expected.state_dict()[name])
    assert not any(part.training for part in found.modules())
    assert found[1].num_batches_tracked == 0
    assert found[1].momentum == 0.1


def test_dropout_stays_off_and_weights_as_they_are() -> None:
    before = copy.deepcopy(network().state_dict())
    first, again = estimated(network(), batches()), estimated(network(), batches())
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        if "running" not in name:
            assert torch.equal(value, before[name])


def test_each_sample_counts_the_same() -> None:
    """The mean of a first layer is the mean over all samples, however they come in batches."""
    data = batches((20, 3, 1))
    module = nn.Sequential(nn.BatchNorm2d(1))
    estimated(module, data)
    torch.testing.assert_close(module[0].running_mean, torch.cat(data).mean((0, 2, 3)))


def test_one_number_a_channel_has_no_variance() -> None:
    data = [3 * torch.randn(size, 5) for size in (8, 8, 1)]
    expected, found = (estimated(nn.Sequential(nn.BatchNorm1d(5)), some)[0] for some in (data[:2], data))
    torch.testing.assert_close(found.state_dict(), expected.state_dict())
    alone = estimated(nn.Sequential(nn.BatchNorm1d(5)), data[2:])[0]
    assert torch.equal(alone.running_var, torch.ones(5)), "left as it was"


def test_a_layer_whose_statistics_never_changed_is_left() -> None:
    module = estimated(network(), batches(), {"1.running_mean", "1.running_var", "1.weight"})
    assert torch.equal(module[6].running_mean, torch.zeros(5))
    assert float(module[1].running_mean.abs().sum()) > 0


def test_a_synchronised_layer_asks_no_other_rank() -> None:
    plain = network()
    plain[3] = nn.Identity()
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    assert isinstance(synchronised[1], nn.SyncBatchNorm)
    expected, found = estimated(plain, batches()), estimated(synchronised, batches())
    torch.testing.assert_close(found.state_dict(), expected.state_dict())


def test_a_layer_that_is_called_by_keyword() -> None:
    class Named(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for part in self:
                x = part(input=x)
            return x

    expected, found = estimated(network(), batches()), estimated(Named(*network()), batches())
    assert not torch.equal(expected[1].running_mean, torch.zeros(4))
    torch.testing.assert_close(found.state_dict(), expected.state_dict())


def test_networks_without_it_have_none() -> None:
    assert (
        batch_norms(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.BatchNorm1d(2, track_running_stats=False))) == {}
    )


@pytest.mark.parametrize("shape", [(64, 3, 28, 28), (7, 5, 13, 11), (1, 2, 1, 3), (2, 4, 1, 1)])
def test_channels_last_they_are_the_same_and_as_exact(shape: tuple[int, ...]) -> None:
    """torch's own sum in float32 over all rows would be wrong by more, which is why rows are grouped."""
    images = 3 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    module = estimated(nn.Sequential(nn.BatchNorm2d(shape[1])), [images.contiguous(memory_format=torch.channels_last)])
    expected = torch.var_mean(images.double(), (0, 2, 3))
    for found, exact in zip((module[0].running_var, module[0].running_mean), expected, strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)
