"""Running LightningModules outside of a Trainer's steps, where ``self.log`` and ``self.trainer`` have no meaning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lightning_ckptkd.tasks.transfer import NoTrainer

_LOGS = ("log", "log_dict")


def detach(network: nn.Module) -> None:
    """Let a network of our own run where nobody logs and there is no Trainer, from now on.

    Its ``self.log`` does nothing; its ``self.trainer`` says that it validates, and refuses what it can't know.
    """
    for part in _modules(network):
        part.trainer = NoTrainer(type(part).__name__, _ASKS)
    silence(network)


def attach(network: nn.Module, trainer: Any) -> None:
    """Let a network that is part of a module run under its Trainer; what the network logs by itself is left out."""
    for part in _modules(network):
        part._trainer = trainer
    silence(network)


def silence(network: nn.Module) -> None:
    """Let ``self.log`` do nothing, until :func:`let_log`."""
    for part in _modules(network):
        for name in _LOGS:
            setattr(part, name, _log_nothing)


def let_log(network: nn.Module) -> None:
    """The opposite of :func:`silence`."""
    for part in _modules(network):
        for name in _LOGS:
            if vars(part).get(name) is _log_nothing:
                delattr(part, name)


@contextmanager
def alone(network: nn.Module) -> Iterator[None]:
    """The same for a network of somebody else's, until the end of the block; a Trainer that it has stays."""
    parts = _modules(network)
    without = [part for part in parts if part._trainer is None]
    own = [{name: vars(part)[name] for name in _LOGS if name in vars(part)} for part in parts]
    for part in without:
        part.trainer = NoTrainer(type(part).__name__, _ASKS)
    silence(network)
    try:
        yield
    finally:
        for part in without:
            part._trainer = None
        for part, logs in zip(parts, own, strict=True):
            for name in _LOGS:
                delattr(part, name)
            for name, log in logs.items():
                setattr(part, name, log)


_ASKS = "asks in forward for"


def _modules(network: nn.Module) -> list[Any]:
    from lightning.pytorch import LightningModule

    from lightning_ckptkd.trainer.namespaces import is_kind

    return [part for part in network.modules() if is_kind(part, LightningModule)]


def _log_nothing(*_: Any, **__: Any) -> None:
    pass
