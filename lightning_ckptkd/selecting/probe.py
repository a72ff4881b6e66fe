"""The probe set: the samples on which every snapshot of a harvest is scored."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate
from tqdm import tqdm

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.tasks.batch import Batch, join, tensors_in
from lightning_ckptkd.tasks.loaders import batches_of, is_indexed, load_samples, looked_into, sample_indices
from lightning_ckptkd.tasks.reading import BatchReader
from lightning_ckptkd.trainer.ranks import current_rank, num_ranks, on_all_ranks, on_each_rank

MIN_PROBE_SIZE = 50

Transfer = Callable[[Any], Any]
"""What is done to a batch on its way from the dataloader to the network."""


@dataclass(frozen=True)
class Probe:
    """Probe samples in memory: decoded and transformed once, not once a snapshot.

    Attributes:
        batches: One batch of all where they are plain and of one shape, else the batches as they came; on the CPU.
    """

    batches: tuple[Batch, ...]

    def __len__(self) -> int:
        """Number of samples N."""
        return sum(len(batch) for batch in self.batches)

    @property
    def inputs(self) -> Tensor | None:
        """X, shape (N, ...), where it is one tensor."""
        return self.batches[0].inputs if len(self.batches) == 1 and self.batches[0].is_plain else None

    def digest(self) -> str:
        """SHA-256 of the samples: equal where the probe sets are."""
        return digest(self.batches)


def digest(batches: Iterable[Batch]) -> str:
    """SHA-256 of the tensors of some batches."""
    hashed = hashlib.sha256()
    for batch in batches:
        for tensor in (*tensors_in(batch.targets), *tensors_in(batch.inputs), *tensors_in(batch.whole)):
            hashed.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            hashed.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def collect_probe(
    loader: Iterable[Any],
    size: int,
    seed: int,
    reader: BatchReader,
    transfer: Transfer | None = None,
    *,
    progress: bool = False,
) -> Probe:
    """Take a fixed part of a dataloader's samples.

    Of a DataLoader over a dataset with a length, ``size`` samples are drawn with ``seed`` among those that its sampler
    can give, whatever their order, so that each rank gets the same ones. Of any other iterable the first ``size`` are
    taken, or a few more where batches can't be cut.

    Args:
        loader: Gives batches.
        size: Number of samples; all are taken where there are fewer.
        seed: Seed of the draw.
        reader: Unpacks them.
        transfer: What is done to a batch before.
        progress: Whether to show a progress bar.

    Raises:
        ArgumentError: If there are fewer than 50 samples, or batches can't be unpacked.
    """
    batches: list[Batch] = []
    missing = size
    with tqdm(total=size, desc="Reading the probe set", unit="sample", leave=False, disable=not progress) as bar:
        for raw in _draw(loader, size, seed):
            batches.append(_read(raw, missing, reader, transfer))
            missing -= len(batches[-1])
            bar.update(len(batches[-1]))
            if missing <= 0:
                break
    check_length(size - missing)
    return _joined(batches)


def collect_on_ranks(
    loader: Iterable[Any],
    size: int,
    seed: int,
    reader: BatchReader,
    transfer: Transfer | None = None,
    *,
    progress: bool = False,
) -> Probe:
    """:func:`collect_probe` on each rank; rank 0 alone shows progress.

    Raises:
        ArgumentError: Likewise, or if the ranks got different samples.
    """
    shown = progress and current_rank() == 0
    probe = on_each_rank(lambda: collect_probe(loader, size, seed, reader, transfer, progress=shown))
    if num_ranks() > 1 and len(set(on_all_ranks(probe.digest))) > 1:
        raise ArgumentError(
            "The ranks have different probe samples, so snapshots can't be compared. Give probe= a "
            "dataloader that yields the same samples on each rank: no random transforms, no sharded stream."
        )
    return probe


def first_samples(
    loader: Iterable[Any], size: int, seed: int, count: int, reader: BatchReader, transfer: Transfer | None = None
) -> Probe | None:
    """Two batches of a few of a probe's samples, spread over it, to try a network on; loaded in this process.

    Args:
        loader: As for :func:`collect_probe`.
        size: Likewise.
        seed: Likewise.
        count: Samples of a batch, at most where batches can be cut.
        reader: Unpacks them.
        transfer: What is done to a batch before.

    Returns:
        None where the loader gives none.
    """
    batches: Iterable[Any] = loader
    if is_indexed(loader):
        drawn = drawn_samples(loader, size, seed)  # in the order of the dataset, which may be that of the classes
        spread = drawn[:: max(1, len(drawn) // (2 * count))][: 2 * count]
        batches = load_samples(loader, spread, count, num_workers=0)
    with looked_into(batches) as some:
        read = [_read(raw, count, reader, transfer) for raw in itertools.islice(batches_of(some), 2)]
    return _joined(read) if read else None


def known_length(loader: Iterable[Any], size: int) -> int | None:
    """How many samples :func:`collect_probe` will find; None where that can't be told without reading them."""
    return min(size, len(sample_indices(loader))) if is_indexed(loader) else None


def known_targets(loader: Iterable[Any], size: int, seed: int, reader: BatchReader) -> Tensor | None:
    """The targets of a probe's samples, shape (N, ...), where they can be had without loading these.

    That is so where the dataset, or what it is a subset of, is a ``TensorDataset`` whose samples are collated by torch.
    """
    if not is_indexed(loader) or loader.collate_fn is not default_collate or reader.unpack_batch is not None:
        return None
    dataset: Any = loader.dataset
    indices = drawn_samples(loader, size, seed)
    while type(dataset) is Subset:
        dataset, indices = dataset.dataset, [int(dataset.indices[index]) for index in indices]
    if type(dataset) is not TensorDataset:
        return None
    targets: Tensor = reader(dataset.tensors).targets
    return targets[indices]


def drawn_samples(loader: DataLoader[Any], size: int, seed: int) -> list[int]:
    """Which samples of a loader's dataset are in its probe, in ascending order.

    Args:
        loader: Draws by index.
        size: Number of samples; all are taken where there are fewer.
        seed: Of the draw.
    """
    indices = sample_indices(loader)
    generator = torch.Generator().manual_seed(seed)
    drawn: list[int] = indices[torch.randperm(len(indices), generator=generator)[:size].sort().values].tolist()
    return drawn


def check_length(found: int) -> None:
    """Check that there are samples enough to score a snapshot.

    Raises:
        ArgumentError: If there are fewer than 50.
    """
    if found < MIN_PROBE_SIZE:
        raise ArgumentError(
            f"The probe set has {found} samples; at least {MIN_PROBE_SIZE} are needed to score a snapshot. "
            "Give a larger probe= dataloader or probe_size, or another probe_split."
        )


def _read(raw: Any, most: int, reader: BatchReader, transfer: Transfer | None) -> Batch:
    """One batch on the CPU, with ``most`` samples at most where it can be cut."""
    batch = reader(raw if transfer is None else transfer(raw))
    if batch.is_plain:
        if len(batch.inputs) != len(batch):
            raise ArgumentError(
                f"A batch has {len(batch.inputs)} inputs and {len(batch)} targets. Say which part of it is the target "
                "with target_key, or give unpack_batch."
            )
        batch = batch[:most]
    return batch.detached()


def _joined(batches: Sequence[Batch]) -> Probe:
    return Probe(tuple(join(batches)))


def _draw(loader: Iterable[Any], size: int, seed: int) -> Iterator[Any]:
    if not is_indexed(loader):
        return batches_of(loader)
    return iter(load_samples(loader, drawn_samples(loader, size, seed)))
