"""Lightning projects of the kind that people have: what the callbacks are dropped into."""

from __future__ import annotations

import gzip
import shutil
import struct
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_ckptkd import SnapshotStore


def digits(start: int, stop: int) -> TensorDataset:
    data = load_digits()
    images = torch.from_numpy(data.images[start:stop]).float().unsqueeze(1) / 16
    return TensorDataset(images, torch.from_numpy(data.target[start:stop]).long())


class DigitsData(LightningDataModule):
    def __init__(self, batch_size: int = 32, train_size: int = 128, shuffle: bool = True) -> None:
        super().__init__()
        self.batch_size, self.train_size, self.shuffle = batch_size, train_size, shuffle

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(digits(0, self.train_size), self.batch_size, shuffle=self.shuffle)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(digits(1000, 1200), self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(digits(1200, 1400), self.batch_size)


def convolutions(channels: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * channels, 16),
        nn.ReLU(),
    )


class Project(LightningModule):
    """A network in two parts, metrics in its own epoch-end hook, automatic optimisation."""

    def __init__(self, channels: int = 8, lr: float = 0.1, num_classes: int = 10) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = convolutions(channels)
        self.classifier = nn.Linear(16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.backbone(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True, on_step=False)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("own_hook", float(self.current_epoch) + 0.5)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())
        self.log("val_loss", F.cross_entropy(logits, batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)]


class ManualProject(Project):
    """The same with manual optimisation and two optimisers."""

    def __init__(self, channels: int = 8, lr: float = 0.1) -> None:
        super().__init__(channels, lr)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            loss = F.cross_entropy(self(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("train_loss", loss)

    def configure_optimizers(self) -> Any:
        return (
            torch.optim.SGD(self.backbone.parameters(), lr=self.hparams.lr),
            torch.optim.Adam(self.classifier.parameters(), lr=1e-3),
        )


def make_trainer(root: Path, *callbacks: Any, **options: Any) -> Trainer:
    settings: dict[str, Any] = {
        "default_root_dir": root,
        "accelerator": "cpu",
        "max_epochs": 4,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return Trainer(callbacks=list(callbacks), **{**settings, **options})


def own_callbacks(root: Path) -> list[Any]:
    return [
        ModelCheckpoint(dirpath=root / "own", filename="{epoch}", save_top_k=-1),
        EarlyStopping("val_loss", patience=10),
    ]


def write_fashion_mnist(root: Path) -> None:
    """The idx files that torchvision reads, holding scikit-learn's digits in place of clothes."""
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = digits(0, 300).tensors
    pixels = (nn.functional.interpolate(images, (28, 28)) * 255).byte()
    for name, part in (("train", slice(0, 200)), ("t10k", slice(200, 300))):
        picked, marks = pixels[part], labels[part].byte()
        with gzip.open(raw / f"{name}-images-idx3-ubyte.gz", "wb") as file:
            file.write(struct.pack(">IIII", 2051, len(picked), 28, 28) + picked.numpy().tobytes())
        with gzip.open(raw / f"{name}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">II", 2049, len(marks)) + marks.numpy().tobytes())
    for packed in raw.glob("*.gz"):
        with gzip.open(packed) as source, packed.with_suffix("").open("wb") as target:
            shutil.copyfileobj(source, target)


def to_write(harvest: Path) -> SnapshotStore:
    """A harvest, opened to be written on by its own run."""
    return SnapshotStore.create(harvest, SnapshotStore.open(harvest).manifest.run_id, {})


def write_distill_config(root: Path, harvest: Path, option: str) -> Path:
    """A config of ``ckptkd distill`` for :class:`Project` and an option of the module, as a line of YAML."""
    config = root / "distill.yaml"
    config.write_text(
        f"""
        trainer: {{max_epochs: 1, logger: false, enable_checkpointing: false, default_root_dir: {root},
                   enable_progress_bar: false, accelerator: cpu}}
        data: tests.projects.DigitsData
        model:
          class_path: lightning_ckptkd.DistillationModule
          init_args:
            student: {{class_path: tests.projects.Project, init_args: {{channels: 2}}}}
            teacher: tests.projects.Project
            snapshots: {harvest}
            choice: full
            {option}
        """
    )
    return config
