from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import lightning.pytorch.utilities
import numpy
import pytest
import pytorch_lightning.utilities
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader as GraphLoader

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.tasks.loaders import batches_of, is_indexed, list_loaders, load_samples, sample_indices
from lightning_ckptkd.trainer.seeding import random_state

SAMPLES = TensorDataset(torch.arange(20.0))


class Endless(Sampler[int]):
    """Permutations of some samples, one after another, as iteration-based trainings have them."""

    def __init__(self, indices: list[int]) -> None:
        self.indices = indices

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from random.sample(self.indices, len(self.indices))


class EndlessWithLength(Endless):
    def __len__(self) -> int:
        return 10**18


class Own(Sampler[int]):
    def __init__(self, indices: list[Any]) -> None:
        self.indices = indices

    def __iter__(self) -> Iterator[Any]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class EndlessBatches(Sampler[list[int]]):
    def __init__(self, batch: list[int]) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.repeat(self.batch)


class Odd(SequentialSampler):
    def __iter__(self) -> Iterator[int]:
        return iter(range(1, 20, 2))


EVEN = list(range(0, 20, 2))


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (None, range(20)),
        (RandomSampler(SAMPLES), range(20)),
        (RandomSampler(range(5)), range(5)),  # over a part of the dataset
        (SequentialSampler(range(5)), range(5)),
        (SubsetRandomSampler([7, 3, 3, 5]), [3, 5, 7]),
        (WeightedRandomSampler([0.0, 1.0, 0.5] + [0.0] * 17, 10**6), [1, 2]),
        (Own([9, 2, 2, 4]), [2, 4, 9]),
        (Odd(SAMPLES), range(1, 20, 2)),
        (Endless(EVEN), EVEN),
        (EndlessWithLength(list(range(20))), range(20)),
        (DistributedSampler(SAMPLES, num_replicas=3, rank=1), range(20)),
        (DistributedSamplerWrapper(Own([9, 2, 4]), num_replicas=2, rank=1), [2, 4, 9]),
        (DistributedSamplerWrapper(SubsetRandomSampler(EVEN), num_replicas=2, rank=0), EVEN),
    ],
)
def test_which_samples_a_loader_stands_for(sampler: Any, expected: Any) -> None:
    loader = DataLoader(SAMPLES, batch_size=4, sampler=sampler)
    assert is_indexed(loader)
    state = random_state()
    assert sample_indices(loader).tolist() == list(expected)
    assert random_state() == state  # training draws what it would have drawn


@pytest.mark.parametrize(
    ("batch_sampler", "expected"),
    [
        (BatchSampler(SubsetRandomSampler(EVEN), 3, drop_last=False), EVEN),
        (BatchSampler(Endless(EVEN), 3, drop_last=False), EVEN),
        (EndlessBatches([4, 1]), [1, 4]),
        (EndlessBatches([]), []),
        ([[3, 1], [2]], [1, 2, 3]),
    ],
)
def test_batch_samplers(batch_sampler: Any, expected: list[int]) -> None:
    loader = DataLoader(SAMPLES, batch_sampler=batch_sampler)
    assert sample_indices(loader).tolist() == expected


def test_each_rank_draws_the_same_of_an_endless_sampler_that_leaves_some_out() -> None:
    class Rare(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            while True:
                yield min(int(torch.randint(10**4, ())), 19)

    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(sample_indices(DataLoader(SAMPLES, sampler=Rare())).tolist())
    assert found[0] == found[1]


class Seeded(Sampler[int]):
    """Draws from a generator of its own; its copy must not copy the data."""

    def __init__(self, data: Any) -> None:
        self.data, self.generator = data, numpy.random.default_rng(0)

    def __iter__(self) -> Iterator[int]:
        return iter(self.generator.permutation(20).tolist())


class Uncopied(list[int]):
    def __deepcopy__(self, memo: Any) -> None:
        raise TypeError("too large")


def test_a_sampler_with_a_generator_of_its_own_goes_on_as_if_it_was_not_asked() -> None:
    samples = Uncopied(range(20))
    sampler, other = Seeded(samples), Seeded(samples)
    for asked in (DataLoader(samples, sampler=sampler), DataLoader(Subset(samples, range(20)), sampler=sampler)):
        assert sample_indices(asked).tolist() == list(range(20))
    batches = BatchSampler(sampler, 3, drop_last=False)
    assert sample_indices(DataLoader(samples, batch_sampler=batches)).tolist() == list(range(20))
    assert list(sampler) == list(other)


def test_a_sampler_that_gives_no_indices() -> None:
    with pytest.raises(ArgumentError, match="Own gives tuple, not the indices of samples"):
        sample_indices(DataLoader(SAMPLES, sampler=Own([(1, "a")])))


def test_a_large_dataset_takes_no_list_of_it() -> None:
    class Large(Dataset[int]):
        def __len__(self) -> int:
            return 10**6

        def __getitem__(self, index: int) -> int:
            return index

    assert sample_indices(DataLoader(Large(), sampler=Own(list(range(10))))).tolist() == list(range(10))
    assert len(sample_indices(DataLoader(Large(), sampler=RandomSampler(range(10**6), num_samples=10**12)))) == 10**6


@pytest.mark.parametrize("namespace", [lightning.pytorch.utilities, pytorch_lightning.utilities])
def test_several_loaders(namespace: Any) -> None:
    first, second, third = (DataLoader(SAMPLES, batch_size=size) for size in (4, 5, 20))
    combined = namespace.CombinedLoader({"a": first, "b": [second, third]}, "sequential")
    for loaders in (
        [first, [second, third]],
        {"a": first, "b": {"c": second, "d": third}},
        combined,
        [first, combined],
    ):
        found = list_loaders(loaders)
        assert found[-3:] == [first, second, third]
    assert list_loaders(None) == []
    assert list_loaders(first) == [first]
    batches = [(torch.zeros(2), torch.zeros(2))]
    assert list_loaders(batches) == [batches]  # a small dataset as a list
    both = namespace.CombinedLoader([first, third], "sequential")
    both_batches = list(batches_of(both))
    assert [len(batch[0]) for batch in both_batches] == [4] * 5 + [20]
    assert [len(batch[0]) for batch in batches_of(second)] == [5] * 4
    assert not is_indexed(both)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"batch_size": 3}, 3),
        ({"batch_sampler": BatchSampler(SequentialSampler(SAMPLES), 7, drop_last=False)}, 7),
        ({"batch_sampler": [[1], [2]]}, 256),
    ],
)
def test_samples_are_loaded_as_the_loader_does(options: dict[str, Any], size: int) -> None:
    loader = DataLoader(SAMPLES, collate_fn=lambda items: [item[0].item() for item in items], **options)
    found = load_samples(loader, [5, 5, 1, 0])
    assert found.batch_size == size
    assert list(itertools.chain.from_iterable(found)) == [5, 5, 1, 0]


def test_graphs_are_collated_as_graphs() -> None:
    graphs = [Data(x=torch.full((2, 1), float(n)), y=torch.tensor([n])) for n in range(6)]
    loader = GraphLoader(graphs, batch_size=2, shuffle=True)
    assert is_indexed(loader) and sample_indices(loader).tolist() == list(range(6))
    [batch] = load_samples(loader, [4, 1], batch_size=8)
    assert batch.num_graphs == 2 and batch.y.tolist() == [4, 1]
