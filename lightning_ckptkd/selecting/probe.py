"""The probe set: the samples on which every snapshot of a harvest is scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.tasks.legacy import inputs_and_labels
from lightning_ckptkd.tasks.loaders import is_indexed, load_samples, sample_indices

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

    def digest(self) -> str:
        """SHA-256 of the samples: equal where the probe sets are."""
        hashed = hashlib.sha256(self.labels.numpy().tobytes())
        hashed.update(self.inputs.contiguous().view(torch.uint8).numpy().tobytes())
        return hashed.hexdigest()


def collect_probe(
    loader: Iterable[Any],
    size: int,
    seed: int,
    unpack: Callable[[Any], tuple[Tensor, Tensor]] = inputs_and_labels,
    *,
    progress: bool = False,
) -> Probe:
    """Take a fixed part of a dataloader's samples.

    Of a DataLoader over a dataset with a length, ``size`` samples are drawn with ``seed`` among those that its sampler
    can give, whatever their order, so that each rank gets the same ones. Of any other iterable the first ``size`` are
    taken.

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


def first_samples(
    loader: Iterable[Any], count: int, unpack: Callable[[Any], tuple[Tensor, Tensor]] = inputs_and_labels
) -> Probe | None:
    """A few samples to try a network on, loaded in this process; None where the loader gives none."""
    for batch in _draw(loader, count, seed=0, num_workers=0):
        x, y = unpack(batch)
        return Probe(x[:count].detach().cpu(), y[:count].detach().cpu().long())
    return None


def _draw(loader: Iterable[Any], size: int, seed: int, num_workers: int | None = None) -> Iterator[Any]:
    if not is_indexed(loader):
        return iter(loader)
    indices = sample_indices(loader)
    generator = torch.Generator().manual_seed(seed)
    drawn = indices[torch.randperm(len(indices), generator=generator)[:size].sort().values].tolist()
    return iter(load_samples(loader, drawn, num_workers=num_workers))
