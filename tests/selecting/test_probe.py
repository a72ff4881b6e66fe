from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from lightning_ckptkd import ArgumentError
from lightning_ckptkd.selecting.probe import collect_probe, first_samples
from lightning_ckptkd.tasks.legacy import check_labels, inputs_and_labels


def data(count: int = 300) -> TensorDataset:
    return TensorDataset(torch.arange(count).float()[:, None], torch.arange(count) % 10)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(data())


def test_a_fixed_seeded_part_whatever_the_sampler() -> None:
    first = collect_probe(DataLoader(data(), 7, shuffle=True), 100, seed=1)
    again = collect_probe(DataLoader(data(), 64), 100, seed=1)
    other = collect_probe(DataLoader(data(), 64), 100, seed=2)
    assert len(first) == 100
    assert len(torch.unique(first.inputs)) == 100
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.inputs, other.inputs)


def test_fewer_than_asked_for_is_all() -> None:
    assert torch.equal(collect_probe(DataLoader(data(80), 32), 1000, seed=0).inputs, data(80).tensors[0])


@pytest.mark.parametrize("loader", [DataLoader(Stream(), 32), [(torch.randn(60, 2), torch.arange(60))] * 9])
def test_of_other_iterables_the_first(loader: Any) -> None:
    probe = collect_probe(loader, 70, seed=0)
    assert len(probe) == 70
    first = next(iter(loader))[0]
    assert torch.equal(probe.inputs[: len(first)], first)


def test_too_few_samples() -> None:
    with pytest.raises(ArgumentError, match="The probe set has 49 samples; at least 50 are needed"):
        collect_probe(DataLoader(data(49), 32), 1000, seed=0)


def test_negative_labels() -> None:
    with pytest.raises(ArgumentError, match=r"has the label -1"):
        collect_probe([(torch.randn(60, 2), torch.full((60,), -1))], 60, seed=0)


@pytest.mark.parametrize(
    "batch",
    [
        (torch.ones(2, 3), torch.zeros(2, dtype=torch.long)),
        [torch.ones(2, 3), torch.zeros(2, dtype=torch.long), "index"],
        {"pixel_values": torch.ones(2, 3), "labels": torch.zeros(2, dtype=torch.long)},
    ],
)
def test_batches(batch: Any) -> None:
    x, y = inputs_and_labels(batch)
    assert x.shape == (2, 3)
    assert y.shape == (2,)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.ones(3), "but is Tensor"),
        ((torch.ones(2), "label"), r"but is tuple of \['Tensor', 'str'\]"),
        ({"text": 1}, r"a mapping with \['text'\]"),
        (
            (torch.ones(2, 3), torch.ones(2, 10)),
            r"class indices of shape \(2,\), but are torch.float32 of shape \(2, 10\)",
        ),
    ],
)
def test_other_batches_are_described(batch: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        inputs_and_labels(batch)


def test_labels_outside_the_classes() -> None:
    check_labels(torch.tensor([0, 9]), 10)
    with pytest.raises(ArgumentError, match=r"Labels run from 0 to 10, but the teacher has 10 classes \(0 to 9\)"):
        check_labels(torch.tensor([0, 10]), 10)


def test_a_sampler_that_picks_a_split_is_respected() -> None:
    held_out = list(range(200, 300))
    probe = collect_probe(DataLoader(data(), 32, sampler=SubsetRandomSampler(held_out)), 60, seed=0)
    assert set(probe.inputs.flatten().tolist()) <= set(held_out)
    again = collect_probe(DataLoader(data(), 32, sampler=SubsetRandomSampler(held_out)), 60, seed=0)
    assert probe.digest() == again.digest()
    assert probe.digest() != collect_probe(DataLoader(data(), 32), 60, seed=0).digest()


def test_a_split_is_respected_on_each_rank() -> None:
    """Under DDP, Lightning wraps the user's sampler and gives each rank a share of it."""
    held_out = list(range(200, 300))
    probes = []
    for rank in (0, 1):
        sampler = DistributedSamplerWrapper(SubsetRandomSampler(held_out), num_replicas=2, rank=rank)
        probes.append(collect_probe(DataLoader(data(), 32, sampler=sampler), 60, seed=0))
    assert set(probes[0].inputs.flatten().tolist()) <= set(held_out)
    assert probes[0].digest() == probes[1].digest()


def test_batches_of_the_users_own_making() -> None:
    def doubled(samples: list[Any]) -> Any:
        return torch.stack([x for x, _ in samples]) * 2, torch.stack([y for _, y in samples])

    sampler = BatchSampler(SequentialSampler(range(100)), 10, drop_last=False)
    probe = collect_probe(DataLoader(data(), batch_sampler=sampler, collate_fn=doubled), 1000, seed=0)
    assert torch.equal(probe.inputs, 2 * data(100).tensors[0])
    whole_batches = [(torch.full((30, 1), float(index)), torch.zeros(30, dtype=torch.long)) for index in range(4)]
    probe = collect_probe(DataLoader(whole_batches, batch_size=None), 70, seed=0)  # type: ignore[arg-type]
    assert len(probe) == 70


def test_first_samples() -> None:
    first = first_samples(DataLoader(data(), 64), 8)
    assert first is not None
    assert len(first) == 8
    assert first_samples([], 8) is None
