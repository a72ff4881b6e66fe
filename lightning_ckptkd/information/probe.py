"""The probe set: the samples on which every snapshot of a harvest is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset
from tqdm import tqdm

from lightning_ckptkd.batches import inputs_and_labels
from lightning_ckptkd.errors import ArgumentError

MIN_PROBE_SIZE = 50


@dataclass(frozen=True)
class Probe:
    """Probe samples in memory: decoded and transformed once, not once a snapshot.

    Attributes:
        inputs: X, shape (N, ...), on the CPU.
        labels: Y, class indices, shape (N,), on the CPU.
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def collect_probe(
    loader: Iterable[Any],
    size: int,
    seed: int,
    unpack: Callable[[Any], tuple[Tensor, Tensor]] = inputs_and_labels,
    *,
    progress: bool = False,
) -> Probe:
    """Take a fixed part of a dataloader's samples.

    Of a DataLoader over a dataset with a length, ``size`` samples are drawn with ``seed``, whatever sampler the
    loader has, so that each rank gets the same ones. Of any other iterable the first ``size`` are taken.

    Args:
        loader: Gives batches.
        size: Number of samples; all are taken where there are fewer.
        seed: Seed of the draw.
        unpack: Gives X and Y of a batch.
        progress: Whether to show a progress bar.

    Raises:
        ArgumentError: If there are fewer than 50 samples, or labels below zero.
    """
    inputs: list[Tensor] = []
    labels: list[Tensor] = []
    missing = size
    with tqdm(total=size, desc="Reading the probe set", unit="sample", leave=False, disable=not progress) as bar:
        for batch in _draw(loader, size, seed):
            x, y = unpack(batch)
            inputs.append(x[:missing].detach().cpu())
            labels.append(y[:missing].detach().cpu().long())
            missing -= len(labels[-1])
            bar.update(len(labels[-1]))
            if missing == 0:
                break
    found = size - missing
    if found < MIN_PROBE_SIZE:
        raise ArgumentError(
            f"The probe set has {found} samples; at least {MIN_PROBE_SIZE} are needed to score a snapshot. "
            "Give a larger probe= dataloader or probe_size, or another probe_split."
        )
    probe = Probe(torch.cat(inputs), torch.cat(labels))
    if int(probe.labels.min()) < 0:
        raise ArgumentError(f"The probe set has the label {int(probe.labels.min())}; class indices start at 0.")
    return probe


def _draw(loader: Iterable[Any], size: int, seed: int) -> Iterator[Any]:
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return iter(loader)
    dataset = loader.dataset
    if not isinstance(dataset, Sized):
        return iter(loader)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(dataset), generator=generator)[:size].sort().values.tolist()
    return iter(
        DataLoader(
            Subset(dataset, drawn),
            batch_size=loader.batch_size or 256,
            collate_fn=loader.collate_fn if loader.batch_size else None,
            num_workers=loader.num_workers,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
    )
