"""Ways to train one student, each an epoch at a time: ours, Lightning's, torchdistill's, and the published loop."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from typing_extensions import override

from benchmarks.harvest.trainings import quiet_trainer

ALPHA, TEMPERATURE = 0.5, 5.0
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
INSTALL_TORCHDISTILL = (
    "torchdistill can't be imported, so its rows are left out: pip install 'lightning-ckptkd[bench]', or `make bench`."
)


class Stopwatch:
    """Times the steps and the whole of one epoch.

    Args:
        device: A GPU is waited for at both ends of the epoch.
        each_step: Whether it is waited for at both ends of a step too; the epoch is then no good.

    Attributes:
        preparation: Seconds between the start of training and that of the epoch; for Lightning's Trainer only.
        epoch: Seconds of the epoch, reading of the data included.
        steps: Seconds of each step, from the batch on the device to the updated student.
    """

    def __init__(self, device: torch.device, each_step: bool) -> None:
        self.preparation, self.epoch, self.steps = 0.0, 0.0, list[float]()
        self._device, self._each_step = device, each_step
        self._starts = dict[str, float]()

    @property
    def step(self) -> float:
        """Median of the steps."""
        return statistics.median(self.steps)

    def start_training(self) -> None:
        """Call it where training starts, before whatever comes before the first epoch."""
        self._starts["training"] = self._now()

    def start_epoch(self) -> None:
        """Call it before the first batch is read."""
        self._starts["epoch"] = self._now()
        if "training" in self._starts:
            self.preparation = self._starts["epoch"] - self._starts["training"]

    def start_step(self) -> None:
        """Call it when the batch is on the device."""
        self._starts["step"] = self._now(wait=self._each_step)

    def stop_step(self) -> None:
        """Call it when the student is updated."""
        self.steps.append(self._now(wait=self._each_step) - self._starts["step"])

    def stop_epoch(self) -> None:
        """Call it after the last batch."""
        self.epoch = self._now() - self._starts["epoch"]

    def _now(self, *, wait: bool = True) -> float:
        if wait and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Training(Protocol):
    """One way to train a student.

    Attributes:
        teachers: Networks that run in each step; none where a DistillationModule has them.
    """

    teachers: Sequence[nn.Module]

    def run_epoch(self, watch: Stopwatch) -> None:
        """Train on all images once."""


class WatchedTraining(Callback):
    """Runs a stopwatch."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch.start_training()

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch.start_epoch()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._watch.start_step()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._watch.stop_step()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch.stop_epoch()


class LightningTraining:
    """A LightningModule in a Trainer.

    Args:
        module: It keeps what it found out in its first epoch, as it would in a longer training.
        data: Training images and labels.
        device: Where to train.
        folder: For what the Trainer writes.
    """

    def __init__(self, module: LightningModule, data: TensorDataset, device: torch.device, folder: Path) -> None:
        self._module, self._device, self._folder = module, device, folder
        self.teachers: Sequence[nn.Module] = ()
        self._loader = make_loader(data, device)

    def run_epoch(self, watch: Stopwatch) -> None:
        """Train on all images once, in a Trainer of its own."""
        trainer = quiet_trainer(self._device, self._folder, [WatchedTraining(watch)], max_epochs=1)
        trainer.fit(self._module, self._loader)


class PublishedLoop:
    """What the released code of "Efficient Knowledge Distillation from Model Checkpoints" does in a training epoch.

    Each teacher runs on the batch in turn, in float32 and under no_grad; the mean of their logits teaches; loss and
    accuracy are read after each step. The teachers are in eval mode here, which the released code forgets and which
    is faster.

    Args:
        student: The network to train.
        teachers: Networks that give logits.
        data: Training images and labels.
        device: Where to train.
    """

    def __init__(
        self, student: nn.Module, teachers: Sequence[nn.Module], data: TensorDataset, device: torch.device
    ) -> None:
        self._student = student.to(device)
        self.teachers: Sequence[nn.Module] = [teacher.to(device).eval() for teacher in teachers]
        self._loader, self._device = make_loader(data, device), device
        self.optimizer = torch.optim.SGD(student.parameters(), **SGD)  # type: ignore[arg-type]

    def run_epoch(self, watch: Stopwatch) -> None:
        """Train on all images once."""
        self._student.train()
        loss_sum, correct = 0.0, 0.0
        watch.start_epoch()
        for batch in self._loader:
            images, labels = (item.to(self._device) for item in batch)
            watch.start_step()
            logits = self._student(images)
            with torch.no_grad():
                target = torch.stack([teacher(images) for teacher in self.teachers]).mean(0)
            loss = published_loss(logits, target, labels)
            loss_sum += loss.item() * len(labels)
            correct += (logits.argmax(1) == labels).sum().item()
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            watch.stop_step()
        watch.stop_epoch()


class TorchdistillTraining:
    """torchdistill's DistillationBox with its KDLoss, driven as its example of image classification drives it.

    Args:
        student: The network to train.
        teachers: Networks that give logits. torchdistill takes one teacher; of several it gets a module that returns
            the mean of their logits.
        data: Training images and labels.
        device: Where to train.
    """

    def __init__(
        self, student: nn.Module, teachers: Sequence[nn.Module], data: TensorDataset, device: torch.device
    ) -> None:
        from torchdistill.core.distillation import DistillationBox

        teacher = (teachers[0] if len(teachers) == 1 else MeanOfLogits(teachers)).to(device).eval()
        self.teachers: Sequence[nn.Module] = [teacher]
        self._device = device
        self._box = DistillationBox(
            teacher,
            student.to(device),
            {"train": data},
            _torchdistill_config(device),
            device,
            device_ids=None,
            distributed=False,
            lr_factor=1,
        )

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """That of its configuration."""
        optimizer: torch.optim.Optimizer = self._box.optimizer
        return optimizer

    def run_epoch(self, watch: Stopwatch) -> None:
        """Train on all images once."""
        self._box.pre_epoch_process(epoch=0)
        loss_sum = 0.0
        watch.start_epoch()
        for images, labels, extra in self._box.train_data_loader:
            images, labels = images.to(self._device), labels.to(self._device)
            watch.start_step()
            loss = self._box.forward_process(images, labels, extra)
            self._box.post_forward_process(loss=loss)
            loss_sum += loss.item() * len(labels)
            watch.stop_step()
        watch.stop_epoch()
        self._box.post_epoch_process()


class MeanOfLogits(nn.Module):
    """Several networks as one.

    Args:
        members: Networks that give logits.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([member(inputs) for member in self.members]).mean(0)


def published_loss(student: Tensor, teachers: Tensor, labels: Tensor) -> Tensor:
    """The paper's loss of the student's logits and the mean of the teachers', both (N, K), and the labels (N,)."""
    divergence = F.kl_div(
        F.log_softmax(student / TEMPERATURE, dim=1), F.softmax(teachers / TEMPERATURE, dim=1), reduction="batchmean"
    )
    return ALPHA * F.cross_entropy(student, labels) + (1 - ALPHA) * TEMPERATURE**2 * divergence


def make_loader(data: TensorDataset, device: torch.device, batch_size: int = 128) -> DataLoader[tuple[Tensor, ...]]:
    """Shuffled batches of images in memory."""
    return DataLoader(data, batch_size=batch_size, shuffle=True, pin_memory=device.type == "cuda")


def has_torchdistill() -> bool:
    """Whether torchdistill can be imported."""
    try:
        importlib.import_module("torchdistill.core.distillation")
    except ImportError:
        return False
    return True


def _torchdistill_config(device: torch.device, batch_size: int = 128) -> dict[str, Any]:
    """The dictionary that one of torchdistill's YAML files would be; a module path of "." is the whole network."""
    network = {"forward_proc": "forward_batch_only", "sequential": [], "wrapper": None}
    kd_loss = {
        "student_module_path": ".",
        "student_module_io": "output",
        "teacher_module_path": ".",
        "teacher_module_io": "output",
        "temperature": TEMPERATURE,
        "alpha": ALPHA,
        "reduction": "batchmean",
    }
    term = {"criterion": {"key": "KDLoss", "kwargs": kd_loss}, "weight": 1.0}
    return {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": {"batch_size": batch_size, "num_workers": 0, "pin_memory": device.type == "cuda"},
        },
        "teacher": {**network, "requires_grad": False},
        "student": {**network, "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": dict(SGD)},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": term}}},
    }
