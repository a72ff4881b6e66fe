"""Filling the cache: the teachers run once over the items that are missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError, TeacherError
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.teachers.apart import CollateApart
from lightning_ckptkd.teachers.cache import LogitCache
from lightning_ckptkd.teachers.trial import ragged
from lightning_ckptkd.teachers.views import ViewBatch, Views
from lightning_ckptkd.trainer.ranks import current_rank, num_ranks
from lightning_ckptkd.trainer.seeding import keep_random_state

Batches = Iterator[tuple[Tensor, Tensor]]  # logits (N, M, ...) and checksums (N,), on the CPU


@torch.no_grad()
def fill(
    cache: LogitCache,
    views: Views,
    teachers: Callable[[Batch], Tensor],
    read: Callable[[Any], Batch],
    collate_fn: Callable[[list[Any]], Any],
    *,
    batch_size: int,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
    rank: int | None = None,
    ranks: int | None = None,
    worker_init_fn: Callable[[int], None] | None = None,
    multiprocessing_context: Any = None,
) -> int:
    """Run the teachers over this rank's missing items, in order, and write each chunk as soon as it is whole.

    No sample is padded for the sake of another (:class:`.apart.CollateApart`): those of different lengths run apart.
    What a chunk's file holds stays, whatever ends this; the next call goes on behind it. No batch reaches into another
    chunk, so a chunk's logits do not depend on which ones were missing, to the last bit. The process's random states
    are afterwards as before, so that a training which finds the cache filled goes as one that fills it.

    Args:
        cache: Where the logits go.
        views: The items.
        teachers: Gives logits (M, N, ...) of a batch of N samples; already on ``device``.
        read: Unpacks a collated batch.
        collate_fn: The training dataloader's; it keeps samples in their order.
        batch_size: Samples a batch, at most.
        num_workers: Processes that load samples.
        device: Where the teachers are.
        progress: Whether rank 0 shows a bar.
        rank: Which share; None takes this process's.
        ranks: Number of shares; None takes the number of processes.
        worker_init_fn: As the training dataloader has it.
        multiprocessing_context: Likewise.

    Returns:
        Number of items that were filled now.

    Raises:
        ArgumentError: If views and cache do not fit, ``collate_fn`` draws random numbers or can't collate a sample
            alone, or logits are of one shape on one sample and of another on the next.
        CacheError: If a chunk that exists is damaged or belongs to another cache.
        SnapshotError: If a chunk can't be written, or another process fills the same share.
        TeacherError: If the teachers give no (M, N, ...), or a logit is not finite.
    """
    rank = current_rank() if rank is None else rank
    ranks = num_ranks() if ranks is None else ranks
    key = cache.key
    if (len(views), views.views, views.seed) != (key.num_items, key.views, key.seed):
        raise ArgumentError(
            f"The cache is for {key.num_items} items, {key.views} views a sample and seed {key.seed}; these views are "
            f"{len(views)}, {views.views} and {views.seed}."
        )
    with cache.filling(rank), keep_random_state():
        missing = cache.missing(rank, ranks)
        if not missing:
            return 0
        chunks = [cache.items(chunk) for chunk in missing]
        loader = DataLoader(
            views,
            batch_sampler=_ChunkBatches(chunks, batch_size),
            num_workers=num_workers,
            collate_fn=CollateApart(collate_fn),
            pin_memory=torch.device(device).type == "cuda",
            worker_init_fn=worker_init_fn,
            multiprocessing_context=multiprocessing_context if num_workers else None,
        )
        batches = _run(loader, teachers, read, torch.device(device), len(key.teachers))
        count = sum(map(len, chunks))
        with tqdm(total=count, desc="Caching teachers' logits", unit="item", disable=not progress or rank > 0) as bar:
            for chunk, items in zip(missing, chunks, strict=True):
                cache.write(chunk, *_take(batches, len(items)))
                bar.update(len(items))
        return count


class _ChunkBatches(Sampler[list[int]]):
    """The items of several chunks in batches; the last one of a chunk may be smaller."""

    def __init__(self, chunks: Sequence[range], batch_size: int) -> None:
        self._chunks, self._batch_size = chunks, batch_size

    @override
    def __iter__(self) -> Iterator[list[int]]:
        for items in self._chunks:
            for start in range(0, len(items), self._batch_size):
                yield list(items[start : start + self._batch_size])

    def __len__(self) -> int:
        return sum(-(-len(items) // self._batch_size) for items in self._chunks)


def _take(batches: Batches, count: int) -> tuple[Tensor, Tensor]:
    """The next batches, which together have ``count`` rows: logits (count, M, ...) and checksums (count,)."""
    held: list[tuple[Tensor, Tensor]] = []
    while sum(len(checksums) for _, checksums in held) < count:
        held.append(next(batches))
    logits, checksums = (torch.cat(pieces) for pieces in zip(*held, strict=True))
    return logits, checksums


def _run(
    loader: DataLoader[Any],
    teachers: Callable[[Batch], Tensor],
    read: Callable[[Any], Batch],
    device: torch.device,
    num_teachers: int,
) -> Batches:
    batches: list[ViewBatch]
    shape: torch.Size | None = None
    for batches in loader:
        found: dict[int, tuple[Tensor, Tensor]] = {}
        for batch in batches:
            samples = read(batch.batch)
            if len(samples) != len(batch.items):
                raise ArgumentError(
                    f"A batch of {len(batch.items)} samples holds {len(samples)} once it is collated and unpacked, so "
                    "it is not known whose logits are whose. Let collate_fn and unpack_batch keep each sample once, in "
                    "their order, or train without the cache of teachers' logits."
                )
            logits = teachers(samples.to(device))
            if logits.dim() < 2 or logits.shape[:2] != (num_teachers, len(samples)):
                raise TeacherError(
                    f"The teachers give logits of shape {tuple(logits.shape)} instead of ({num_teachers}, "
                    f"{len(samples)}, K). Give the cache the teachers' hashes, one each."
                )
            shape = logits.shape[2:] if shape is None else shape
            if logits.shape[2:] != shape:
                here = f"item {int(batch.items[0])}"
                raise ArgumentError(ragged(tuple(shape), "those before it", tuple(logits.shape[2:]), here))
            rows = logits.cpu().transpose(0, 1)
            found |= dict(zip(batch.items.tolist(), zip(rows, batch.checksums, strict=True), strict=True))
        if len(batches) == 1:
            yield rows, batch.checksums
        else:  # in the order of their numbers again
            ordered = [found[item] for item in sorted(found)]
            yield torch.stack([row for row, _ in ordered]), torch.stack([checksum for _, checksum in ordered])
