"""The whole way through the package for a project of somebody else's, its numbers held against the project's own.

What is right is computed beside the package: by the project's own ``validation_step`` for its snapshots, by
``measure``, which calls a network as the project does, for the student that was exported.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from safetensors.torch import load_file
from torch import nn

from lightning_ckptkd import CheckpointHarvester, DistillationModule, MISelector, SnapshotStore
from lightning_ckptkd.commands.export import export_student
from tests.projects import make_trainer


@dataclass
class Way:
    """A project, and what its user tells the package.

    Attributes:
        module: Makes the LightningModule; it logs ``own`` of its validation data.
        data: Makes the data module.
        student: Makes the network to distil into.
        measure: What a network reaches on the validation data, called as the project calls networks.
        metric: What the student logs of that.
        own: What the module logs of it; None where a selection has no such number.
        selector: Options of ``MISelector``.
        distillation: Options of ``DistillationModule``.
        epochs: Snapshots.
        distiller: The class that distils.
    """

    module: Callable[[], LightningModule]
    data: Callable[[], LightningDataModule]
    student: Callable[[], nn.Module]
    measure: Callable[[nn.Module, LightningDataModule], float]
    metric: str = "val_acc"
    own: str | None = "val_acc"
    selector: dict[str, Any] = field(default_factory=dict)
    distillation: dict[str, Any] = field(default_factory=dict)
    epochs: int = 2
    distiller: type[DistillationModule] = DistillationModule

    def harvest(self, root: Path, **selector: Any) -> Path:
        """Fit the project with both callbacks and check the selection; the harvest's folder."""
        callbacks = [CheckpointHarvester(root / "harvest"), MISelector(**{**self.selector, **selector})]
        module = self.module()
        make_trainer(root, *callbacks, max_epochs=self.epochs).fit(module, datamodule=self.data())
        self.check_selection(root / "harvest")
        return root / "harvest"

    def check_selection(self, harvest: Path) -> dict[str, Any]:
        """Each snapshot's accuracy is what the project itself logged at that epoch; it is loaded and measured, too."""
        document: dict[str, Any] = json.loads((harvest / "selection.json").read_text())
        store = SnapshotStore.open(harvest)
        assert len(document["snapshots"]) == len(store.snapshots) == self.epochs
        assert document["chosen"]
        for snapshot, entry in zip(store.snapshots, document["snapshots"], strict=True):
            assert entry["score"] is not None
            if self.own is None:
                continue
            assert entry["accuracy"] == pytest.approx(snapshot.metrics[self.own], abs=1e-6)
            module = self.module()
            module.load_state_dict(store.load(snapshot))
            assert self.measure(module, self.data()) == pytest.approx(entry["accuracy"], abs=1e-6)
        return document

    def distil(self, root: Path, harvest: Path, **options: Any) -> DistillationModule:
        """Distil for an epoch and export; the exported student reaches what was logged."""
        settings = {"optimizer": lambda p: torch.optim.Adam(p, lr=1e-2), **self.distillation, **options}
        module = self.distiller(self.student(), self.module(), harvest, **settings)
        data = self.data()
        trainer = make_trainer(root, max_epochs=1)
        trainer.fit(module, datamodule=data)
        logged = trainer.callback_metrics
        assert bool(logged["train_loss"].isfinite())
        trainer.save_checkpoint(root / "student.ckpt")
        out = root / f"student{len(list(root.glob('*.safetensors')))}.safetensors"
        export_student(root / "student.ckpt", out)
        alone = self.student()
        with torch.no_grad():
            for parameter in alone.parameters():
                parameter.fill_(0.5)
        alone.load_state_dict(load_file(out))
        assert self.measure(alone, data) == pytest.approx(float(logged[self.metric]), rel=1e-5, abs=1e-5)
        return module


def accuracy_of(predict: Callable[[nn.Module, Any], tuple[torch.Tensor, torch.Tensor]]) -> Callable[..., float]:
    """Makes a ``measure``: the share of places where a network's prediction is the target, over all batches.

    Args:
        predict: Predictions and targets of a batch, of one shape.
    """

    def measure(network: nn.Module, data: LightningDataModule) -> float:
        network.eval()
        with torch.no_grad():
            pairs = [predict(network, batch) for batch in data.val_dataloader()]
        right = sum(int((found == truth).sum()) for found, truth in pairs)
        return right / sum(truth.numel() for _, truth in pairs)

    return measure
