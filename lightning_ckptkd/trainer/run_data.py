"""The dataloaders of a run, wherever they were given: to ``fit``, or on the DataModule or the LightningModule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.trainer.namespaces import is_kind, overrides

SPLITS = ("val", "train", "test")
_WITHOUT_TRAINER = ("is not attached to a `Trainer`", "'NoneType' object has no attribute")  # a module, a DataModule


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
        if is_kind(owner, LightningDataModule) and split == "test":
            owner.setup("test")
        loaders = getattr(owner, hook)()
    return first_loader(loaders, hook)


def logged_numbers(trainer: Trainer | None) -> dict[str, float]:
    """What a run has logged by now, one number for each name; nothing without a run."""
    logged = {} if trainer is None else trainer.callback_metrics
    return {name: float(value.detach()) for name, value in logged.items() if value.numel() == 1}


def first_loader(loaders: Any, name: str) -> Iterable[Any]:
    """The dataloader itself, or the first of any nesting of several, also combined.

    Raises:
        ArgumentError: If there is none.
    """
    while is_kind(loaders, CombinedLoader) or isinstance(loaders, (Mapping, Sequence)):
        if is_kind(loaders, CombinedLoader):
            loaders = loaders.iterables
            continue
        several = list(loaders.values()) if isinstance(loaders, Mapping) else loaders
        loaders = several[0] if several else None
    if loaders is None:
        raise ArgumentError(f"{name}: there is no dataloader to probe with. Give probe= or another probe_split.")
    found: Iterable[Any] = loaders
    return found


def loader_without_run(
    datamodule: LightningDataModule | None, module: Any, split: str, argument: str
) -> Iterable[Any] | None:
    """The dataloader that a DataModule or a LightningModule has of a split, without a run; of several the first.

    Args:
        datamodule: Asked first; None where there is none.
        module: Asked where it is a LightningModule with such a hook of its own.
        split: One of :data:`SPLITS`.
        argument: What a dataloader can be given as instead, for messages.

    Returns:
        None where neither has any.

    Raises:
        ArgumentError: If the hook asks for a Trainer.
    """
    hook = f"{split}_dataloader"
    owner = _owner((datamodule, module), hook)
    if owner is None:
        return None
    try:
        owner.prepare_data()
        owner.setup("test" if split == "test" else "fit")
        loaders = getattr(owner, hook)()
    except (RuntimeError, AttributeError) as error:
        if not any(words in str(error) for words in _WITHOUT_TRAINER):
            raise  # it is of something else
        raise ArgumentError(
            f"{type(owner).__name__}.{hook}() asks for a Trainer, and there is none here: {error}. Give a dataloader "
            f"as {argument}=, or let it do without."
        ) from error
    return first_loader(loaders, hook)


def _hook_owner(trainer: Trainer, pl_module: LightningModule, hook: str) -> Any:
    return _owner((trainer.datamodule, pl_module), hook)  # type: ignore[attr-defined]


def _owner(owners: tuple[Any, ...], hook: str) -> Any:
    """The first that has such a hook of its own; None where none has."""
    return next((one for one in owners if overrides(hook, one, LightningDataModule, LightningModule)), None)
