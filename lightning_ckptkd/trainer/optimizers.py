"""Optimiser and learning-rate schedule as LightningCLI gives them: callables still waiting for the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler

OptimizerCallable = Callable[[Iterable[Any]], Optimizer]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]


def configure(
    module: nn.Module, optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None
) -> OptimizerLRScheduler:
    """What ``configure_optimizers`` returns.

    Args:
        module: Its parameters are trained.
        optimizer: Makes the optimiser from parameters.
        lr_scheduler: Makes the schedule from the optimiser; stepped once an epoch. One that follows a metric (such
            as ``lightning.pytorch.cli.ReduceLROnPlateau``) names it in ``monitor``; ``val_loss`` is taken else.
    """
    made = optimizer(module.parameters())
    if lr_scheduler is None:
        return made
    schedule = lr_scheduler(made)
    if isinstance(schedule, ReduceLROnPlateau):
        monitor = getattr(schedule, "monitor", "val_loss")
        return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "monitor": monitor}}
    return {"optimizer": made, "lr_scheduler": schedule}
