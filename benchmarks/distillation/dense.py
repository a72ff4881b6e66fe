"""What distilling a dense task costs beside a loop written by hand: ``python -m benchmarks.distillation.dense``.

Images of 64 x 64 pixels, 21 classes, a tenth of the pixels without a label, batches of 8; one teacher and three
(convolutional networks of 64 channels) and a student of 32. All sides run the same teachers in float32 as they are,
the same losses and optimiser, on one thread; rounds of steps are taken in turn, and CPU time is compared within one
round. Beside the loop stands the same loss in a LightningModule of one's own. Tensors of this size are pages of the
system's that glibc hands back and asks for again, more or less often by what else is alive, so everything is measured
twice: with glibc as it is, and where it keeps them (``KEPT``). ``size``: what the cache takes on disk against two bytes
a logit.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.builds.against import KEPT
from benchmarks.rows import Row, make_table
from lightning_ckptkd import CheckpointHarvester, DistillationModule, SnapshotStore, TeacherCache

RESULTS = Path(__file__).parents[1] / "results" / "dense.json"
SIDE, CLASSES, BATCH_SIZE, IGNORED = 64, 21, 8, 255
STEPS, TEMPERATURE, ALPHA = 8, 5.0, 0.5
STEP_TARGET, SIZE_TARGET = 1.10, 1.05
AS_IT_IS, KEEPING = "glibc as it is", "memory kept"


def network(width: int) -> nn.Module:
    """Logits (N, 21, 64, 64) of images (N, 3, 64, 64): five convolutions with BatchNorm."""
    layers: list[nn.Module] = []
    channels = 3
    for _ in range(5):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Conv2d(width, CLASSES, 1))


class Teacher(LightningModule):
    """A segmentation network and its training."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network(64)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 21, 64, 64)."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy over the pixels that have a label."""
        return F.cross_entropy(self(batch[0]), batch[1], ignore_index=IGNORED)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(self.parameters(), 0.01)


class Clock(Callback):
    """CPU seconds of each step of a Trainer: forward passes, loss, backward pass and optimiser."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock."""
        self._start = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop it."""
        self.seconds.append(time.process_time() - self._start)


def data(batches: int) -> TensorDataset:
    """Random images whose labels are those of their colours, so that networks learn something."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batches * BATCH_SIZE, 3, SIDE, SIDE, generator=generator)
    labels = (images.mean(1) * CLASSES).long().clamp_max(CLASSES - 1)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = IGNORED
    return TensorDataset(images, labels)


def trainer(root: Path, *callbacks: Callback, epochs: int = 1) -> Trainer:
    """A quiet one on the CPU."""
    return Trainer(
        default_root_dir=root,
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=list(callbacks),
    )


def loss_of(student: nn.Module, teachers: list[nn.Module], images: Tensor, labels: Tensor) -> Tensor:
    """What people write."""
    with torch.no_grad():
        taught = torch.stack([teacher(images) for teacher in teachers]).mean(0)
    logits = student(images)
    valid = labels != IGNORED
    divergence = F.kl_div(
        F.log_softmax(logits / TEMPERATURE, 1),
        F.log_softmax(taught / TEMPERATURE, 1),
        reduction="none",
        log_target=True,
    ).sum(1)
    soft = TEMPERATURE**2 * (divergence * valid).sum() / valid.sum()
    return ALPHA * F.cross_entropy(logits, labels, ignore_index=IGNORED) + (1 - ALPHA) * soft


def optimizer_of(student: nn.Module) -> torch.optim.Optimizer:
    """The package's default."""
    return torch.optim.SGD(student.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)


class ByHand(LightningModule):
    """The same loss in a module of one's own."""

    def __init__(self, teachers: list[nn.Module]) -> None:
        super().__init__()
        self.student, self._teachers = network(32), teachers

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss, logged."""
        loss = loss_of(self.student, self._teachers, *batch)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD."""
        return optimizer_of(self.student)


def by_hand(teachers: list[nn.Module], batches: DataLoader[Any]) -> list[float]:
    """CPU seconds of each step of the loop that people write."""
    student = network(32).train()
    optimizer = optimizer_of(student)
    seconds = []
    for images, labels in batches:
        start = time.process_time()
        loss = loss_of(student, teachers, images, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.process_time() - start)
    return seconds


def by_lightning(root: Path, teachers: list[nn.Module], batches: DataLoader[Any]) -> list[float]:
    """CPU seconds of each step of the same loss under Lightning."""
    clock = Clock()
    trainer(root, clock).fit(ByHand(teachers), batches)
    return clock.seconds


def by_module(root: Path, harvest: Path, choice: list[int], batches: DataLoader[Any], **options: Any) -> list[float]:
    """CPU seconds of each step of a DistillationModule."""
    clock = Clock()
    settings = {"alpha": ALPHA, "temperature": TEMPERATURE, "acceleration": "none", "ignore_index": IGNORED}
    module = DistillationModule(network(32), Teacher(), harvest, choice, **settings, **options)
    trainer(root, clock).fit(module, batches)
    return clock.seconds


def measure(root: Path, rounds: int) -> dict[str, Any]:
    """Medians of steps by round, and bytes of a cache."""
    batches = DataLoader(data(STEPS), BATCH_SIZE)
    harvest = root / "harvest"
    torch.manual_seed(0)
    trainer(root, CheckpointHarvester(harvest), epochs=3).fit(Teacher(), DataLoader(data(2), BATCH_SIZE))
    store = SnapshotStore.open(harvest)
    found: dict[str, Any] = {"seconds": {}}
    for choice in ([2], [0, 1, 2]):
        members = []
        for place in choice:
            member = Teacher().eval().requires_grad_(False)
            member.load_state_dict(store.load(store.snapshots[place]))
            members.append(member)
        sides: dict[str, list[float]] = {"hand": [], "lightning": [], "module": []}
        for turn in range(rounds + 1):
            taken = {
                "hand": by_hand(members, batches),
                "lightning": by_lightning(root, members, batches),
                "module": by_module(root, harvest, choice, batches),
            }
            for side, seconds in taken.items():
                if turn:  # the first warms up
                    sides[side].append(statistics.median(seconds[1:]))
        found["seconds"][str(len(choice))] = sides
    cache = TeacherCache(root / "cache")
    by_module(root, harvest, [0, 1, 2], batches, cache=cache)
    found["cache"] = {
        "bytes": sum(path.stat().st_size for path in (root / "cache").rglob("*") if path.is_file()),
        "logits": 3 * STEPS * BATCH_SIZE * CLASSES * SIDE * SIDE,
    }
    return found


def rows(found: dict[str, Any]) -> list[Row]:
    """Ratios against their targets."""
    lines = []
    for memory, part in found["parts"].items():
        for number, sides in part["seconds"].items():
            ms = {side: 1000 * statistics.median(seconds) for side, seconds in sides.items()}
            for theirs, words in (("hand", "the loop by hand"), ("lightning", "a LightningModule by hand")):
                ratios = sorted(a / b for a, b in zip(sides["module"], sides[theirs], strict=True))
                spread = f"{len(ratios)} rounds, {ratios[0]:.3f} to {ratios[-1]:.3f}"
                note = f"{ms['module']:.0f} against {ms[theirs]:.0f} ms of CPU; {spread}"
                teachers = f"{number} teacher{'s' if number != '1' else ''}"
                what = f"a distillation step / {words}, {teachers}, {memory}"
                target = STEP_TARGET if theirs == "hand" else None
                lines.append(Row(what, statistics.median(ratios), target, note))
    size, logits = found["parts"][AS_IT_IS]["cache"].values()
    note = f"{size / 2**20:.1f} MiB, all files of the folder"
    lines.append(Row("a cache of 3 teachers / its logits in fp16", size / (2 * logits), SIZE_TARGET, note))
    return lines


def main() -> None:
    """Measure in a process for each way of keeping memory, keep the raw numbers, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each side")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON of the raw numbers")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.rounds)
        return
    found: dict[str, Any] = {"steps": STEPS, "rounds": options.rounds, "torch": torch.__version__, "parts": {}}
    for memory, settings in ((AS_IT_IS, {}), (KEEPING, KEPT)):
        command = [sys.executable, "-m", "benchmarks.distillation.dense", "--worker", "--rounds", str(options.rounds)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
        answer = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        found["parts"][memory] = json.loads(answer.splitlines()[-1])
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(make_table(rows(found)))


def work(rounds: int) -> None:
    """One process's part: prints what :func:`measure` finds."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), rounds)))


if __name__ == "__main__":
    main()
