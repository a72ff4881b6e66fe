"""Lightning's two names: ``lightning.pytorch`` and ``pytorch_lightning`` are two copies of every class."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError

_REFUSES = "pytorch_lightning.utilities.compile"  # the module in which its Trainer looks at what it is to train
_TWINS = {"lightning.pytorch": "pytorch_lightning", "lightning.fabric": "lightning_fabric"}


def is_kind(value: Any, *kinds: type) -> bool:
    """Whether something is an instance of one of Lightning's classes, of whichever copy.

    Args:
        value: Anything.
        kinds: Classes of ``lightning.pytorch`` or ``lightning.fabric``.
    """
    return isinstance(value, tuple(copy for kind in kinds for copy in copies(kind)))


def overrides(name: str, instance: Any, *parents: type) -> bool:
    """Whether an instance has a method of its own in place of that of one of Lightning's classes, of whichever copy.

    Args:
        name: Of the method.
        instance: Of a subclass of ``parents``.
        parents: Classes of ``lightning.pytorch`` that define the method.
    """
    method = getattr(instance, name, None)
    if method is None:
        return False
    own = getattr(method, "__func__", method)
    theirs = [getattr(copy, name, None) for parent in parents for copy in copies(parent) if isinstance(instance, copy)]
    return bool(theirs) and all(own is not getattr(base, "__func__", base) for base in theirs)


class OfOneName:
    """A LightningModule of ``lightning.pytorch`` that a Trainer of ``pytorch_lightning`` refuses in words that help.

    That Trainer asks isinstance before any hook, and its own refusal names neither package. isinstance asks for
    ``__class__``, which is the one place where a module can say something; nobody else gets another answer.
    """

    @property
    def __class__(self) -> type:
        """The type.

        Raises:
            ArgumentError: If a Trainer of the other name asks.
        """
        if sys._getframe(1).f_globals.get("__name__") == _REFUSES:
            name = type(self).__name__
            raise ArgumentError(
                f"{name} is a LightningModule of lightning.pytorch, and this Trainer is pytorch_lightning's, another "
                "copy of it. Train it with `from lightning.pytorch import Trainer`, and DataModules of that name; the "
                "teacher's module may stay as it is."
            )
        return type(self)

    @__class__.setter
    def __class__(self, kind: type) -> None:
        object.__dict__["__class__"].__set__(self, kind)

    @property
    def trainer(self) -> Trainer:
        """The Trainer.

        Raises:
            ArgumentError: When it is set, if its data are a DataModule of the other name.
        """
        found: Trainer = LightningModule.trainer.fget(self)  # type: ignore[attr-defined]
        return found

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        refuse_other_data(trainer)
        LightningModule.trainer.fset(self, trainer)  # type: ignore[attr-defined]


class TakesDataOfOneName(Callback):
    """A callback that says which DataModules its Trainer takes, where it was given one of the other name.

    Lightning's own words, "Expected a parent", name neither; where the DataModule is given in a dataloader's place
    there are none at all.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_other_data(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        refuse_other_data(trainer)  # Lightning refuses it before any other hook


def refuse_other_data(trainer: Any) -> None:
    """Check that a Trainer's data are no DataModule of Lightning's other name.

    Raises:
        ArgumentError: If they are.
    """
    if not is_kind(trainer, Trainer):
        return
    ours, theirs = ("lightning.pytorch", "pytorch_lightning")
    if not isinstance(trainer, Trainer):
        ours, theirs = theirs, ours
    fitted = trainer.fit_loop._data_source.instance  # also what was given in the place of a dataloader
    for data in (trainer.datamodule, fitted):
        if is_kind(data, LightningDataModule) and not isinstance(data, sys.modules[ours].LightningDataModule):
            raise ArgumentError(
                f"{type(data).__name__} is a LightningDataModule of {theirs}, and this Trainer is {ours}'s, another "
                f"copy of it. Derive it from the one of `from {ours} import LightningDataModule`, or give fit() its "
                "dataloaders: data.train_dataloader(), data.val_dataloader()."
            )


def copies(kind: type) -> list[type]:
    """A class and its twin, where the other copy of Lightning is imported."""
    found = [kind]
    for ours, other in _TWINS.items():
        if kind.__module__.startswith(ours):
            module = sys.modules.get(other + kind.__module__.removeprefix(ours))
            twin = getattr(module, kind.__name__, None)
            if isinstance(twin, type):
                found.append(twin)
    return found
