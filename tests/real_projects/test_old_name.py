"""A project under ``import pytorch_lightning``: harvested and selected there, distilled under the new name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_ckptkd import (
    ArgumentError,
    CheckpointHarvester,
    DistillationModule,
    MISelector,
    StudentProxy,
    TeacherCache,
)
from lightning_ckptkd.commands.cli import main
from tests.projects import DigitsData, Project, make_trainer
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


def new_name(root: Path, *callbacks: Any) -> Trainer:
    return make_trainer(root, *callbacks, max_epochs=1)


def test_a_data_module_of_the_old_name_under_the_new_one(tmp_path: Path) -> None:
    """Lightning's Trainer takes none, whatever is called; what says so names what works, which is tried here."""
    told = (
        r"OldData is a LightningDataModule of pytorch_lightning, and this Trainer is lightning\.pytorch's, another .*"
    )
    told += r"`from lightning\.pytorch import LightningDataModule`, or give fit\(\) its dataloaders"
    harvest, data = tmp_path / "harvest", OldData()
    for callbacks in ([CheckpointHarvester(harvest), MISelector()], [MISelector(harvest)]):
        for given in ({"datamodule": data}, {"train_dataloaders": data}):
            with pytest.raises(ArgumentError, match=told):
                new_name(tmp_path, *callbacks).fit(Project(), **given)
    assert not harvest.exists()
    loaders = data.train_dataloader(), data.val_dataloader()
    selector = MISelector(rule="accuracy", on_error="raise")
    new_name(tmp_path, CheckpointHarvester(harvest), selector).fit(Project(), *loaders)
    for given in ({"datamodule": data}, {"train_dataloaders": data}):
        with pytest.raises(ArgumentError, match=told):
            new_name(tmp_path).fit(DistillationModule(student(), Project(), harvest), **given)
    new_name(tmp_path).fit(DistillationModule(student(), Project(), harvest), *loaders)
    new_name(tmp_path / "other", CheckpointHarvester(), MISelector(rule="half", on_error="raise")).fit(
        Project(), datamodule=Loaders()
    )
    # `ckptkd select` needs no Trainer, and takes it
    words = ["select", str(harvest), "--rule=accuracy", "--model=tests.projects.Project"]
    named = main([*words, "--data=tests.real_projects.old_name.OldData"])
    assert selector.selection is not None and named.candidates == selector.selection.candidates
    config = tmp_path / "fit.yaml"
    config.write_text("data: {class_path: tests.real_projects.old_name.OldData}")
    assert main([*words, f"--fit_config={config}"]).candidates == named.candidates


def test_a_data_module_of_the_new_name_under_the_old_one(tmp_path: Path) -> None:
    told = r"DigitsData is a LightningDataModule of lightning\.pytorch, and this Trainer is pytorch_lightning's"
    with pytest.raises(ArgumentError, match=told):
        pl.Trainer(
            default_root_dir=tmp_path, accelerator="cpu", logger=False, callbacks=[CheckpointHarvester(tmp_path)]
        ).fit(OldModule(), DigitsData())
