"""A project on torch_geometric: digits as graphs of their bright pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader as GraphLoader
from torch_geometric.nn import GCNConv, global_mean_pool
from torchmetrics.classification import MulticlassAccuracy

from lightning_ckptkd import StudentProxy
from tests.projects import digits
from tests.real_projects.whole_way import Way, accuracy_of


def graph(image: Tensor, label: Tensor) -> Data:
    """Pixels that are not dark, with edges between neighbours."""
    rows, columns = (image[0] > 0.2).nonzero(as_tuple=True)
    places = torch.stack([rows, columns], 1).float()
    near = torch.cdist(places, places) < 1.5
    x = torch.cat([image[0, rows, columns][:, None], places / 8], 1)
    return Data(x=x, edge_index=near.nonzero().T.contiguous(), y=label[None])


class GraphData(LightningDataModule):
    def train_dataloader(self) -> DataLoader[Any]:
        return GraphLoader([graph(*pair) for pair in digits(0, 128)], 32, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return GraphLoader([graph(*pair) for pair in digits(1000, 1100)], 32)


class GCN(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.first, self.second = GCNConv(3, width), GCNConv(width, width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        x = self.second(self.first(x, edge_index).relu(), edge_index)
        found: Tensor = self.head(global_mean_pool(x, batch))
        return found


class GraphClassifier(LightningModule):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.network = GCN(width)
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def forward(self, data: Batch) -> Tensor:
        found: Tensor = self.network(data.x, data.edge_index, data.batch)
        return found

    def training_step(self, data: Batch, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(data), data.y)
        self.log("train_loss", loss, batch_size=data.num_graphs)
        return loss

    def validation_step(self, data: Batch, batch_idx: int) -> None:
        self.accuracy(self(data), data.y)
        self.log("val_acc", self.accuracy, batch_size=data.num_graphs)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def labels(network: nn.Module, data: Batch) -> tuple[Tensor, Tensor]:
    whole = isinstance(network, LightningModule)
    found = network(data) if whole else network(data.x, data.edge_index, data.batch)
    return found.argmax(1), data.y


@pytest.mark.filterwarnings("ignore:I.X;F. is left out")  # of graphs there is none, and the user is told
def test_graph_classification(tmp_path: Path) -> None:
    """The module takes the graphs, its network and the student take their parts."""
    way = Way(GraphClassifier, GraphData, lambda: GCN(8), accuracy_of(labels))
    harvest = way.harvest(tmp_path, student_proxy=StudentProxy(GCN(8), steps=4, candidates=2, batch_size=16))
    way.distil(tmp_path, harvest)
