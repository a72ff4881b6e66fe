"""Dataloaders over a fixed draw of the samples that a user's dataloader stands for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from typing import Any

import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)
from typing_extensions import TypeIs

_BATCH_SIZE = 256


def is_indexed(loader: Iterable[Any]) -> TypeIs[DataLoader[Any]]:
    """Whether samples can be drawn by index: not from a stream, nor from a dataset that makes batches itself."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    return isinstance(loader.dataset, Sized) and loader.batch_sampler is not None


def sample_indices(loader: DataLoader[Any]) -> Tensor:
    """Which samples the loader stands for, in order: all, unless its sampler picks some of them (a split, say).

    Under a distributed sampler they are those of all ranks.
    """
    if loader.batch_size is None:  # a batch sampler of the user's own
        picked = [index for batch in loader.batch_sampler or () for index in batch]
    elif isinstance(loader.sampler, DistributedSamplerWrapper):  # Lightning's, around a sampler of the user's
        wrapped: Any = loader.sampler.dataset
        picked = [wrapped[place] for place in range(len(wrapped))]
    elif isinstance(loader.sampler, (SequentialSampler, RandomSampler, DistributedSampler)):
        dataset: Any = loader.dataset
        return torch.arange(len(dataset))
    else:
        picked = list(loader.sampler)
    return torch.tensor(sorted(set(picked)), dtype=torch.long)


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
    return DataLoader(
        Subset(loader.dataset, indices),
        batch_size=batch_size or loader.batch_size or _BATCH_SIZE,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers if num_workers is None else num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if num_workers is None else None,
    )
