"""A project whose task is its own: each pixel of a digit in one of three classes of brightness."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.tasks.base import Task
from tests.projects import digits

CLASSES, IGNORED = 3, 255


class Pixels(Task):
    """Logits (N, K, H, W), targets (N, H, W); teachers teach on the pixels that have a label."""

    name = "pixels"

    def __init__(self, ignore_index: int = IGNORED) -> None:
        super().__init__(ignore_index)

    @override
    def flatten(self, output: Tensor, lead: int = 0) -> Tensor:
        return output.movedim(lead + 1, -1).flatten(lead, -2)

    @override
    def flatten_targets(self, targets: Tensor) -> Tensor:
        return targets.flatten().long()

    @override
    def kept(self, targets: Tensor) -> Tensor | None:
        return (targets != self.ignore_index).nonzero().squeeze(1)

    @override
    def check(self, output: Tensor, targets: Tensor, model: str) -> None:
        if output.dim() != 4 or targets.shape != (len(output), *output.shape[2:]):
            raise ArgumentError(f"Pixels of {model}: {tuple(output.shape)} and {tuple(targets.shape)}.")


def pixels(start: int, stop: int) -> TensorDataset:
    """Digits and the class of each pixel; none where a row of four is numbered by its label."""
    images, labels = digits(start, stop).tensors
    targets = (images.squeeze(1) * 2.99).long()
    rows = torch.arange(8).expand(len(images), 8)
    targets[(rows == labels.clamp(max=7)[:, None])] = IGNORED
    return TensorDataset(images, targets)


class PixelsData(LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(pixels(0, 96), 32)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(pixels(1000, 1064), 32)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(pixels(1200, 1264), 32)


class Segmenter(LightningModule):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        layers = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, CLASSES, 1)]
        self.layers = nn.Sequential(*layers)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1], ignore_index=IGNORED)

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    @override
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)
