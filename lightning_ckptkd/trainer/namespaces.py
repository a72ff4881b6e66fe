"""Lightning's two names: ``lightning.pytorch`` and ``pytorch_lightning`` are two copies of every class."""

from __future__ import annotations

import sys
from typing import Any

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
