"""The paper's students: of all choices and seeds at once, on the same images, interrupted at any time."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.gpu.device_images import DeviceImages
from benchmarks.gpu.paper_teacher import SGD
from benchmarks.gpu.student_stack import NetworkStack, mean_logits, stacked_loss
from lightning_ckptkd import MISelector, SnapshotStore
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.teachers import load_teachers

ALPHA, TEMPERATURE = 0.5, 5.0
ALONE = "no teacher"
SELECTED: dict[str, dict[str, Any]] = {
    "MI": {"num_teachers": 1},
    "top 3": {"num_teachers": 3},
    "soup": {"ensemble": "soup"},
}


@dataclass
class Choices:
    """Who teaches whom.

    Attributes:
        members: All teachers, by name: an epoch, or what a selection made.
        shares: Choice to what each of its teachers counts; empty for no teacher.
    """

    members: dict[str, nn.Module]
    shares: dict[str, dict[str, float]]

    def distinct(self) -> list[dict[str, float]]:
        """Shares without repetition: two choices of the same teachers have the same students."""
        found: list[dict[str, float]] = []
        for share in self.shares.values():
            if share not in found:
                found.append(share)
        return found

    def matrix(self, copies: int, device: str) -> Tensor:
        """What each teacher counts for each student, shape (distinct * copies, teachers)."""
        rows = [[share.get(name, 0.0) for name in self.members] for share in self.distinct()]
        return torch.tensor(rows, device=device).repeat_interleave(copies, 0)

    def by_choice(self, values: Sequence[float], copies: int) -> dict[str, list[float]]:
        """One value a student, in the order of :meth:`matrix`, as those of each choice's copies."""
        places = {name: self.distinct().index(share) * copies for name, share in self.shares.items()}
        return {name: list(values[place : place + copies]) for name, place in places.items()}


def choose(
    harvest: Path,
    make: Callable[[], nn.Module],
    every: int,
    probe: TensorDataset,
    train: TensorDataset,
    device: str,
) -> tuple[Choices, list[str]]:
    """The choices: every n-th snapshot, half-way, the last, those of the selector, and nobody.

    Args:
        harvest: Of the teacher.
        make: Makes a teacher's network.
        every: Of the snapshots that teach alone.
        probe: Images (N, C, H, W) and labels for the selector.
        train: Likewise, of the training data: a soup's BatchNorm takes its statistics of them.
        device: Where it runs.

    Returns:
        The choices, and what was left out, in words.
    """
    words: list[str] = []
    found = Choices({}, {ALONE: {}})
    snapshots = SnapshotStore.open(harvest).snapshots
    single = {f"epoch {snapshot.epoch}": [snapshot.epoch] for snapshot in snapshots[every - 1 :: every]}
    choices: dict[str, str | list[int]] = {**single, "half": "half", "full": "full"}
    for name, choice in choices.items():
        _add(found, name, harvest, make, choice)
    for name, options in SELECTED.items():
        try:
            selector = MISelector(probe_size=len(probe), **options)
        except ArgumentError as error:
            words.append(f"{name}: left out, since MISelector refuses it: {error}")
            continue
        loaders = DataLoader(probe, 250), DataLoader(train, 250)
        with contextlib.redirect_stdout(io.StringIO()):
            selector.select(harvest, make(), *loaders, device=device, progress=False)
        if not _add(found, name, harvest, make, "selected") and name == "soup":
            words.append(f"soup: MISelector chose none, but the snapshots of epochs {', '.join(found.shares[name])}")
    return found, words


def _add(found: Choices, name: str, harvest: Path, make: Callable[[], nn.Module], choice: str | list[int]) -> bool:
    """Whether a soup teaches, which is a network of its own."""
    loaded = load_teachers({str(harvest): make()}, choice)
    is_soup = any(hasattr(snapshot, "members") for snapshot in loaded.snapshots)
    names = [name] if is_soup else [str(snapshot.epoch) for snapshot in loaded.snapshots]
    found.members.update(zip(names, loaded.ensemble.members, strict=True))
    found.shares[name] = {member: 1 / len(names) for member in names}
    return is_soup


def train_students(
    choices: Choices,
    make: Callable[[], nn.Module],
    images: DeviceImages,
    path: Path,
    device: str,
    left: Callable[[], float],
    *,
    copies: int,
    epochs: int,
    epoch_images: int,
    batch_size: int,
    seed: int,
) -> tuple[NetworkStack | None, str]:
    """Train ``copies`` students of each choice; copies of one number begin alike, and all see the same images.

    Args:
        choices: Who teaches whom.
        make: Makes a student's network.
        images: Training images.
        path: Where what was interrupted is kept.
        device: ``cuda`` or ``cpu``.
        left: Gives the seconds that are left.
        copies: Students of each choice.
        epochs: Of training.
        epoch_images: Images of an epoch.
        batch_size: Images a batch.
        seed: Of weights and draws.

    Returns:
        The students, in the order of ``Choices.matrix``, or None where time was over; and how they and their teachers
        ran, in words.
    """
    begins = []
    for copy in range(copies):
        torch.manual_seed(1000 * seed + copy)
        begins.append(make())
    networks = [begins[copy] for _ in choices.distinct() for copy in range(copies)]
    teachers = NetworkStack(list(choices.members.values()), device, bf16=True)
    students = NetworkStack(networks, device, bf16=True)
    shares = choices.matrix(copies, device)
    taught = shares.sum(1) > 0
    optimizer = torch.optim.SGD(students.parameters.values(), **SGD)  # type: ignore[arg-type]
    scheduler = CosineAnnealingLR(optimizer, epochs)
    first = 0
    if path.exists():
        saved = torch.load(path, map_location=device, weights_only=True)
        students.load(saved["students"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        first = saved["epoch"]
    word = _take_fastest_ways(teachers, students, networks, images, batch_size, device)
    for epoch in range(first, epochs):
        if left() < 0:
            state = {"students": students.state(), "optimizer": optimizer.state_dict(), "epoch": epoch}
            torch.save({**state, "scheduler": scheduler.state_dict()}, path)
            return None, word
        for batch, which in enumerate(images.epoch(epoch, seed, epoch_images, batch_size)):
            pixels = images.augmented(which, seed, epoch, batch)
            with torch.no_grad():
                target = mean_logits(teachers(pixels, train=False), shares)
            logits = students(pixels, train=True)
            losses = stacked_loss(logits, target, taught, images.labels[which], TEMPERATURE, ALPHA)
            optimizer.zero_grad()
            losses.sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        scheduler.step()
    return students, word


def _take_fastest_ways(
    teachers: NetworkStack,
    students: NetworkStack,
    networks: list[nn.Module],
    images: DeviceImages,
    batch_size: int,
    device: str,
) -> str:
    pixels = images.plain(torch.arange(min(batch_size, len(images)), device=device))
    trial = NetworkStack(networks, device, bf16=True)  # whose statistics may change

    def step() -> None:
        trial(pixels, train=True).sum().backward()  # type: ignore[no-untyped-call]

    repeats = 1 if device == "cpu" else 3
    with torch.no_grad():
        found = {"teachers": teachers.take_fastest_way(lambda: teachers(pixels, train=False), repeats)}
    found["students"] = trial.take_fastest_way(step, repeats)
    students.way = trial.way
    parts = [
        f"{whose} {', '.join(f'{way} {1e3 * seconds:.1f} ms' for way, seconds in ways.items())}"
        for whose, ways in found.items()
    ]
    return f"{len(teachers)} teachers, {len(students)} students; {'; '.join(parts)} a batch"
