from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from lightning_ckptkd import ArgumentError
from lightning_ckptkd.selecting import probe as probes
from lightning_ckptkd.selecting.probe import Probe, drawn_samples, first_samples, known_length, known_targets
from lightning_ckptkd.tasks.reading import BatchReader


def data(count: int = 300) -> TensorDataset:
    return TensorDataset(torch.arange(count).float()[:, None], torch.arange(count) % 10)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(data())


def collect_probe(loader: Any, size: int, seed: int, reader: BatchReader | None = None) -> Probe:
    return probes.collect_probe(loader, size, seed, reader or BatchReader())


def inputs(probe: Probe) -> torch.Tensor:
    assert probe.inputs is not None
    return probe.inputs


def labels(probe: Probe) -> torch.Tensor:
    return torch.cat([batch.targets for batch in probe.batches])


def test_a_fixed_seeded_part_whatever_the_sampler() -> None:
    first = collect_probe(DataLoader(data(), 7, shuffle=True), 100, seed=1)
    again = collect_probe(DataLoader(data(), 64), 100, seed=1)
    other = collect_probe(DataLoader(data(), 64), 100, seed=2)
    assert len(first) == 100
    assert len(torch.unique(inputs(first))) == 100
    assert torch.equal(inputs(first), inputs(again))
    assert torch.equal(labels(first), labels(again))
    assert not torch.equal(inputs(first), inputs(other))


def test_fewer_than_asked_for_is_all() -> None:
    assert torch.equal(inputs(collect_probe(DataLoader(data(80), 32), 1000, seed=0)), data(80).tensors[0])


@pytest.mark.parametrize("loader", [DataLoader(Stream(), 32), [(torch.randn(60, 2), torch.arange(60))] * 9])
def test_of_other_iterables_the_first(loader: Any) -> None:
    probe = collect_probe(loader, 70, seed=0)
    assert len(probe) == 70
    first = next(iter(loader))[0]
    assert torch.equal(inputs(probe)[: len(first)], first)


def test_too_few_samples() -> None:
    with pytest.raises(ArgumentError, match="The probe set has 49 samples; at least 50 are needed"):
        collect_probe(DataLoader(data(49), 32), 1000, seed=0)


def test_a_sampler_that_picks_a_split_is_respected() -> None:
    held_out = list(range(200, 300))
    probe = collect_probe(DataLoader(data(), 32, sampler=SubsetRandomSampler(held_out)), 60, seed=0)
    assert set(inputs(probe).flatten().tolist()) <= set(held_out)
    again = collect_probe(DataLoader(data(), 32, sampler=SubsetRandomSampler(held_out)), 60, seed=0)
    assert probe.digest() == again.digest()
    assert probe.digest() != collect_probe(DataLoader(data(), 32), 60, seed=0).digest()


def test_a_split_is_respected_on_each_rank() -> None:
    """Under DDP, Lightning wraps the user's sampler and gives each rank a share of it."""
    held_out = list(range(200, 300))
    drawn = []
    for rank in (0, 1):
        sampler = DistributedSamplerWrapper(SubsetRandomSampler(held_out), num_replicas=2, rank=rank)
        drawn.append(collect_probe(DataLoader(data(), 32, sampler=sampler), 60, seed=0))
    assert set(inputs(drawn[0]).flatten().tolist()) <= set(held_out)
    assert drawn[0].digest() == drawn[1].digest()


def test_batches_of_the_users_own_making() -> None:
    def doubled(samples: list[Any]) -> Any:
        return torch.stack([x for x, _ in samples]) * 2, torch.stack([y for _, y in samples])

    sampler = BatchSampler(SequentialSampler(range(100)), 10, drop_last=False)
    probe = collect_probe(DataLoader(data(), batch_sampler=sampler, collate_fn=doubled), 1000, seed=0)
    assert torch.equal(inputs(probe), 2 * data(100).tensors[0])
    whole_batches = [(torch.full((30, 1), float(index)), torch.zeros(30, dtype=torch.long)) for index in range(4)]
    probe = collect_probe(DataLoader(whole_batches, batch_size=None), 70, seed=0)  # type: ignore[arg-type]
    assert len(probe) == 70


def test_first_samples() -> None:
    first = first_samples(DataLoader(data(), 64), 100, 3, 8, BatchReader())
    assert first is not None
    assert len(first) == 16  # of two batches
    drawn = drawn_samples(DataLoader(data(), 64), 100, 3)
    assert torch.equal(inputs(first), data().tensors[0][drawn[::6][:16]])
    assert torch.equal(inputs(collect_probe(DataLoader(data(), 64), 100, seed=3))[::6][:16], inputs(first))
    assert first_samples([], 100, 0, 8, BatchReader()) is None


@pytest.mark.parametrize("workers", [0, 1])
def test_a_look_into_a_stream_leaves_no_trace(workers: int) -> None:
    """What is drawn after it is what would have been: from the loader's own generator, and from the global one."""

    def drawn(*, looked: bool) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        own = DataLoader(Stream(), 16, generator=generator)
        kept = DataLoader(Stream(), 16, num_workers=workers, persistent_workers=workers > 0)
        if looked:
            with isolate_rng():
                assert all(first_samples(loader, 100, 0, 8, BatchReader()) is not None for loader in (own, kept))
        next(iter(own))
        next(iter(kept))
        return torch.rand(2, generator=generator), torch.rand(2)

    torch.manual_seed(0)
    expected = drawn(looked=False)
    torch.manual_seed(0)
    found = drawn(looked=True)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


class Passes(IterableDataset[Any]):
    """How often it was gone through, in the process that does."""

    passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return iter([(torch.full((1,), float(self.passes)), self.passes)] * 16)


def test_workers_that_an_earlier_training_left_are_not_looked_into() -> None:
    loader = DataLoader(Passes(), 16, num_workers=1, persistent_workers=True)
    assert int(next(iter(loader))[1][0]) == 1
    with isolate_rng():
        first_samples(loader, 100, 0, 8, BatchReader())
    assert int(next(iter(loader))[1][0]) == 2


def test_what_is_known_of_a_probe_without_loading_it() -> None:
    samples = data()
    loader = DataLoader(Subset(samples, range(10, 90)), 16)
    assert known_length(loader, 50) == 50 and known_length(loader, 100) == 80
    found = known_targets(loader, 60, 1, BatchReader())
    assert found is not None
    assert torch.equal(found, collect_probe(loader, 60, seed=1).batches[0].targets)
    assert known_length([samples.tensors], 50) is None
    for other in ([samples.tensors], DataLoader(samples, 16, collate_fn=default_collate_and_more)):
        assert known_targets(other, 60, 1, BatchReader()) is None
    assert known_targets(loader, 60, 1, BatchReader(unpack_batch=lambda batch: batch)) is None


def default_collate_and_more(items: list[Any]) -> Any:
    x, y = default_collate(items)
    return x, y + 1


def test_batches_that_cannot_be_cut_stay_as_they_came() -> None:
    def tokens(count: int, length: int) -> dict[str, torch.Tensor]:
        ids = torch.arange(count * length).view(count, length)
        return {"input_ids": ids, "attention_mask": ids % 2, "labels": torch.arange(count)}

    loader = [tokens(30, 4), tokens(30, 7), tokens(30, 5)]
    probe = collect_probe(loader, 50, seed=0)
    assert len(probe) == 60 and probe.inputs is None
    assert [batch.inputs["input_ids"].shape[1] for batch in probe.batches] == [4, 7]
    assert probe.digest() == collect_probe(loader, 50, seed=1).digest()
    loader[1]["attention_mask"] = torch.ones(30, 7)
    assert probe.digest() != collect_probe(loader, 50, seed=0).digest()


def test_samples_of_several_shapes_stay_apart() -> None:
    loader = [(torch.randn(30, 1, side, side), torch.arange(30)) for side in (8, 9)]
    probe = collect_probe(loader, 50, seed=0)
    assert [len(batch) for batch in probe.batches] == [30, 20]
    assert probe.inputs is None


def test_what_is_done_to_a_batch_on_its_way() -> None:
    def transfer(batch: Any) -> Any:
        return batch[0] * 2, batch[1]

    found = probes.collect_probe(DataLoader(data(), 32), 60, 0, BatchReader(), transfer)
    plain = collect_probe(DataLoader(data(), 32), 60, seed=0)
    assert torch.equal(inputs(found), 2 * inputs(plain))
    few, doubled = (first_samples(DataLoader(data(), 32), 60, 0, 4, BatchReader(), done) for done in (None, transfer))
    assert few is not None and doubled is not None
    assert torch.equal(inputs(doubled), 2 * inputs(few))


def test_inputs_and_targets_of_different_numbers() -> None:
    with pytest.raises(ArgumentError, match="A batch has 60 inputs and 50 targets"):
        collect_probe([(torch.randn(60, 2), torch.arange(50))], 50, seed=0)
