"""What a student is traced on: samples of its data, or noise of a shape."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import nn

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.transfer import BatchTransfer
from lightning_ckptkd.trainer.run_data import loader_without_run

_SAMPLES, _BATCHES = 2, 4
_SPLITS = ("val", "test", "train")


def noise(shape: Sequence[int]) -> Batch:
    """Two samples of Gaussian noise, shape (2, *shape), always the same.

    Raises:
        ArgumentError: If a size is less than one.
    """
    if any(size < 1 for size in shape):
        raise ArgumentError(f"shape={list(shape)} should be sizes from 1 up, of one sample, such as 3 32 32.")
    return Batch(torch.randn(_SAMPLES, *shape, generator=torch.Generator().manual_seed(0)))


def draw_samples(datamodule: LightningDataModule, module: nn.Module, read: Callable[[Any], Batch]) -> list[Batch]:
    """The first batches of a DataModule's validation, test or training data, through the batch hooks.

    Args:
        datamodule: Where they are from.
        module: Whose hooks are run.
        read: Unpacks a batch.

    Raises:
        ArgumentError: If there are none, or inputs can't be told from targets.
    """
    for split in _SPLITS:
        loader = loader_without_run(datamodule, None, split, "sample")
        if loader is not None:
            break
    else:
        raise ArgumentError(f"data: {type(datamodule).__name__} has no dataloader to take a sample from. Give --shape.")
    transfer = BatchTransfer(module, datamodule)
    batches = [read(transfer(batch, "cpu")) for batch in itertools.islice(loader, _BATCHES)]
    whole = [batch for batch in batches if len(batch) == len(batches[0])]  # the last one may be smaller
    if not whole:
        raise ArgumentError(f"data: the {split} dataloader of {type(datamodule).__name__} is empty. Give --shape.")
    return whole
