"""What teachers cost a student: ``python -m benchmarks.distillation``, as ratios that are measured in one run.

Four teachers (ResNet-14 of width 16) and a student (ResNet-8 of width 8) on batches of 128 grey images of 28 x 28
pixels; ``--device cuda`` runs the first three parts on a GPU. Give it the machine for itself.

``uncached``: the teachers' forward passes against the plain loop of published code: each teacher in turn, in float32,
without gradients. ``epoch``: training on cached logits against cross-entropy training of the same student on the same
loader, with random crops and flips, both by a Trainer. ``fill``: filling the cache against a bare pass of the same
accelerated teachers over as many augmented images. ``memory``: what a process of each training takes at most.
``accuracy`` and ``views``: see :mod:`benchmarks.distillation.accuracy`; they take hours and need ``--data FOLDER``,
in which ``FashionMNIST/raw`` is.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from typing_extensions import override

from benchmarks.distillation.accuracy import Study, accuracy_rows, views_rows
from benchmarks.rows import Row, make_table
from lightning_ckptkd import DistillationModule, SnapshotStore, TeacherCache
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.reading import BatchReader
from lightning_ckptkd.teachers import Acceleration, CacheKey, LogitCache, TeacherEnsemble, Views, calibrate, fill
from lightning_ckptkd.zoo import CIFARResNet, Classifier
from lightning_ckptkd.zoo.images import crop_and_flip, to_tensor

RESULTS = Path(__file__).parents[1] / "results" / "distillation.json"
COSTS, STUDIES = ("uncached", "epoch", "fill", "memory"), ("accuracy", "views")
TEACHERS, VIEWS, BATCH_SIZE, SIDE, CLASSES = 4, 4, 128, 28, 10
EPOCH_BATCHES, FILL_BATCHES = 20, 8
WAYS = {"exact": Acceleration(), "compiled": Acceleration("compile"), "bf16": Acceleration(bf16=True)}
WAY_TARGETS = {"compiled": 0.65, "exact": 0.65, "bf16": 0.5}
EPOCH_TARGET, FILL_TARGET, MEMORY_TARGET = 1.05, 1.1, 1.1
TRAININGS = ("plain", "cached", "filling")


def main() -> None:
    """Measure what is asked for, or be one process of a measurement."""
    options = arguments()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    if options.process is not None:
        print(json.dumps(peak_memory(options.process, Path(options.folder), options.workers)))
        return
    device = torch.device(options.device)
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}

    def write() -> None:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")

    for part in options.parts:
        if part in STUDIES:
            study = Study(options.data, options.harvest, options.teachers, results.setdefault("students", {}), write)
            rows = (accuracy_rows if part == "accuracy" else views_rows)(study)
        else:
            with tempfile.TemporaryDirectory() as folder:
                measure = {"uncached": uncached, "epoch": epoch, "fill": filling, "memory": memory}[part]
                rows = measure(Path(folder), device, options.rounds, options.workers)
        results.setdefault(part, {})[machine] = {"table": make_table(rows), "rows": [vars(row) for row in rows]}
        write()
        print(f"{part}, {machine}\n{results[part][machine]['table']}", flush=True)


def arguments() -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; None leaves them as they are")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")
    parser.add_argument("--parts", nargs="*", choices=(*COSTS, *STUDIES), default=COSTS, help="other results are kept")
    parser.add_argument("--data", type=Path, help="holds FashionMNIST/raw")
    parser.add_argument("--harvest", type=Path, help="of benchmarks.students fashion_mnist; None trains the teacher")
    parser.add_argument("--teachers", type=int, nargs="*", default=[7, 11, 15, 19], help="epochs of the harvest")
    parser.add_argument("--process", choices=TRAININGS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.data is None and any(part in STUDIES for part in options.parts):
        parser.error("accuracy and views need --data")
    if options.device != "cpu" and any(part not in ("uncached", "epoch", "fill") for part in options.parts):
        parser.error("memory, accuracy and views are of the CPU: name --parts")
    return options


def teacher() -> nn.Module:
    """A teacher's network."""
    return CIFARResNet(14, CLASSES, 16, 1)


def student() -> nn.Module:
    """The student's network, the same each time."""
    torch.manual_seed(1)
    return CIFARResNet(8, CLASSES, 8, 1)


def members() -> list[nn.Module]:
    """Teachers whose BatchNorm has statistics as training leaves them, not the zeros and ones of a new network."""
    torch.manual_seed(0)
    networks = [teacher() for _ in range(TEACHERS)]
    for module in (module for network in networks for module in network.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.1 * torch.randn(module.num_features)
            module.running_var = 0.5 + torch.rand(module.num_features)
    return networks


def ensemble(device: torch.device) -> TeacherEnsemble:
    """The teachers as a training gets them."""
    return TeacherEnsemble([member.to(device) for member in members()], [str(place) for place in range(TEACHERS)])


def uncached(folder: Path, device: torch.device, rounds: int, workers: int) -> list[Row]:
    """Teachers on one batch, in each way."""
    torch.manual_seed(2)
    inputs = torch.randn(BATCH_SIZE, 1, SIDE, SIDE, device=device)
    labels = torch.randint(CLASSES, (BATCH_SIZE,), device=device)
    batch = Batch(inputs, labels)
    network = student().to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    plain = ensemble(device)

    @torch.no_grad()
    def loop() -> Tensor:
        return torch.stack([member(inputs) for member in plain.members])

    runs: dict[str, Callable[[], object]] = {"step": step, "loop": loop}
    notes = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table tells which ways were not taken
        for name, how in WAYS.items():
            found = ensemble(device)
            calibration = calibrate(found, batch, how)
            difference = float((found(batch) - loop()).abs().max() / loop().abs().max())
            ways = [way for way, on in vars(calibration.path).items() if on]
            notes[name] = f"{', '.join(ways)}; logits differ by {difference:.0e} of the largest"
            runs[name] = partial(found, batch)
    seconds = in_turn(runs, rounds, device, 1 if device.type == "cpu" else 50)
    rows = [ratio_row("plain loop of teachers / plain step of the student", seconds["loop"], seconds["step"])]
    for name, note in notes.items():
        target = WAY_TARGETS.get(name)
        rows.append(ratio_row(f"{name} teachers / plain loop", seconds[name], seconds["loop"], target, note))
    return rows


def epoch(folder: Path, device: torch.device, rounds: int, workers: int) -> list[Row]:
    """Whole epochs of a Trainer, with everything in them, after a first one."""
    make_harvest(folder)
    data = loader(EPOCH_BATCHES, workers)
    train("filling", folder, data, device)

    def seconds_of(training: str) -> float:
        clock = Clock(device)
        train(training, folder, data, device, clock, epochs=4)
        return min(clock.seconds()[1:])

    seconds: dict[str, list[float]] = {"plain": [], "cached": []}
    for _ in range(rounds):
        for training, found in seconds.items():
            found.append(seconds_of(training))
    note = f"{EPOCH_BATCHES} batches, {VIEWS} views, {workers} workers"
    what = "epoch on cached logits / epoch of cross-entropy"
    return [ratio_row(what, seconds["cached"], seconds["plain"], EPOCH_TARGET, note)]


def filling(folder: Path, device: torch.device, rounds: int, workers: int) -> list[Row]:
    """Filling, from an empty folder to a verified cache, and a bare pass over as many images that are drawn freely."""
    data = loader(FILL_BATCHES, workers)
    assert isinstance(data.dataset, Digits)
    teachers = ensemble(device)
    read = BatchReader()
    calibrate(teachers, read(next(iter(data))).to(device))
    views = Views(data.dataset, VIEWS, seed=0)
    key = CacheKey(tuple(teachers.names), len(data.dataset), (), VIEWS)
    folders = iter(range(rounds + 1))

    def bare() -> None:
        for _ in range(VIEWS):
            for batch in data:
                teachers(read(batch).to(device)).cpu()

    def filled() -> None:
        cache = LogitCache.open(folder / str(next(folders)), key)
        options: dict[str, Any] = {"num_workers": workers, "device": device, "progress": False}
        fill(cache, views, teachers, read, data.collate_fn, batch_size=BATCH_SIZE, **options)
        cache.verify()

    seconds = in_turn({"bare": bare, "filled": filled}, rounds, device, 1)
    note = f"{len(views)} views, {workers} workers"
    return [ratio_row("filling / bare pass of the teachers", seconds["filled"], seconds["bare"], FILL_TARGET, note)]


def memory(folder: Path, device: torch.device, rounds: int, workers: int) -> list[Row]:
    """Three processes."""
    make_harvest(folder)
    peaks = {}
    for training in ("plain", "filling", "cached"):
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.distillation", "--process", training]
        command += ["--folder", str(folder), "--workers", str(workers), "--threads", str(torch.get_num_threads())]
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        peaks[training] = float(answer.splitlines()[-1])
    note = ", ".join(f"{training} {megabytes:.0f} MB" for training, megabytes in peaks.items())
    names = {"cached": "a training on cached logits", "filling": "one that fills the cache first"}
    return [
        Row(f"peak memory of {name} / of plain training", peaks[training] / peaks["plain"], MEMORY_TARGET, note)
        for training, name in names.items()
    ]


def peak_memory(training: str, folder: Path, workers: int) -> float:
    """Megabytes that this process has had resident at most, after a training of two epochs."""
    train(training, folder, loader(EPOCH_BATCHES, workers), torch.device("cpu"), epochs=2)
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def train(
    training: str, folder: Path, data: DataLoader[Any], device: torch.device, *callbacks: Callback, epochs: int = 1
) -> None:
    """Fit a student: ``plain`` by cross-entropy, ``cached`` and ``filling`` on the cache in a folder."""
    seed_everything(0, verbose=False)
    if training == "plain":
        module: LightningModule = Classifier(student())
    else:
        cache = TeacherCache(folder / "cache", views=VIEWS)
        choice = list(range(TEACHERS))
        module = DistillationModule(student(), teacher(), folder / "harvest", choice=choice, cache=cache)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, data)


def make_harvest(folder: Path) -> None:
    """Snapshots of the teachers."""
    with SnapshotStore.create(folder / "harvest", "run", {}) as store:
        for place, member in enumerate(members()):
            store.commit(member.state_dict(), epoch=place, global_step=place + 1)


class Digits(Dataset[Any]):
    """scikit-learn's digits as images of 28 x 28 pixels, cropped and flipped at random; over again if need be."""

    def __init__(self, size: int) -> None:
        from sklearn.datasets import load_digits  # here, since benchmarks.gpu runs where there is no scikit-learn

        digits = load_digits()
        small = torch.from_numpy(digits.images).float().unsqueeze(1) * (255 / 16)
        self.images = F.interpolate(small, size=SIDE, mode="bilinear").byte().squeeze(1).numpy()
        self.labels = digits.target.tolist()
        self.size = size
        self.transform = v2.Compose([*crop_and_flip(SIDE), *to_tensor((0.3,), (0.35,))])

    def __len__(self) -> int:
        return self.size

    @override
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        place = index % len(self.labels)
        return self.transform(Image.fromarray(self.images[place])), self.labels[place]


def loader(batches: int, workers: int) -> DataLoader[Any]:
    """So many batches."""
    return DataLoader(
        Digits(batches * BATCH_SIZE),
        BATCH_SIZE,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


class Clock(Callback):
    """Seconds from the start of each epoch to that of the next, or to the end."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times: list[float] = []

    def seconds(self) -> list[float]:
        """One number for each epoch."""
        return [stop - start for start, stop in zip(self._times, self._times[1:], strict=False)]

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note()

    def _note(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._times.append(time.perf_counter())


def in_turn(
    runs: dict[str, Callable[[], object]], rounds: int, device: torch.device, times: int
) -> dict[str, list[float]]:
    """Seconds of each after a first round, taken in turn, so that a machine that slows down slows all."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(times):
                run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio_row(what: str, above: list[float], below: list[float], target: float | None = None, note: str = "") -> Row:
    """The median of the rounds' ratios."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    medians = f"{1000 * statistics.median(above):.0f} ms against {1000 * statistics.median(below):.0f}"
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    details = "; ".join(part for part in (medians, spread, note) if part)
    return Row(what, statistics.median(ratios), target, details)


if __name__ == "__main__":
    main()
