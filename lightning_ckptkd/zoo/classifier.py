"""Plain training of a classifier: for teachers, and for students without a teacher."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.calling import call
from lightning_ckptkd.tasks.reading import BatchReader
from lightning_ckptkd.trainer.optimizers import LRSchedulerCallable, OptimizerCallable, configure


class Classifier(LightningModule):
    """Train a network with cross-entropy; logs ``train_loss`` and ``{val,test}_loss`` and ``_acc``.

    Args:
        network: Returns logits (N, K).
        optimizer: Makes the optimiser; the default is the checkpoint paper's.
        lr_scheduler: Makes the learning-rate schedule, stepped once an epoch; None keeps the rate.
        label_smoothing: In [0, 1).
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(
            p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        ),
        lr_scheduler: LRSchedulerCallable | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network", "optimizer", "lr_scheduler"])
        self.network = network
        self.label_smoothing = label_smoothing
        self._optimizer, self._lr_scheduler = optimizer, lr_scheduler
        self._read = BatchReader()
        self.val_acc = MulticlassAccuracy(average="micro")
        self.test_acc = MulticlassAccuracy(average="micro")

    @override
    def forward(self, inputs: Any) -> Tensor:
        """Logits, shape (N, K), of inputs as the network takes them."""
        logits: Tensor = call(self.network, Batch(inputs))
        return logits

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        read = self._read(batch)
        loss = F.cross_entropy(self(read.inputs), read.targets, label_smoothing=self.label_smoothing)
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_acc)

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch, "test", self.test_acc)

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits: Tensor = self(self._read.inputs_only(batch).inputs)
        return logits

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure(self.network, self._optimizer, self._lr_scheduler)

    def _evaluate(self, batch: Any, stage: str, accuracy: MulticlassAccuracy) -> None:
        read = self._read(batch)
        logits = self(read.inputs)
        accuracy(logits, read.targets)
        self.log(f"{stage}_loss", F.cross_entropy(logits, read.targets), sync_dist=True)
        self.log(f"{stage}_acc", accuracy, on_step=False, on_epoch=True, prog_bar=True)
