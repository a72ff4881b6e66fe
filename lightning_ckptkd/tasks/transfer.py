"""Lightning's batch hooks: what a DataModule or LightningModule does to a batch on its way to the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.tasks.batch import move

HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def overridden_hooks(module: Any, datamodule: Any = None) -> dict[str, Any]:
    """Whose hook is run, of those that somebody overrides: the DataModule's own, else the module's.

    Modules and DataModules of both of Lightning's names (``lightning.pytorch`` and ``pytorch_lightning``) are known.

    Args:
        module: A LightningModule, or any other that has none of the hooks.
        datamodule: A DataModule; None where there is none.

    Returns:
        From the hook's name to its owner; empty where batches reach the network as they are.
    """
    module = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    return {
        hook: owner
        for hook in HOOKS
        if (owner := next((one for one in (datamodule, module) if _overrides(one, hook)), None)) is not None
    }


class BatchTransfer:
    """Takes batches to a device by the hooks, as the Trainer does in validation.

    The module is in eval mode meanwhile, and its Trainer says that it validates. Where no Trainer is attached, the
    hooks see one that says so and that there is one process; whatever else they ask of it is an error.

    Args:
        module: A LightningModule, or any other, whose batches are then moved only.
        datamodule: The DataModule that the batches come from; None where there is none.

    Attributes:
        hooks: What :func:`overridden_hooks` gives.
    """

    def __init__(self, module: Any, datamodule: Any = None) -> None:
        self.hooks = overridden_hooks(module, datamodule)
        self._module, self._datamodule = getattr(module, "_orig_mod", module), datamodule

    def __call__(self, batch: Any, device: torch.device | str, dataloader_idx: int = 0) -> Any:
        """The batch as a ``validation_step`` would get it; what the loader keeps stays where it is.

        Args:
            batch: As the loader gives it.
            device: Where the network is.
            dataloader_idx: Number of the loader.

        Raises:
            ArgumentError: If a hook asks more of a Trainer than there is without one.
        """
        target = torch.device(device)
        if not self.hooks:
            return move(batch, target)
        with _validating(self._module, self._datamodule), _in_eval_mode(self._module):
            batch = self._call("on_before_batch_transfer", batch, dataloader_idx)
            if "transfer_batch_to_device" in self.hooks:
                batch = self._call("transfer_batch_to_device", batch, target, dataloader_idx)
            else:
                batch = move(batch, target)
            return self._call("on_after_batch_transfer", batch, dataloader_idx)

    def _call(self, hook: str, batch: Any, *arguments: Any) -> Any:
        owner = self.hooks.get(hook)
        return batch if owner is None else getattr(owner, hook)(batch, *arguments)


class NoTrainer:
    """What hooks and networks see for their Trainer where there is none.

    Attributes:
        name: Of the class that asks, for the message.
        asks: What it does with the Trainer, likewise.
    """

    training = sanity_checking = testing = predicting = tuning = False
    validating = evaluating = True
    current_epoch = global_step = global_rank = local_rank = 0
    world_size = num_devices = num_nodes = 1
    is_global_zero = True

    def __init__(self, name: str, asks: str = "changes batches on their way to the device by") -> None:
        self.name, self.asks = name, asks

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise ArgumentError(
            f"{self.name} {self.asks} self.trainer.{attribute}, and there is no Trainer here. Select at the end of "
            "fit, where there is one, or let it do without."
        )


@contextmanager
def _validating(*owners: Any) -> Iterator[None]:
    """Let the Trainer of any of these say that it validates."""
    owners = tuple(owner for owner in owners if owner is not None and _has_trainer(owner))
    trainer = next((found for owner in owners if (found := _trainer_of(owner)) is not None), None)
    without = [(owner, _held(owner)) for owner in owners if _trainer_of(owner) is None]
    seen = trainer if trainer is not None else NoTrainer(" or ".join(type(owner).__name__ for owner in owners))
    stage = None if trainer is None else trainer.state.stage
    for owner, _ in without:
        owner.trainer = seen
    try:
        if trainer is not None:
            trainer.validating = True
        yield
    finally:
        if trainer is not None:
            trainer.state.stage = stage
        for owner, held in without:
            owner.trainer = held


@contextmanager
def _in_eval_mode(module: Any) -> Iterator[None]:
    training = [part for part in module.modules() if part.training] if isinstance(module, torch.nn.Module) else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _has_trainer(owner: Any) -> bool:
    return any(_is_lightnings(kind, "core.module", "core.datamodule") for kind in type(owner).__mro__)


def _trainer_of(owner: Any) -> Any:
    """The Trainer of a module or a DataModule; None where there is none, or something in its place."""
    held = _held(owner)
    return None if isinstance(held, NoTrainer) else held


def _held(owner: Any) -> Any:
    """What is in the Trainer's place; the module's property raises where that is None."""
    known = vars(owner)
    return known.get("_trainer", known.get("trainer"))


def _overrides(owner: Any, hook: str) -> bool:
    """Whether an object has such a hook that is not Lightning's own."""
    if owner is None:
        return False
    if hook in vars(owner):
        return True
    kind = next((kind for kind in type(owner).__mro__ if hook in vars(kind)), None)
    return kind is not None and _has_trainer(owner) and not _is_lightnings(kind, "core.hooks")


def _is_lightnings(kind: type, *names: str) -> bool:
    """Whether a class is of one of these modules of Lightning, whichever of its two names it is imported by."""
    return kind.__module__.split(".")[0] in ("lightning", "pytorch_lightning") and kind.__module__.endswith(names)
