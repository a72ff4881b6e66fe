"""What the checks of :mod:`benchmarks.gpu.cuda_tests` share: images, one harvest, one way to train."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_ckptkd import CheckpointHarvester, DistillationModule, SnapshotStore
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.teachers import TeacherEnsemble
from lightning_ckptkd.zoo import CIFARResNet, Classifier

IMAGES, SIDE, CLASSES, EPOCHS, BATCH_SIZE = 64, 16, 10, 3, 16


def network() -> nn.Module:
    """A ResNet-8 of width 8, so that channels-last is allowed."""
    return CIFARResNet(8, CLASSES, 8)


class Bench:
    """What the checks share: images, and one harvest that was made on the device.

    Args:
        device: ``cuda`` or ``cpu``.
        folder: For harvests and caches.
    """

    def __init__(self, device: str, folder: Path) -> None:
        self.device = torch.device(device)
        self.folder = folder
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(IMAGES, 3, SIDE, SIDE, generator=generator)
        self.data = TensorDataset(images, torch.randint(CLASSES, (IMAGES,), generator=generator))
        self._harvests = 0
        self._seen: EpochEnds | None = None

    def folder_for(self, name: str) -> Path:
        """A folder that is not there yet."""
        self._harvests += 1
        return self.folder / f"{name}_{time.time_ns()}_{self._harvests}"

    def loader(self) -> DataLoader[Any]:
        """Batches in order, from page-locked memory on a GPU."""
        return DataLoader(self.data, BATCH_SIZE, pin_memory=self.device.type == "cuda")

    def batch(self) -> Batch:
        """One batch on the device."""
        images, labels = self.data.tensors
        return Batch(images.to(self.device), labels.to(self.device))

    def harvested(self) -> EpochEnds:
        """A harvest, and the weights as they were when each snapshot was taken."""
        if self._seen is None:
            self._seen = self.harvest(self.folder_for("harvest"))
        return self._seen

    def harvest(self, folder: Path, **how: Any) -> EpochEnds:
        """Train and harvest in one way."""
        seed_everything(0, verbose=False)
        seen = EpochEnds(folder)
        module = Classifier(network())
        self.fit(module, seen, CheckpointHarvester(folder, submodule="network"), max_epochs=EPOCHS, **how)
        return seen

    def fit(self, module: LightningModule, *callbacks: Callback, **how: Any) -> Trainer:
        """Train on the device."""
        trainer = Trainer(
            **{
                "accelerator": "gpu" if self.device.type == "cuda" else "cpu",
                "devices": 1,
                "max_epochs": 1,
                "logger": False,
                "enable_checkpointing": False,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "default_root_dir": self.folder,
                "callbacks": list(callbacks),
                **how,
            }
        )
        trainer.fit(module, self.loader())
        return trainer

    def distil(self, how: dict[str, Any] | None = None, **options: Any) -> DistillationModule:
        """A student of the two first snapshots after one epoch."""
        seed_everything(1, verbose=False)
        module = DistillationModule(network(), network(), self.harvested().folder, choice=[0, 1], **options)
        self.fit(module, **(how or {}))
        for name, value in module.student.state_dict().items():
            assert bool(torch.isfinite(value).all()), f"{name} is not finite"
        return module

    def teachers(self) -> TeacherEnsemble:
        """The first two snapshots on the device."""
        store = SnapshotStore.open(self.harvested().folder)
        return TeacherEnsemble.load(store, store.snapshots[:2], network()).to(self.device, torch.float32)


class EpochEnds(Callback):
    """Keeps the weights of each epoch's end, copied while the device is waited for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.weights: list[dict[str, Tensor]] = []

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = pl_module.network.state_dict()  # type: ignore[union-attr]
        self.weights.append({name: value.detach().cpu().clone() for name, value in weights.items()})

    def check(self) -> None:
        """That the harvest holds these weights, bit for bit."""
        store = SnapshotStore.open(self.folder)
        assert len(store.snapshots) == len(self.weights) == EPOCHS
        for snapshot, expected in zip(store.snapshots, self.weights, strict=True):
            found = store.load(snapshot)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert torch.equal(found[name], value), f"{name} of epoch {snapshot.epoch} is another one"
