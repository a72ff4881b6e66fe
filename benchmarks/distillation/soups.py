"""What a soup costs: ``python -m benchmarks.distillation.soups``, as ratios that are measured in one run.

``epochs``: an epoch of ten steps whose teacher is the mean of four snapshots' weights, over one with these four as an
ensemble and over one with a single teacher, all live, each after an epoch that is not counted. ``making``: a greedy
soup of six candidates, over the bare forward passes that it needs, which are those of the tried ones over the probe
samples and over those for BatchNorm's statistics. Processor time of one thread, in turn; Python's full collections of
garbage are made before. Teachers are a ResNet-14 of width 16 that was trained for some steps, with noise of its own on
each snapshot; the student is a ResNet-8 of width 8, on images of 28 x 28 pixels.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.distillation.epochs import LastEpoch
from benchmarks.distillation.peers import (
    BATCH_SIZE,
    student_network,
    teacher_network,
    training_images,
    validation_loader,
)
from benchmarks.harvest.machine import describe_machine, say, silence_lightning
from benchmarks.harvest.trainings import quiet_trainer
from benchmarks.rows import Row, make_table
from lightning_ckptkd import DistillationModule, MISelector, SnapshotStore, Soup
from lightning_ckptkd.selecting import soup_builder
from lightning_ckptkd.snapshots.averaging import WeightMean
from lightning_ckptkd.teachers.remembered import CACHE_VARIABLE

RESULTS = Path(__file__).parents[1] / "results" / "soups.json"
STEPS, TRAINING_STEPS, SNAPSHOTS, MEMBERS, STATISTICS, NOISE = 10, 30, 6, 4, 1024, 0.1
SOUP, ENSEMBLE, SINGLE = "a soup of four", "these four as an ensemble", "a single teacher"


def main() -> None:
    """Measure, write all numbers, print what belongs into docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    options = parser.parse_args()
    silence_lightning()
    warnings.simplefilter("ignore")  # of Lightning, about workers and loggers that a benchmark does without
    torch.set_num_threads(1)
    os.environ[CACHE_VARIABLE] = ""
    with tempfile.TemporaryDirectory() as name:
        harvest = make_harvest(Path(name) / "harvest")
        epochs = measure_epochs(harvest, Path(name), options.rounds)
        making = [measure_making(harvest) for _ in range(options.rounds)]
    table = make_table(table_rows(epochs, making))
    results = {
        "command": "python -m benchmarks.distillation.soups " + " ".join(sys.argv[1:]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(torch.device("cpu"), Path.cwd()),
        "epochs": epochs,
        "making": making,
        "table": table,
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(table)


def make_harvest(folder: Path) -> Path:
    """Snapshots around one trained network."""
    torch.manual_seed(0)
    network = teacher_network()
    images, labels = training_images().tensors
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for places in torch.randint(len(labels), (TRAINING_STEPS, BATCH_SIZE)):
        optimizer.zero_grad()
        F.cross_entropy(network(images[places]), labels[places]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with SnapshotStore.create(folder, "run", {}) as store:
        for epoch in range(SNAPSHOTS):
            store.commit(noisy(network), epoch=epoch, global_step=epoch + 1)
    return folder


def noisy(network: nn.Module) -> dict[str, Tensor]:
    """Weights with noise on each convolution's and the last layer's, and on what BatchNorm has seen."""
    weights = dict(network.state_dict())
    for name, value in weights.items():
        if value.dim() > 1:
            weights[name] = value + NOISE * value.std() * torch.randn_like(value)
        elif name.endswith("running_var"):
            weights[name] = value * (1 + NOISE * torch.rand_like(value))
        elif name.endswith("running_mean"):  # by which it is told that statistics have to be estimated anew
            weights[name] = value + NOISE * value.std() * torch.randn_like(value)
    return weights


def select(harvest: Path, soup: Soup) -> dict[str, Any]:
    """Choose by the soup; what the choice says of it."""
    found = MISelector(ensemble=soup, probe_size=500).select(
        harvest, teacher_network(), validation_loader(), train=training_loader(), progress=False
    )
    return found.soup


def training_loader() -> DataLoader[Any]:
    """Ten batches."""
    return DataLoader(training_images(BATCH_SIZE * STEPS), BATCH_SIZE, shuffle=True)


def measure_making(harvest: Path) -> dict[str, Any]:
    """Processor seconds of one greedy soup and of the forward passes, how many were tried and read."""
    say("making a soup ...")
    known: dict[str, Any] = {"reads": [], "batch_norm": 0.0}
    passes, estimate = list[int](), soup_builder.estimate_statistics
    make, read = soup_builder.SoupBuilder.make, SnapshotStore._read_verified

    def timed(builder: Any, *args: Any) -> Any:
        SnapshotStore._read_verified = counted  # type: ignore[method-assign, assignment]
        gc.collect()
        gc.freeze()
        before = time.process_time()
        made = make(builder, *args)
        known["seconds"] = time.process_time() - before
        SnapshotStore._read_verified = read  # type: ignore[method-assign, assignment]
        return made

    def estimated(*args: Any) -> None:
        passes.append(len(args[2]))
        before = time.process_time()
        estimate(*args)
        known["batch_norm"] += time.process_time() - before

    def counted(store: SnapshotStore, snapshot: Any) -> Any:
        known["reads"].append(snapshot.file)
        return read(store, snapshot)

    soup_builder.estimate_statistics = estimated
    soup_builder.SoupBuilder.make = timed  # type: ignore[method-assign, assignment]
    try:
        record = select(harvest, Soup(batch_norm_samples=STATISTICS))
        known |= {"tried": len(record["steps"]), "passes": len(passes) // len(record["steps"])}
    finally:
        soup_builder.estimate_statistics = estimate
        soup_builder.SoupBuilder.make = make  # type: ignore[method-assign, assignment]
    if known["passes"] != 1:
        raise RuntimeError("statistics were not estimated once for each that was tried")
    network = teacher_network().eval()
    probe, training = next(iter(DataLoader(validation_loader().dataset, 500)))[0], training_images(STATISTICS)
    assert isinstance(training, TensorDataset)
    before = time.process_time()
    with torch.no_grad():
        for _ in range(known["tried"]):
            for images in (*probe.split(BATCH_SIZE * 2), *training.tensors[0].split(BATCH_SIZE * 2)):
                network(images)
    known["bare"] = time.process_time() - before
    return known


def measure_epochs(harvest: Path, folder: Path, rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each epoch, in turn, after one that is not counted."""
    with SnapshotStore.open(harvest) as store:
        four = store.snapshots[:MEMBERS]
        mean = WeightMean(store.load(four[0]), four[0].file)
        for one in four[1:]:
            mean.add(store.load(one), one.file)
    with SnapshotStore.create(folder / "soup", "run", {}) as soup:
        soup.commit(mean.mean(), epoch=0, global_step=1)
    epochs = [one.epoch for one in four]
    chosen = {SOUP: (folder / "soup", [0]), ENSEMBLE: (harvest, epochs), SINGLE: (harvest, epochs[:1])}
    modules = {
        way: DistillationModule(student_network(), teacher_network(), where, choice=choice)
        for way, (where, choice) in chosen.items()
    }
    seconds: dict[str, list[float]] = {way: [] for way in modules}
    for number in range(rounds + 1):
        say(f"epochs: round {number} of {rounds} ...")
        for way in list(modules) if number % 2 else list(reversed(modules)):
            clock = LastEpoch()
            quiet_trainer(torch.device("cpu"), folder, [clock], 1).fit(modules[way], training_loader())
            if number:
                seconds[way].append(clock.epoch)
    return seconds


def table_rows(epochs: dict[str, list[float]], making: list[dict[str, Any]]) -> list[Row]:
    """The median of the rounds' ratios."""

    def row(what: str, above: list[float], below: list[float], target: float, note: str = "") -> Row:
        ratios = [a / b for a, b in zip(above, below, strict=True)]
        medians = f"{statistics.median(above):.2f} s against {statistics.median(below):.2f}"
        details = f"{min(ratios):.3f} to {max(ratios):.3f}; {medians}{note}"
        return Row(what, statistics.median(ratios), target, details)

    def of(name: str) -> list[float]:
        return [one[name] for one in making]

    tried, reads = making[0]["tried"], max(max(map(one["reads"].count, one["reads"])) for one in making)
    return [
        row(f"epoch with {SOUP} / with {ENSEMBLE}", epochs[SOUP], epochs[ENSEMBLE], 0.4),
        row(f"epoch with {SOUP} / with {SINGLE}", epochs[SOUP], epochs[SINGLE], 1.05),
        row(
            "making a greedy soup / bare forward passes of those tried",
            of("seconds"),
            of("bare"),
            1.0,
            f", of which {statistics.median(of('batch_norm')):.2f} s of making are BatchNorm's passes; {tried} tried "
            f"over 500 and {STATISTICS} samples; each file is read at most {reads} time{'s' * (reads != 1)}",
        ),
    ]


if __name__ == "__main__":
    main()
