from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_ckptkd import ArgumentError, CheckpointHarvester, MISelector, StudentProxy
from lightning_ckptkd.selecting.batch_hooks import HookedBatches
from tests.projects import digits

BOTH = pytest.mark.parametrize("pl", [lightning.pytorch, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
pytestmark = pytest.mark.filterwarnings("ignore:You have overridden.*")  # says whose hook Lightning takes


def classes(pl: Any, where: str) -> tuple[type[Any], type[Any]]:
    """A classifier and its data; batches are normalised in a hook of one of them and, in training, augmented."""

    class Plain(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
            self.register_buffer("mean", torch.tensor(200.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            hits = (self(batch[0]).argmax(1) == batch[1]).float()
            self.log("val_acc", hits.mean(), batch_size=len(hits))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    class Data(pl.LightningDataModule):  # type: ignore[misc, name-defined]
        def train_dataloader(self) -> Any:
            return DataLoader(digits(0, 320), 32, shuffle=True)

        def val_dataloader(self) -> Any:
            return DataLoader(digits(1000, 1190), 32)

    class Normalising(Data):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            x, y = batch
            return ((x * 1000 - 200) / 300, y) if self.trainer else batch  # as torchgeo does: only with a Trainer

    class Augmenting(Plain):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            x, y = batch
            x = (x * 1000 - self.mean) / 300
            if self.trainer.training:
                x = torch.where(torch.rand_like(x) < 0.3, 5.0, x)
            return x, y

    return (Plain, Normalising) if where == "data" else (Augmenting, Data)


def fit(pl: Any, folder: Path, where: str, *callbacks: Any) -> tuple[Any, Any]:
    module, data = (kind() for kind in classes(pl, where))
    trainer = pl.Trainer(
        default_root_dir=folder,
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[CheckpointHarvester(folder / "h"), *callbacks],
    )
    trainer.fit(module, data)
    return module, data


def accuracies(folder: Path) -> tuple[list[float], list[float]]:
    """What is in the selection, and what Lightning logged."""
    chosen = json.loads((folder / "selection.json").read_text())["snapshots"]
    logged = json.loads((folder / "manifest.json").read_text())["snapshots"]
    return [item["accuracy"] for item in chosen], [item["metrics"]["val_acc"] for item in logged]


@BOTH
@pytest.mark.parametrize("where", ["data", "module"])
def test_accuracies_are_those_that_lightning_logged(pl: Any, where: str, tmp_path: Path) -> None:
    _, data = fit(pl, tmp_path, where, MISelector(num_teachers=2))
    found, logged = accuracies(tmp_path / "h")
    assert found == pytest.approx(logged, abs=1e-6)
    assert max(found) > 0.6
    # and without a Trainer, as in a new process, on the data's own loader and on one that is given
    model, again = (kind() for kind in classes(pl, where))
    for probe in (None, data.val_dataloader()):
        (tmp_path / "h" / "scores.json").unlink()
        alone = MISelector(num_teachers=2).select(tmp_path / "h", model, probe, datamodule=again, progress=False)
        assert [candidate.accuracy for candidate in alone.candidates] == pytest.approx(logged, abs=1e-6)
    # the hooks are what makes them equal
    bare = MISelector(num_teachers=2, probe=data.val_dataloader())
    without = bare.select(tmp_path / "h", classes(pl, "data")[0](), progress=False)
    assert [candidate.accuracy for candidate in without.candidates] != pytest.approx(logged, abs=0.05)


@pytest.mark.parametrize("where", ["data", "module"])
def test_students_of_a_proxy_train_on_what_the_hooks_give(where: str, tmp_path: Path) -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    proxy = StudentProxy(student, steps=60, candidates=2, batch_size=32)
    fit(lightning.pytorch, tmp_path, where, MISelector(num_teachers=1, student_proxy=proxy))
    document = json.loads((tmp_path / "h" / "selection.json").read_text())
    tried = [item["student_accuracy"] for item in document["snapshots"] if item["student_accuracy"] is not None]
    assert len(tried) == 2 and min(tried) > 0.5


def test_a_harvested_part_has_the_hooks_of_the_whole(tmp_path: Path) -> None:
    module, data = (kind() for kind in classes(lightning.pytorch, "module"))
    harvester = CheckpointHarvester(tmp_path / "h", submodule="net")
    trainer = lightning.pytorch.Trainer(
        default_root_dir=tmp_path,
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[harvester, MISelector()],
    )
    trainer.fit(module, data)
    found, logged = accuracies(tmp_path / "h")
    assert found == pytest.approx(logged, abs=1e-6)


def test_a_hook_that_fails_shows_before_training(tmp_path: Path) -> None:
    class Fails(classes(lightning.pytorch, "module")[0]):  # type: ignore[misc]
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0] if self.trainer.validating else batch

    trainer = lightning.pytorch.Trainer(
        default_root_dir=tmp_path,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[CheckpointHarvester(tmp_path / "h"), MISelector()],
    )
    with pytest.raises(ArgumentError, match="A batch should be"):
        trainer.fit(Fails(), classes(lightning.pytorch, "module")[1]())
    assert not (tmp_path / "h").exists()


def test_batches_stay_as_they_are_without_hooks() -> None:
    batch = torch.zeros(2), torch.zeros(2)
    assert HookedBatches(nn.Linear(1, 1), None)(batch) is batch
