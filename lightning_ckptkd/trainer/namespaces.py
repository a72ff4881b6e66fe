"""Lightning's two names: ``lightning.pytorch`` and ``pytorch_lightning`` are two copies of every class."""

from __future__ import annotations

import sys
from typing import Any

from lightning_ckptkd.errors import ArgumentError

_REFUSES = "pytorch_lightning.utilities.compile"  # the module in which its Trainer looks at what it is to train
_TWINS = {"lightning.pytorch": "pytorch_lightning", "lightning.fabric": "lightning_fabric"}


def is_kind(value: Any, *kinds: type) -> bool:
    """Whether something is an instance of one of Lightning's classes, of whichever copy.

    Args:
        value: Anything.
        kinds: Classes of ``lightning.pytorch`` or ``lightning.fabric``.
    """
    return isinstance(value, tuple(copy for kind in kinds for copy in _copies(kind)))


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
    theirs = [getattr(copy, name, None) for parent in parents for copy in _copies(parent) if isinstance(instance, copy)]
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


def _copies(kind: type) -> list[type]:
    """A class and its twin, where the other copy of Lightning is imported."""
    found = [kind]
    for ours, other in _TWINS.items():
        if kind.__module__.startswith(ours):
            module = sys.modules.get(other + kind.__module__.removeprefix(ours))
            twin = getattr(module, kind.__name__, None)
            if isinstance(twin, type):
                found.append(twin)
    return found
