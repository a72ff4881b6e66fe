"""A project under ``import pytorch_lightning``: harvested and selected there, distilled under the new name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_ckptkd import CheckpointHarvester, MISelector, StudentProxy, TeacherCache
from tests.real_projects.old_name import OldData, OldModule
from tests.real_projects.test_images import labels, mlp
from tests.real_projects.whole_way import Way, accuracy_of


def student() -> nn.Module:
    return mlp()


class Loaders(LightningDataModule):
    """The old data module's loaders, since Lightning's Trainer takes no data module of its other name."""

    def train_dataloader(self) -> DataLoader[Any]:
        return OldData().train_dataloader()

    def val_dataloader(self) -> DataLoader[Any]:
        return OldData().val_dataloader()


WAY = Way(OldModule, Loaders, student, accuracy_of(labels))


def test_fitted_under_the_old_name_and_distilled_under_the_new(tmp_path: Path) -> None:
    proxy = StudentProxy(student(), steps=4, candidates=2, batch_size=16)
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=[CheckpointHarvester(tmp_path / "harvest"), MISelector(student_proxy=proxy)],
    )
    trainer.fit(OldModule(), OldData())
    WAY.check_selection(tmp_path / "harvest")
    # its module is the teachers' skeleton
    WAY.distil(tmp_path, tmp_path / "harvest", cache=TeacherCache(tmp_path / "cache"))
