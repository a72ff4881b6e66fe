"""Views: a dataset whose random transforms draw the same each time, so that a teacher's logits stay true.

A view is a sample as its transforms draw it under a fixed seed. With V views a sample there are n * V items; item j
is view j % V of sample j // V.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.teachers.checksums import sample_checksum
from lightning_ckptkd.trainer.seeding import keep_random_state, mix, random_state, seed_by


class ViewSample(NamedTuple):
    """One item: the dataset's sample, which item it is, and the sample's checksum."""

    sample: Any
    item: int
    checksum: int


class ViewBatch(NamedTuple):
    """A collated batch, with the items (N,) and checksums (N,) of its samples."""

    batch: Any
    items: Tensor
    checksums: Tensor


class Views(Dataset[ViewSample]):
    """The views of a dataset.

    Python's, NumPy's and torch's CPU generators are seeded for each item by (seed, sample, view), and are put back
    afterwards. So an item is the same in each process, at each time and in each order. A transform that draws from
    a generator of its own is not reached: its checksum will differ from the cached one.

    Where a first item is the same under two seeds and draws nothing, no item is seeded, which takes longer than a small
    sample does. The first batch that leaves another state behind is drawn again, with seeds, and so is all after it.

    Args:
        dataset: Map-style, with a length.
        views: V, the number of views a sample; 1 or more.
        seed: What the views are drawn by.

    Raises:
        ArgumentError: If ``views`` is below 1.
    """

    def __init__(self, dataset: Dataset[Any], views: int, seed: int) -> None:
        self.dataset, self.views, self.seed = dataset, _checked(views), seed
        self._draws: bool | None = None  # whether items draw random numbers; None: no item was looked at

    def __len__(self) -> int:
        assert isinstance(self.dataset, Sized)
        return len(self.dataset) * self.views

    @override
    def __getitem__(self, item: int) -> ViewSample:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int]) -> list[ViewSample]:
        """Several items; the generators are put back once, which costs more than seeding them."""
        size = len(self)
        for item in items:
            if not 0 <= item < size:
                raise IndexError(f"item {item} of {size}")
        with keep_random_state():
            if self._draws is None and len(items):
                self._draws = self._differs(int(items[0]))
            if not self._draws:
                before = random_state()
                found = [self._draw(int(item)) for item in items]
                if random_state() == before:
                    return found
                self._draws = True
            return [self._draw(int(item), self.seed) for item in items]

    def _differs(self, item: int) -> bool:
        """Whether an item draws random numbers, also where it puts the generators back itself."""
        first = self._draw(item, self.seed)
        seed_by("another", self.seed, item)
        before = random_state()
        return self._draw(item).checksum != first.checksum or random_state() != before

    def _draw(self, item: int, seed: int | None = None) -> ViewSample:
        index, view = divmod(item, self.views)
        if seed is not None:
            seed_by(seed, index, view)
        sample = self.dataset[index]
        return ViewSample(sample, item, sample_checksum(sample))


class CollateViews:
    """Collates items into a :class:`ViewBatch`.

    Args:
        collate_fn: Collates the samples; it may not draw random numbers.
    """

    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        self.collate_fn = collate_fn

    def __call__(self, items: Sequence[ViewSample]) -> ViewBatch:
        """Collate some items.

        Raises:
            ArgumentError: If ``collate_fn`` drew random numbers.
        """
        before = random_state()
        batch = self.collate_fn([item.sample for item in items])
        if random_state() != before:
            name = getattr(self.collate_fn, "__qualname__", type(self.collate_fn).__name__)
            raise ArgumentError(
                f"collate_fn={name} draws random numbers, so a batch is not the one that the teachers saw. Draw them "
                "in the dataset's transform, give Mixup and CutMix as DistillationModule(mix=...), or train without "
                "the cache of teachers' logits."
            )
        return ViewBatch(
            batch,
            torch.tensor([item.item for item in items], dtype=torch.long),
            torch.tensor([item.checksum for item in items], dtype=torch.long),
        )


class ViewSampler(Sampler[int]):
    """One view of each sample that another sampler gives; another view in another epoch, as a hash decides.

    With one view a sample it yields what ``sampler`` yields. Which view is drawn depends on (seed, epoch, sample)
    alone, not on the order. The epoch is 0 until :meth:`set_epoch` is called, as Lightning does.

    Args:
        sampler: Gives indices of samples.
        views: V.
        seed: What the views of an epoch are drawn by.

    Raises:
        ArgumentError: If ``views`` is below 1.
    """

    def __init__(self, sampler: Sampler[Any] | Iterable[Any], views: int, seed: int) -> None:
        self.sampler, self.views, self.seed = sampler, _checked(views), seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]  # a sampler without one fails as it does by itself

    @override
    def __iter__(self) -> Iterator[int]:
        if self.views == 1:
            yield from self.sampler
            return
        for index in map(int, self.sampler):
            drawn = int.from_bytes(mix("view", self.seed, self.epoch, index)[:8], "little")
            yield index * self.views + drawn % self.views

    def set_epoch(self, epoch: int) -> None:
        """Draw the views of this epoch from now on, and tell the wrapped sampler."""
        self.epoch = epoch
        set_epoch = getattr(self.sampler, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)


def view_loader(loader: Iterable[Any], views: int, seed: int) -> DataLoader[ViewSample]:
    """A user's dataloader over the views of its dataset: the same sampler, batches and workers.

    On several ranks give it the loader that Lightning has already put its distributed sampler into, or one with a
    distributed sampler of your own: Lightning does not look through this one's sampler, and would let each rank
    shuffle for itself.

    Args:
        loader: Left as it is; the new one shares its sampler and generator.
        views: V, the number of views a sample.
        seed: What the views, and those of an epoch, are drawn by.

    Returns:
        Gives a :class:`ViewBatch` for each of the loader's batches.

    Raises:
        ArgumentError: If its samples have no stable order or number, or batches are not made of samples.
    """
    loader = _rebuildable(loader)
    workers: dict[str, Any] = {}
    if loader.num_workers:
        workers = {
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
            "multiprocessing_context": loader.multiprocessing_context,
        }
    return DataLoader(
        Views(loader.dataset, views, seed),
        batch_size=loader.batch_size,
        sampler=ViewSampler(loader.sampler, views, seed),
        num_workers=loader.num_workers,
        collate_fn=CollateViews(loader.collate_fn),
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
        in_order=loader.in_order,
        **workers,
    )


def _rebuildable(loader: Iterable[Any]) -> DataLoader[Any]:
    """The loader, if it can be rebuilt over views."""
    reason = None
    if not isinstance(loader, DataLoader):
        reason = f"is a {type(loader).__name__}. Give a torch DataLoader"
    elif isinstance(loader.dataset, IterableDataset):
        reason = "reads a stream (an IterableDataset), whose samples have no numbers. Give a map-style dataset"
    elif not isinstance(loader.dataset, Sized):
        reason = f"has a dataset ({type(loader.dataset).__name__}) without a length. Give it __len__"
    elif loader.batch_size is None:
        reason = (
            "has a batch sampler of its own, or batch_size=None, so that batches are not drawn sample by sample. Give "
            "it batch_size= and, if need be, sampler="
        )
    elif type(loader).__iter__ is not DataLoader.__iter__:
        reason = f"is a {type(loader).__name__}, which makes batches in its own way. Give a plain DataLoader"
    else:
        return loader
    raise ArgumentError(f"The training dataloader {reason}, or train without the cache of teachers' logits.")


def _checked(views: int) -> int:
    if views < 1:
        raise ArgumentError(f"views should be 1 or more, got {views}.")
    return views
