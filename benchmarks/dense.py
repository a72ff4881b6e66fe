"""What distilling a dense task costs beside a loop written by hand: ``python -m benchmarks.dense``.

Images of 64 x 64 pixels, 21 classes, a tenth of the pixels without a label, batches of 8; one teacher and three
(convolutional networks of 64 channels) and a student of 32. Both sides run the same teachers in float32 as they are,
the same losses and optimiser, on one thread; rounds of steps are taken in turn, and CPU time is compared within one
round. ``size``: what the cache takes on disk against two bytes a logit.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
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

from benchmarks.rows import Row, make_table
from lightning_ckptkd import CheckpointHarvester, DistillationModule, SnapshotStore, TeacherCache

RESULTS = Path(__file__).parent / "results" / "dense.json"
SIDE, CLASSES, BATCH_SIZE, IGNORED = 64, 21, 8, 255
STEPS, TEMPERATURE, ALPHA = 8, 5.0, 0.5
STEP_TARGET, SIZE_TARGET = 1.10, 1.05


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


def by_hand(teachers: list[nn.Module], batches: DataLoader[Any]) -> list[float]:
    """CPU seconds of each step of the loop that people write."""
    student = network(32).train()
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    seconds = []
    for images, labels in batches:
        start = time.process_time()
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
        loss = ALPHA * F.cross_entropy(logits, labels, ignore_index=IGNORED) + (1 - ALPHA) * soft
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.process_time() - start)
    return seconds


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
    found: dict[str, Any] = {"steps": STEPS, "rounds": rounds, "torch": torch.__version__, "seconds": {}}
    for choice in ([2], [0, 1, 2]):
        members = []
        for place in choice:
            member = Teacher().eval().requires_grad_(False)
            member.load_state_dict(store.load(store.snapshots[place]))
            members.append(member)
        sides: dict[str, list[float]] = {"hand": [], "module": []}
        for turn in range(rounds + 1):
            taken = {"hand": by_hand(list(members), batches), "module": by_module(root, harvest, choice, batches)}
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
    for number, sides in found["seconds"].items():
        ratios = sorted(ours / theirs for ours, theirs in zip(sides["module"], sides["hand"], strict=True))
        ours, theirs = (1000 * statistics.median(sides[side]) for side in ("module", "hand"))
        note = f"{ours:.0f} against {theirs:.0f} ms of CPU; {len(ratios)} rounds, {ratios[0]:.3f} to {ratios[-1]:.3f}"
        what = f"a distillation step / the loop by hand, {number} teacher{'s' if number != '1' else ''}"
        lines.append(Row(what, statistics.median(ratios), STEP_TARGET, note))
    size, logits = found["cache"]["bytes"], found["cache"]["logits"]
    note = f"{size / 2**20:.1f} MiB, all files of the folder"
    lines.append(Row("a cache of 3 teachers / its logits in fp16", size / (2 * logits), SIZE_TARGET, note))
    return lines


def main() -> None:
    """Measure, keep the raw numbers, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each side")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON of the raw numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.rounds)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(make_table(rows(found)))


if __name__ == "__main__":
    main()
