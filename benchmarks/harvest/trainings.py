"""Trainings that idle or work, with and without a harvest."""

from __future__ import annotations

import gc
import itertools
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models import resnet50
from typing_extensions import override

from benchmarks.harvest.clocks import HookClock, UsageClock, WriterClock
from benchmarks.harvest.measured import Options
from lightning_ckptkd import CheckpointHarvester
from lightning_ckptkd.snapshots import MANIFEST_NAME

BATCHES = 4  # in an epoch of a module that idles


class Idler(LightningModule):
    """Trains one number, and carries a network whose weights are there to be harvested."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.knob = nn.Parameter(torch.ones(()))

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = (self.knob * batch).square().mean()
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.knob], lr=1e-3)


class Worker(LightningModule):
    """Trains a classifier in earnest, and notes when each step began."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.starts: list[float] = []

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.starts.append(time.perf_counter())
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class GatedCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that saves at the end of some epochs only; the rest is Lightning's."""

    def __init__(self, dirpath: Path, epochs: Sequence[int], save_weights_only: bool) -> None:
        super().__init__(dirpath, save_top_k=-1, save_weights_only=save_weights_only, every_n_epochs=1)
        self._epochs = frozenset(epochs)

    @property
    @override
    def state_key(self) -> str:
        return f"{super().state_key}, weights only: {self.save_weights_only}"

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch in self._epochs:
            super().on_train_epoch_end(trainer, pl_module)


class Pause(Callback):
    """Before each epoch: waits until the harvest is written, as a real epoch would last, and deletes checkpoints."""

    def __init__(self, harvest: Path, epochs: Sequence[int], checkpoints: Path, settle: float) -> None:
        self._harvest, self._settle = harvest, settle
        self._epochs = frozenset(epochs)
        self._checkpoints = checkpoints

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx > 0:
            return
        if trainer.current_epoch - 1 in self._epochs:
            wait_until_written(self._harvest, trainer.global_step)
        for checkpoint in self._checkpoints.glob("*.ckpt"):
            checkpoint.unlink()
        time.sleep(self._settle)


def wait_until_written(harvest: Path, global_step: int, limit: float = 60.0) -> None:
    """Wait until the harvest's manifest names a step."""
    manifest = harvest / MANIFEST_NAME
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if manifest.exists():
            snapshots = json.loads(manifest.read_text(encoding="utf-8"))["snapshots"]
            if any(snapshot["global_step"] == global_step for snapshot in snapshots):
                return
        time.sleep(0.01)
    raise TimeoutError(f"The snapshot at step {global_step} was not written within {limit:g} s.")


def quiet_trainer(
    device: torch.device, folder: Path, callbacks: Sequence[Callback], max_epochs: int, max_steps: int = -1
) -> Trainer:
    """A Trainer on one device that says and stores nothing by itself."""
    return Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=max_epochs,
        max_steps=max_steps,
    )


def idle_data(steps: int = BATCHES) -> DataLoader[Tensor]:
    """One epoch for an Idler."""
    return DataLoader([torch.ones(1)] * steps, batch_size=None)  # type: ignore[arg-type]


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of a module's weights."""
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())


@dataclass(frozen=True)
class Training:
    """One training run.

    Attributes:
        harvested: Whether it was harvested.
        seconds: Wall time of ``Trainer.fit``.
        process_seconds: CPU time of the process meanwhile.
        others_seconds: CPU time of all else on the machine meanwhile, the kernel's writing of our files included.
        intervals: Seconds between steps at which there are snapshots in a run with all of them.
        hooks: Seconds in each hook of the harvester.
        writer_seconds: CPU time of the harvester's thread.
    """

    harvested: bool
    seconds: float
    process_seconds: float
    others_seconds: float
    intervals: list[float]
    hooks: dict[str, float]
    writer_seconds: float


def step_seconds(options: Options) -> float:
    """How long a step takes: the fastest of three runs of three seconds or more; also the warm-up."""
    steps, seconds = 2, [0.0]
    while seconds[0] < 3:
        steps *= 2
        seconds = [train(options, steps, steps, harvested=False).seconds]
    seconds += [train(options, steps, steps, harvested=False).seconds for _ in range(2)]
    return min(seconds) / steps


def train(options: Options, steps: int, between: int, harvested: bool, every: int = 1) -> Training:
    """Train a ResNet-50 for some steps, always the same ones; a snapshot at every n-th interval's start."""
    gc.collect()
    torch.manual_seed(0)
    folder = options.folder / "overhead"
    module = Worker(resnet50(weights=None))
    harvester = CheckpointHarvester(folder, every_n_train_steps=every * between)
    clock, writer = HookClock(harvester), WriterClock()
    callbacks = [writer, harvester] if harvested else []
    trainer = quiet_trainer(options.device, options.folder, callbacks, max_epochs=1, max_steps=steps)
    data = work_data(options.device, steps)
    usage = UsageClock()
    trainer.fit(module, data)
    if options.device.type == "cuda":
        torch.cuda.synchronize(options.device)
    seconds, process_seconds, others_seconds = usage.read()
    marks = module.starts[between - 1 :: between]
    intervals = [stop - start for start, stop in itertools.pairwise(marks)]
    shutil.rmtree(folder, ignore_errors=True)
    hooks = clock.by_hook()
    return Training(harvested, seconds, process_seconds, others_seconds, intervals, hooks, writer.seconds)


def work_data(device: torch.device, steps: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """The same batch again and again: what is measured is the training, not the reading."""
    count, size = (64, 224) if device.type == "cuda" else (4, 64)
    batch = torch.randn(count, 3, size, size, device=device), torch.randint(1000, (count,), device=device)
    return DataLoader([batch] * steps, batch_size=None)  # type: ignore[arg-type]
