from __future__ import annotations

from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lightning_ckptkd.trainer.namespaces import is_kind, overrides

COPIES = [lightning.pytorch, pytorch_lightning]


@pytest.mark.parametrize("copy", COPIES)
def test_instances_of_either_copy(copy: Any) -> None:
    strategy = copy.strategies.SingleDeviceStrategy("cpu")
    assert is_kind(strategy, SingleDeviceStrategy)
    assert is_kind(strategy, DDPStrategy, SingleDeviceStrategy)
    assert not is_kind(strategy, DDPStrategy)
    assert is_kind(copy.LightningModule(), lightning.pytorch.LightningModule)
    assert not is_kind("strategy", SingleDeviceStrategy)


@pytest.mark.parametrize("copy", COPIES)
def test_methods_of_ones_own_in_either_copy(copy: Any) -> None:
    class Module(copy.LightningModule):  # type: ignore[misc, name-defined]
        def val_dataloader(self) -> None:
            pass

    class Data(copy.LightningDataModule):  # type: ignore[misc, name-defined]
        def test_dataloader(self) -> None:
            pass

    ours = lightning.pytorch
    assert overrides("val_dataloader", Module(), ours.LightningModule)
    assert not overrides("train_dataloader", Module(), ours.LightningModule)
    assert overrides("test_dataloader", Data(), ours.LightningDataModule, ours.LightningModule)
    assert not overrides("val_dataloader", Data(), ours.LightningDataModule)
    assert not overrides("val_dataloader", Data(), ours.LightningModule)
    assert not overrides("no_such_hook", Module(), ours.LightningModule)
