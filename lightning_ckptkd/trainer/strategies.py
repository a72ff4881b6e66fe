"""Which of Lightning's strategies weights can be harvested under, and which weights of theirs."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import nn

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.trainer.namespaces import is_kind

_SUPPORTED = (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy)
_NOT_THESE = (DeepSpeedStrategy,)  # a kind of DDPStrategy whose weights are spread over the ranks


def check_strategy(trainer: Trainer) -> None:
    """Refuse strategies under which whole weights can't be had, or were never tested.

    Raises:
        ArgumentError: Names the strategy and the remedy.
    """
    if not is_kind(trainer.strategy, *_SUPPORTED) or is_kind(trainer.strategy, *_NOT_THESE):
        raise ArgumentError(
            f"strategy={type(trainer.strategy).__name__}: weights are harvested on one device, under DDPStrategy and "
            "under ModelParallelStrategy (FSDP2: torch's fully_shard in configure_model). Use one of these, or convert "
            "the sharded checkpoints afterwards and take them over with `ckptkd harvest`."
        )


def find_averaging(trainer: Trainer, harvester: Callback) -> WeightAveraging:
    """The callback whose averaged weights are harvested.

    Raises:
        ArgumentError: If there is none, or it comes after the harvester, so that its average would be late.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    averaging: Any = next((callback for callback in callbacks if is_kind(callback, WeightAveraging)), None)
    if averaging is None:
        raise ArgumentError(
            "averaged=True: the Trainer has no WeightAveraging (or EMAWeightAveraging) callback whose weights could be "
            "harvested. Add one before CheckpointHarvester, or leave averaged out."
        )
    if callbacks.index(averaging) > callbacks.index(harvester):
        raise ArgumentError(
            f"averaged=True: {type(averaging).__name__} comes after CheckpointHarvester, so its average of the epoch "
            "would be missed. List it before."
        )
    found: WeightAveraging = averaging
    return found


def harvested_module(pl_module: LightningModule, averaging: WeightAveraging | None) -> nn.Module | None:
    """The module whose weights are taken now: the trained one or its average; None while there is no average yet."""
    if averaging is None:
        return pl_module
    average = averaging._average_model  # not public, and there is no other way to it in lightning 2.6
    if average is None or int(average.n_averaged) == 0:
        return None
    module: nn.Module = average.module
    return module
