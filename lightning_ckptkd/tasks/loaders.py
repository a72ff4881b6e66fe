"""Dataloaders: those behind what a hook gives, and ones over a fixed draw of the samples that a loader stands for."""

from __future__ import annotations

import contextlib
import copy
import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from typing_extensions import TypeIs

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.shapes import Int
from lightning_ckptkd.tasks.batch import tensors_in
from lightning_ckptkd.trainer.seeding import keep_random_state, seed_all

_BATCH_SIZE = 256
_ROUNDS = 4  # times the size of the dataset that an unknown sampler is asked for indices


def list_loaders(loaders: Any) -> list[Iterable[Any]]:
    """The single dataloaders in what a hook of Lightning's gives: one, or any nesting of several, also combined.

    Args:
        loaders: A dataloader, a sequence or mapping of them, a CombinedLoader; None for none.

    Returns:
        In order; a place in it is Lightning's ``dataloader_idx``.
    """
    if loaders is None:
        return []
    if is_combined(loaders):
        return list_loaders(loaders.iterables)
    if isinstance(loaders, Mapping):
        return [loader for part in loaders.values() for loader in list_loaders(part)]
    if isinstance(loaders, Sequence) and not _is_list_of_batches(loaders):
        return [loader for part in loaders for loader in list_loaders(part)]
    return [loaders]


def is_combined(loader: Any) -> bool:
    """Whether a loader is Lightning's CombinedLoader, of either of its two names, which gives batches with numbers."""
    return any(
        kind.__name__ == "CombinedLoader" and kind.__module__.split(".")[0] in ("lightning", "pytorch_lightning")
        for kind in type(loader).__mro__
    )


def batches_of(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader; those of a CombinedLoader without their numbers."""
    return (batch for batch, _, _ in loader) if is_combined(loader) else iter(loader)


def is_indexed(loader: Iterable[Any]) -> TypeIs[DataLoader[Any]]:
    """Whether samples can be drawn by index: not from a stream, nor from a dataset that makes batches itself."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    return isinstance(loader.dataset, Sized) and loader.batch_sampler is not None


@contextlib.contextmanager
def looked_into(loader: Iterable[Any]) -> Iterator[Iterable[Any]]:
    """A loader to take some batches from: its own generator and persistent workers are as they were afterwards.

    Else a training that goes on would draw other numbers than one whose loader nobody looked into.
    """
    generator = loader.generator if isinstance(loader, DataLoader) else None
    state = None if generator is None else generator.get_state()
    looked: Iterable[Any] = loader
    if isinstance(loader, DataLoader):
        looked = copy.copy(loader)
        vars(looked)["_iterator"] = None  # workers that an earlier training left: the copy has its own
    try:
        yield looked
    finally:
        if generator is not None and state is not None:
            generator.set_state(state)


def sample_indices(loader: DataLoader[Any]) -> Int[Tensor, " N"]:
    """Which samples the loader stands for, in order: all, unless its sampler picks some of them (a split, say).

    Under a distributed sampler they are those of all ranks. A sampler of another kind than torch's is asked, with a
    seed of its own so that each rank gets the same, for four times as many indices as there are samples at most: one
    that never ends, or repeats samples without end, stands for those that it gave until then.

    Raises:
        ArgumentError: If the sampler gives something else than indices.
    """
    from lightning.fabric.utilities.distributed import DistributedSamplerWrapper

    dataset: Any = loader.dataset
    size, sampler = len(dataset), loader.sampler
    if isinstance(sampler, DistributedSamplerWrapper):  # Lightning's, around a sampler of the user's
        wrapped: Any = sampler.dataset
        sampler = wrapped._sampler
    if loader.batch_size is None:  # a batch sampler of the user's own
        return _seen(_copied(loader.batch_sampler, dataset), size, batches=True)
    if isinstance(sampler, SubsetRandomSampler):
        return torch.tensor(sorted(set(sampler.indices)), dtype=torch.long)
    if isinstance(sampler, WeightedRandomSampler):
        return sampler.weights.nonzero().squeeze(1)
    if isinstance(sampler, DistributedSampler):
        return torch.arange(size)
    if type(sampler).__iter__ in (SequentialSampler.__iter__, RandomSampler.__iter__):
        return torch.arange(min(size, len(sampler.data_source)))  # type: ignore[attr-defined]
    return _seen(_copied(sampler, dataset), size)


def load_samples(
    loader: DataLoader[Any], indices: Sequence[int], batch_size: int | None = None, num_workers: int | None = None
) -> DataLoader[Any]:
    """A loader like the given one, over these samples in this order.

    Args:
        loader: Says how samples are loaded and collated.
        indices: Into its dataset; one may come more than once.
        batch_size: None takes the loader's.
        num_workers: Likewise.
    """
    own = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    return DataLoader(
        Subset(loader.dataset, indices),
        batch_size=batch_size or (own if isinstance(own, int) else _BATCH_SIZE),
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers if num_workers is None else num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if num_workers is None else None,
    )


def _copied(sampler: Any, dataset: Any) -> Any:
    """A copy, so that a sampler with a generator or a counter of its own goes on as if nobody had asked it."""
    shared: dict[int, Any] = {}
    while dataset is not None and id(dataset) not in shared:  # of a subset what it is of, too
        shared[id(dataset)] = dataset
        dataset = getattr(dataset, "dataset", None)
    try:
        return copy.deepcopy(sampler, shared)
    except Exception:  # of the user's own class, whatever it is: one that can't be copied is asked itself
        return sampler


def _seen(sampler: Any, size: int, *, batches: bool = False) -> Tensor:
    """Which of so many samples are among the first draws of a sampler, or of one of batches."""
    seen: set[int] = set()
    with keep_random_state():
        seed_all(0)
        draws = iter(sampler)
        if batches:
            draws = itertools.chain.from_iterable(itertools.islice(draws, _ROUNDS * size))
        for index in itertools.islice(draws, _ROUNDS * size):
            try:
                seen.add(operator.index(index))
            except TypeError:
                raise ArgumentError(
                    f"{type(sampler).__name__} gives {type(index).__name__}, not the indices of samples, so that none "
                    "can be drawn. Give a dataloader whose sampler gives indices, such as torch's own."
                ) from None
            if len(seen) == size:
                break
    return torch.tensor(sorted(seen), dtype=torch.long)


def _is_list_of_batches(loaders: Sequence[Any]) -> bool:
    """Whether a sequence holds batches, as a small dataset may be given, and not loaders."""
    return bool(loaders) and bool(tensors_in(loaders[0]))
