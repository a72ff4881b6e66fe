from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_ckptkd.snapshots.clock import StepClock, WeightSample


def test_the_clock_shows_what_lightning_counts() -> None:
    clock = StepClock(5, 20)
    assert [clock.tick(step, batch) for step, batch in ((5, 21), (5, 22), (6, 23), (6, 24), (8, 25))] == [0, 0, 1, 0, 1]
    assert (clock.position, clock.batches, clock.uncounted) == (8, 25, 0)


def test_batches_are_counted_where_no_steps_are() -> None:
    clock = StepClock()
    assert not clock.tick(0, 4)
    assert (clock.position, clock.ahead(4)) == (0, 4)
    clock.count_batches(4)
    assert (clock.position, clock.ahead(4), clock.ahead(7)) == (4, 4, 7)
    clock.count_batches(7)
    assert clock.position == 7


def test_the_clock_never_goes_back_when_both_are_counted() -> None:
    clock = StepClock()
    clock.count_batches(4)
    shown = [clock.position]
    for step, batch in ((1, 5), (2, 6)):
        assert clock.tick(step, batch)
        shown.append(clock.position)
    clock.count_batches(9)
    shown.append(clock.position)
    assert shown == [4, 5, 6, 9]


@pytest.mark.parametrize(
    "kind", ["plain", "frozen part", "all frozen", "buffers alone", "half", "transposed", "shared"]
)
def test_a_step_is_seen(kind: str) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    moved = module[0].weight
    if kind == "frozen part":
        module[1].requires_grad_(False)
    if kind == "all frozen":
        module.requires_grad_(False)
    if kind == "buffers alone":
        module = nn.Sequential()
        module.register_buffer("codebook", torch.randn(3))
        moved = module.codebook
    if kind == "half":
        moved = module.bfloat16()[0].weight
    if kind == "transposed":
        moved = module[0].weight = nn.Parameter(torch.randn(4, 3).T)
    if kind == "shared":
        module.append(module[0])
    sample = WeightSample(module)
    assert not sample.differs(module)
    with torch.no_grad():
        moved.mul_(1.01)
    assert sample.differs(module)


def test_what_is_no_step_is_not_seen() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    sample = WeightSample(module)
    module.train()(torch.randn(8, 3)).sum().backward()
    assert not sample.differs(module), "gradients and running statistics"


def test_odd_weights() -> None:
    module = nn.Module()
    module.nan = nn.Parameter(torch.full((3,), float("nan")))
    module.empty = nn.Parameter(torch.empty(0))
    module.expanded = nn.Parameter(torch.ones(1).expand(100))
    module.lazy = nn.LazyLinear(2)
    sample = WeightSample(module)
    assert not sample.differs(module)
    with torch.no_grad():
        module.nan[0] = 1
    assert sample.differs(module)
    assert not WeightSample(nn.Module()).differs(nn.Module())
    many = nn.ModuleList(nn.Linear(1, 1) for _ in range(500))
    sample = WeightSample(many)
    with torch.no_grad():
        for parameter in many.parameters():
            parameter.add_(1)
    assert sample.differs(many)
