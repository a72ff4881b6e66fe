"""Projects on tables of numbers: a regression, several labels, one label of two kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from sklearn.datasets import load_breast_cancer, load_diabetes, make_multilabel_classification
from sklearn.metrics import mean_squared_error
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import BinaryAccuracy, MultilabelAccuracy
from torchmetrics.regression import R2Score

from lightning_ckptkd import StudentProxy, TeacherCache
from lightning_ckptkd.teachers import FeatureMatching, Mixup
from tests.real_projects.whole_way import Way, accuracy_of


class TableData(LightningDataModule):
    """Rows of a table, the first 100 to look at."""

    def table(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        x, y = self.table()
        x = (x - x.mean(0)) / x.std(0)
        self.train, self.val = TensorDataset(x[100:], y[100:]), TensorDataset(x[:100], y[:100])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, 64, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, 32)


class DiabetesData(TableData):
    def table(self) -> tuple[Tensor, Tensor]:
        x, y = load_diabetes(return_X_y=True)
        return torch.tensor(x).float(), (torch.tensor(y).float() - 150) / 80


class CancerData(TableData):
    def table(self) -> tuple[Tensor, Tensor]:
        x, y = load_breast_cancer(return_X_y=True)
        return torch.tensor(x).float(), torch.tensor(y).float()


class LabelsData(TableData):
    def table(self) -> tuple[Tensor, Tensor]:
        x, y = make_multilabel_classification(400, 12, n_classes=4, random_state=0)
        return torch.tensor(x).float(), torch.tensor(y).float()


def mlp(inputs: int, outputs: int, width: int = 32) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))


class Table(LightningModule):
    """A network for a table; what is predicted has the shape (N, outputs), a single target the shape (N,)."""

    def __init__(self, network: nn.Module, loss: Any, metric: Any, name: str, squeeze: bool = False) -> None:
        super().__init__()
        self.network, self.loss, self.metric, self.name, self.squeeze = network, loss, metric, name, squeeze

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.network(x)
        return found.squeeze(1) if self.squeeze else found

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.loss(self(batch[0]), batch[1])
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.metric(self(batch[0]), batch[1])
        self.log(self.name, self.metric)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def rmse(network: nn.Module, data: LightningDataModule) -> float:
    data.setup("validate")
    network.eval()
    with torch.no_grad():
        pairs = [(network(x).reshape(-1), y) for x, y in data.val_dataloader()]
    found, truth = (torch.cat(parts).numpy() for parts in zip(*pairs, strict=True))
    return float(mean_squared_error(truth, found)) ** 0.5


class Regression(Table):
    def __init__(self, width: int = 32) -> None:
        super().__init__(mlp(10, 1, width), F.mse_loss, R2Score(), "val_r2", squeeze=True)


REGRESSED = Way(Regression, DiabetesData, lambda: mlp(10, 1, 8), rmse, metric="val_rmse", own=None, epochs=3)


def test_a_regression(tmp_path: Path) -> None:
    harvest = REGRESSED.harvest(
        tmp_path, student_proxy=StudentProxy(mlp(10, 1, 8), steps=4, candidates=2, batch_size=16)
    )
    document = REGRESSED.check_selection(harvest)
    gains = [entry["label_information"] for entry in document["snapshots"]]
    assert all(entry["accuracy"] is None for entry in document["snapshots"])
    assert gains == sorted(gains), "each epoch knows more"
    REGRESSED.distil(tmp_path, harvest, cache=TeacherCache(tmp_path / "cache"))
    REGRESSED.distil(tmp_path, harvest, mix=Mixup())
    REGRESSED.distil(tmp_path, harvest, feature_matching=FeatureMatching("0", "network.0", 8, 32, spatial=False))


def measured(network: nn.Module, data: LightningDataModule) -> float:
    data.setup("validate")
    return accuracy_of(lambda net, batch: (net(batch[0]).reshape(batch[1].shape) > 0, batch[1] > 0.5))(network, data)


def test_two_classes_and_one_output(tmp_path: Path) -> None:
    way = Way(
        lambda: Table(mlp(30, 1), F.binary_cross_entropy_with_logits, BinaryAccuracy(), "val_acc", squeeze=True),
        CancerData,
        lambda: mlp(30, 1, 8),
        measured,
    )
    harvest = way.harvest(tmp_path, student_proxy=StudentProxy(mlp(30, 1, 8), steps=4, candidates=2, batch_size=16))
    way.distil(tmp_path, harvest, cache=TeacherCache(tmp_path / "cache"))
    way.distil(tmp_path, harvest, mix=Mixup())


def test_several_labels(tmp_path: Path) -> None:
    way = Way(
        lambda: Table(
            mlp(12, 4), F.binary_cross_entropy_with_logits, MultilabelAccuracy(4, average="micro"), "val_acc"
        ),
        LabelsData,
        lambda: mlp(12, 4, 8),
        measured,
    )
    harvest = way.harvest(tmp_path, student_proxy=StudentProxy(mlp(12, 4, 8), steps=4, candidates=2, batch_size=16))
    way.distil(tmp_path, harvest, cache=TeacherCache(tmp_path / "cache"))
    way.distil(tmp_path, harvest, mix=Mixup())
