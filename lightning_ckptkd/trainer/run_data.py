"""The dataloaders of a run, wherever they were given: to ``fit``, or on the DataModule or the LightningModule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_ckptkd.errors import ArgumentError

SPLITS = ("val", "train", "test")


def has_split(trainer: Trainer, pl_module: LightningModule, split: str) -> bool:
    """Whether the run has such data."""
    if split == "train":
        return True
    if split == "val" and trainer.enable_validation:
        return True
    return _hook_owner(trainer, pl_module, f"{split}_dataloader") is not None


def loader_of(trainer: Trainer, pl_module: LightningModule, split: str) -> Iterable[Any]:
    """The run's dataloader of a split; of several the first.

    Args:
        trainer: In a fit, or at its end.
        pl_module: What it fits.
        split: One of :data:`SPLITS`.

    Raises:
        ArgumentError: If there is none.
    """
    loaders: Any = None
    if split == "train":
        loaders = trainer.train_dataloader
    elif split == "val":
        loaders = trainer.val_dataloaders
    hook = f"{split}_dataloader"
    owner = _hook_owner(trainer, pl_module, hook)
    if loaders is None and owner is None and split != "test":  # given to fit() and not run yet
        loop = trainer.fit_loop if split == "train" else trainer.fit_loop.epoch_loop.val_loop
        loaders = loop._data_source.instance
    if loaders is None and owner is not None:
        if isinstance(owner, LightningDataModule) and split == "test":
            owner.setup("test")
        loaders = getattr(owner, hook)()
    return first_loader(loaders, hook)


def first_loader(loaders: Any, name: str) -> Iterable[Any]:
    """The dataloader itself, or the first of a sequence or mapping of them.

    Raises:
        ArgumentError: If there is none.
    """
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, Sequence):
        loaders = loaders[0] if loaders else None
    if loaders is None:
        raise ArgumentError(f"{name}: there is no dataloader to probe with. Give probe= or another probe_split.")
    found: Iterable[Any] = loaders
    return found


def _hook_owner(
    trainer: Trainer, pl_module: LightningModule, hook: str
) -> LightningDataModule | LightningModule | None:
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    for owner in (datamodule, pl_module):
        if owner is not None and is_overridden(hook, owner):
            found: LightningDataModule | LightningModule = owner
            return found
    return None
