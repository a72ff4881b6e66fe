"""The paper's teacher: trained by Lightning on images that stay on the device, harvested, interrupted at any time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader
from typing_extensions import override

from benchmarks.gpu.device_images import DeviceImages
from lightning_ckptkd import CheckpointHarvester, SnapshotStore

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
SAVE_EVERY = 20  # epochs


class TeacherModule(LightningModule):
    """Trains a network by cross-entropy, the learning rate to a tenth after each 30% of training, as the paper does.

    Args:
        network: The teacher.
        images: Training images.
        epochs: Of training.
        epoch_images: Images of an epoch, drawn anew each time.
        batch_size: Images a batch.
        seed: What the draws depend on, together with epoch and batch.
    """

    def __init__(
        self, network: nn.Module, images: DeviceImages, epochs: int, epoch_images: int, batch_size: int, seed: int
    ) -> None:
        super().__init__()
        self.network = network
        self._images, self._epochs, self._seed = images, epochs, seed
        self._epoch_images, self._batch_size = epoch_images, batch_size
        self._batches: tuple[Tensor, ...] = ()

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        steps = min(self._epoch_images, len(self._images)) // self._batch_size
        return DataLoader(range(steps), batch_size=None)  # type: ignore[arg-type]  # the images are drawn on the device

    @override
    def on_train_epoch_start(self) -> None:
        self._batches = self._images.epoch(self.current_epoch, self._seed, self._epoch_images, self._batch_size)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        which = self._batches[batch_idx]
        images = self._images.augmented(which, self._seed, self.current_epoch, batch_idx)
        return F.cross_entropy(self.network(images), self._images.labels[which])

    @override
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.network.parameters(), **SGD)  # type: ignore[arg-type]
        return [optimizer], [StepLR(optimizer, max(1, self._epochs * 3 // 10), gamma=0.1)]


class UntilDeadline(Callback):
    """Ends training when time is over, with a checkpoint to go on from.

    Args:
        left: Gives the seconds that are left.
        path: The checkpoint, written each 20 epochs too.
    """

    def __init__(self, left: Callable[[], float], path: Path) -> None:
        self._left, self._path = left, path

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        out_of_time = self._left() < 0
        if out_of_time or (trainer.current_epoch + 1) % SAVE_EVERY == 0:
            trainer.save_checkpoint(self._path)
        trainer.should_stop = trainer.should_stop or out_of_time


def train_teacher(
    make: Callable[[], nn.Module],
    images: DeviceImages,
    folder: Path,
    device: str,
    left: Callable[[], float],
    *,
    epochs: int,
    every: int,
    epoch_images: int,
    batch_size: int,
    seed: int,
) -> str | None:
    """Train and harvest in bf16-mixed, channels last and compiled; what was interrupted goes on.

    Args:
        make: Makes the network.
        images: Training images.
        folder: For ``harvest`` and the checkpoint.
        device: ``cuda`` or ``cpu``.
        left: Gives the seconds that are left.
        epochs: Of training.
        every: Epochs from one snapshot to the next.
        epoch_images: Images of an epoch.
        batch_size: Images a batch.
        seed: Of weights and draws.

    Returns:
        How it was compiled; None where time was over before the last epoch.
    """
    harvest, checkpoint = folder / "harvest", folder / "teacher.ckpt"
    if is_trained(harvest, epochs):
        return "trained before"
    seed_everything(seed, verbose=False)
    network = make().to(device).to(memory_format=torch.channels_last)
    word = compile_network(network, images.plain(torch.arange(min(batch_size, len(images)), device=device)))
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[
            CheckpointHarvester(harvest, submodule="network", every_n_epochs=every, on_error="raise"),
            UntilDeadline(left, checkpoint),
        ],
    )
    module = TeacherModule(network, images, epochs, epoch_images, batch_size, seed)
    trainer.fit(module, ckpt_path=checkpoint if checkpoint.exists() else None)
    return word if is_trained(harvest, epochs) else None


def is_trained(harvest: Path, epochs: int) -> bool:
    """Whether the last epoch's snapshot is there."""
    if not (harvest / "manifest.json").exists():
        return False
    return any(snapshot.epoch == epochs - 1 for snapshot in SnapshotStore.open(harvest).snapshots)


def compile_network(network: nn.Module, images: Tensor) -> str:
    """Compile a network in place, if a step with it works; its weights and statistics stay as they are.

    Args:
        network: On the device of the images.
        images: Of the shape of training batches.

    Returns:
        What came of it, in words. On the CPU the compiler only traces, which is what can fail there too.
    """
    before = copy.deepcopy(network.state_dict())
    backend = "inductor" if images.device.type == "cuda" else "eager"
    try:
        network.compile(dynamic=False, backend=backend)
        # cache_enabled as Lightning has it: else the training would compile anew
        with torch.autocast(images.device.type, torch.bfloat16, cache_enabled=False):
            network(images).float().sum().backward()
        word = f"compiled by {backend}"
    except Exception as error:  # of whatever kind: without a compiler the paper's question is still there
        network._compiled_call_impl = None
        word = f"not compiled, {type(error).__name__}: {str(error)[:300]}"
    network.zero_grad()
    network.load_state_dict(before)
    return word
