"""Training on cached logits: the option, and how a Trainer's dataloader comes to give them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.transfer import overridden_hooks
from lightning_ckptkd.teachers.cache import LogitCache
from lightning_ckptkd.teachers.cache_key import CacheKey, fingerprint
from lightning_ckptkd.teachers.ensemble import TeacherEnsemble
from lightning_ckptkd.teachers.filling import fill
from lightning_ckptkd.teachers.trial import try_samples
from lightning_ckptkd.teachers.views import ViewBatch, Views, view_loader
from lightning_ckptkd.trainer.ranks import current_rank, num_ranks, on_each_rank


@dataclass(frozen=True)
class TeacherCache:
    """Run the teachers once and keep their logits on disk, for the training samples of :class:`DistillationModule`.

    Random augmentation is kept: each sample has ``views`` views, each drawn once under a seed of its own, and each
    epoch trains on one of them. A cache is used only for the teachers, data, transforms and seed that it was made
    for, and each sample is checked to be the one that the teachers saw.

    Cached logits do not depend on which samples share a batch. The teachers see samples of different lengths apart, so
    that none is padded for the sake of another, while a training batch of the student is padded as ``collate_fn``
    does. Before anything is cached, 16 samples are tried: refused are those that differ when they are drawn again,
    logits whose shape differs from sample to sample (pad to one length in the dataset), and teachers whose logits
    depend on a batch's other samples.

    Samples times views times teachers times
    classes times two bytes are needed on disk (four for ``fp32``).

    Attributes:
        dirpath: Folder of the cache, local and seen by all ranks; made if it is not there.
        views: V, the number of views a sample; 1 draws the transforms once and for all.
        dtype: What logits are stored as: ``fp16`` or ``fp32``.
        top_k: Store the largest k logits a sample and teacher, and the sum of the others' probabilities; None: all.
        seed: What the views are drawn by.
        memory: Bytes of logits that each process keeps in memory once they are verified, 64 MiB by default; what is
            beyond is read from disk, and compared, batch by batch.
    """

    dirpath: str | Path
    views: int = 1
    dtype: str = "fp16"
    top_k: int | None = None
    seed: int = 0
    memory: int = 2**26

    def __post_init__(self) -> None:
        check_types(TeacherCache, vars(self))
        if self.memory < 0:
            raise ArgumentError(f"memory of TeacherCache should be 0 bytes or more, got {self.memory}.")
        CacheKey(("",), 1, (), self.views, self.seed, self.dtype, self.top_k)  # checks them


@dataclass
class CachedBatch:
    """What a training step gets where there is a cache.

    It is no tuple, so that a callback or a ``training_step`` that takes it for the loader's own batch ends in an error,
    and does not take logits for labels.

    Attributes:
        batch: As the loader gave it.
        logits: The teachers' on it, shape (M, N, ...).
    """

    batch: Any
    logits: Tensor

    def __getitem__(self, key: Any) -> NoReturn:
        """Refused; unpacking calls it too.

        Raises:
            ArgumentError: Always.
        """
        raise ArgumentError(
            "cache: a training batch comes with the teachers' logits, as a CachedBatch, which can't be unpacked or "
            "indexed. Callbacks and training_step find the loader's own batch at batch.batch, and the logits at "
            "batch.logits."
        )


def describe_network(teachers: TeacherEnsemble) -> str:
    """What the logits depend on besides the weights: architecture and where the logits are."""
    parts = [f"{member!r} {teachers.logits_key}" for member in teachers.members]
    names = sorted({type(member).__name__ for member in teachers.members})
    return f"{', '.join(names)} {hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


def train_on_cache(
    trainer: Trainer,
    option: TeacherCache,
    teachers: Callable[[Batch], Tensor],
    hashes: tuple[str, ...],
    network: str,
    read: Callable[[Any], Batch],
    plain: Callable[[Batch], Tensor] | None = None,
) -> None:
    r"""Fill the cache where it is not whole, and let the Trainer's training dataloader give :class:`CachedBatch`\ es.

    Every rank must call it when training starts: each fills its share.

    Args:
        trainer: Its training dataloader was made.
        option: Where the cache is and what is in it.
        teachers: Gives logits (M, N, ...) of a batch on the Trainer's device.
        hashes: SHA-256 of each teacher's weights.
        network: As :func:`describe_network` has it, before the teachers were folded.
        read: Unpacks a batch.
        plain: Gives the logits as ``teachers`` does, and tries no way to run them; None: that one.

    Raises:
        ArgumentError: If the data can't be cached; says why.
        CacheError: If the cache is of something else, or damaged.
        SnapshotError: If it can't be written.
    """
    loader = _only_loader(trainer)
    made = view_loader(loader, option.views, option.seed)
    assert isinstance(made.dataset, Views)
    views = made.dataset
    key = CacheKey(
        teachers=hashes,
        samples=len(views) // option.views,
        dataset=fingerprint(loader.dataset),
        views=option.views,
        seed=option.seed,
        dtype=option.dtype,
        top_k=option.top_k,
        network=network,
    )
    bar = trainer.progress_bar_callback

    def work() -> LogitCache:
        cache = LogitCache.open(option.dirpath, key)
        size, device = loader.batch_size or 1, trainer.strategy.root_device
        if cache.missing(current_rank(), num_ranks()):
            try_samples(views, plain or teachers, read, loader.collate_fn, batch_size=size, device=device)
        fill(
            cache,
            views,
            teachers,
            read,
            loader.collate_fn,
            batch_size=size,
            num_workers=loader.num_workers,
            device=device,
            progress=bar is not None and bool(getattr(bar, "is_enabled", True)),
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
        )
        return cache

    cache = on_each_rank(work)
    on_each_rank(partial(cache.verify, option.memory))  # when all ranks have filled their shares
    loop = trainer.fit_loop
    assert loop._combined_loader is not None and loop._data_fetcher is not None
    loop._combined_loader.flattened = [CachedLoader(made, cache)]
    iter(loop._data_fetcher)  # the one that it has was made before


class CachedLoader:
    """A loader of views that gives the user's batches with the teachers' logits, all on the CPU.

    Args:
        loader: Gives a :class:`ViewBatch` for each batch.
        cache: Filled and verified.
    """

    def __init__(self, loader: DataLoader[Any], cache: LogitCache) -> None:
        self._loader, self._cache = loader, cache
        self.dataset, self.sampler = loader.dataset, loader.sampler  # Lightning tells the sampler of each epoch

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[CachedBatch]:
        """The batches of one epoch.

        Raises:
            CacheError: If a sample is not the one that the teachers saw.
        """
        batch: ViewBatch
        for batch in self._loader:
            yield CachedBatch(batch.batch, self._cache.read(batch.items, batch.checksums))


def _only_loader(trainer: Trainer) -> DataLoader[Any]:
    loop = trainer.fit_loop
    assert loop._combined_loader is not None
    loaders = loop._combined_loader.flattened
    reason = None
    changed = overridden_hooks(trainer.lightning_module, trainer.datamodule)  # type: ignore[attr-defined]
    if len(loaders) != 1:
        reason = f"there are {len(loaders)} training dataloaders. Give one"
    elif changed:
        names = {type(owner).__name__: None for owner in changed.values()}
        reason = (
            f"{' and '.join(names)} changes batches on their way to the device ({', '.join(changed)}), which the "
            "teachers would not "
            "see. Do that in the dataset's transforms, give Mixup and CutMix as DistillationModule(mix=...)"
        )
    elif trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
        reason = "the Trainer makes new dataloaders while it trains. Leave reload_dataloaders_every_n_epochs out"
    if reason is not None:
        raise ArgumentError(f"cache: {reason}, or train without cache=.")
    found: DataLoader[Any] = loaders[0]
    return found
