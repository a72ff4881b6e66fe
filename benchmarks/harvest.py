"""What a harvest costs: ``python -m benchmarks.harvest``, as ratios that are measured in one run.

``block``: how long a snapshot holds the training thread up, against ``ModelCheckpoint``. ``overhead``: how much longer
training takes. ``size``: bytes on disk against bytes of weights. ``leaks``: memory, files and threads over many
snapshots. Give it the machine for itself: what else runs there is in the numbers.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import itertools
import json
import logging
import os
import shlex
import shutil
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models import resnet50
from typing_extensions import override

from lightning_ckptkd import CheckpointHarvester
from lightning_ckptkd.selecting.report import format_table
from lightning_ckptkd.snapshots import MANIFEST_NAME

WARM_UP = 2  # snapshots of each kind that are not counted
BATCHES = 4  # in an epoch of a module that idles
SETTLE_SECONDS = 0.3  # between a written snapshot and the next epoch
SNAPSHOT_EVERY_SECONDS = 5.0
LEAK_SNAPSHOTS = (3, 50, 100, 150, 200)
LEAK_WIDTHS = (1024, 1280)  # 5.2 MB

BLOCK_TARGET, OVERHEAD_TARGET, SIZE_TARGET, MEMORY_TARGET = 0.25, 1.01, 1.01, 1.0


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    seconds: float
    rounds: int
    pairs: int
    device: torch.device
    folder: Path
    settle: float = SETTLE_SECONDS


@dataclass(frozen=True)
class Row:
    """One line of the table; the target is met by a value that is not larger.

    ``noise`` is by how much the value may be wrong, where that is known.
    """

    what: str
    value: float
    target: float | None
    note: str = ""
    noise: float = 0.0

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        if self.target is None:
            return self.what, f"{self.value:.5g}", "", "", self.note
        verdict = "met" if self.value <= self.target else "MISSED"
        if abs(self.value - self.target) < self.noise:
            verdict += ", but within the noise"
        return self.what, f"{self.value:.5g}", f"<= {self.target:g}", verdict, self.note


@dataclass(frozen=True)
class Spread:
    """Seconds of many repetitions."""

    raw: list[float]
    median: float
    quartiles: tuple[float, float]

    @classmethod
    def of(cls, raw: Sequence[float]) -> Spread:
        """Summarise two or more repetitions."""
        lower, median, upper = statistics.quantiles(raw, n=4, method="inclusive")
        return cls(list(raw), median, (lower, upper))

    def __str__(self) -> str:
        lower, upper = self.quartiles
        return f"{self.median * 1e3:.1f} ms ({lower * 1e3:.1f} to {upper * 1e3:.1f})"


@dataclass(frozen=True)
class Call:
    """One call of a callback's hook.

    Attributes:
        hook: Its name.
        epoch: The epoch whose end came last; -1 before the first.
        seconds: How long the training thread was in it.
        synchronised: The same until the GPU was idle again; None where it was not waited for.
    """

    hook: str
    epoch: int
    seconds: float
    synchronised: float | None


class HookClock:
    """Times all hooks that a callback has, from the outside.

    Args:
        callback: The callback; its hooks are wrapped in place.
        device: A GPU to wait for before and after each hook; None waits for none.
    """

    def __init__(self, callback: Callback, device: torch.device | None = None) -> None:
        self.calls: list[Call] = []
        self._device = device
        self._epoch = -1
        for hook in vars(Callback):
            if hook.startswith("on_") and getattr(type(callback), hook) is not getattr(Callback, hook):
                setattr(callback, hook, self._timed(hook, getattr(callback, hook)))

    def _timed(self, hook: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            self._epoch += hook == "on_train_epoch_end"
            if self._device is not None:
                torch.cuda.synchronize(self._device)
            start, synchronised = time.perf_counter(), None
            result = call(*args)
            seconds = time.perf_counter() - start
            if self._device is not None:
                torch.cuda.synchronize(self._device)
                synchronised = time.perf_counter() - start
            self.calls.append(Call(hook, self._epoch, seconds, synchronised))
            return result

        return timed

    def of_epoch(self, epoch: int) -> tuple[float, float | None]:
        """Seconds from the end of an epoch to the end of the next: in hooks, and with the GPU's."""
        calls = [call for call in self.calls if call.epoch == epoch]
        synchronised = [call.synchronised for call in calls if call.synchronised is not None]
        return sum(call.seconds for call in calls), sum(synchronised) if self._device is not None else None

    def by_hook(self) -> dict[str, float]:
        """Seconds in each hook."""
        hooks = sorted({call.hook for call in self.calls})
        return {hook: sum(call.seconds for call in self.calls if call.hook == hook) for hook in hooks}


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
        self._harvest = harvest
        self._settle = settle
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


class WriterClock(Callback):
    """CPU seconds of the harvester's thread; listed before the harvester, so that the thread still lives."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("ckptkd-recorder")]
        if not threads:
            raise RuntimeError("The harvester's thread is not found by its name; this benchmark is out of date.")
        self.seconds = sum(time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0)) for thread in threads)


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
class BlockResult:
    """Seconds that one snapshot holds the training thread up.

    ``*_synchronised`` counts until the GPU is idle, and is None without one. ``beside_full`` is the harvester where
    an ordinary ModelCheckpoint with the optimiser's state saves in the same epoch and asks it for its own state.
    """

    model_bytes: int
    harvester: Spread
    harvester_synchronised: Spread | None
    harvester_beside_full: Spread
    model_checkpoint: Spread
    model_checkpoint_synchronised: Spread | None
    harvester_hooks: dict[str, float]
    ratio: float
    ratio_synchronised: float | None
    ratio_beside_full: float

    def rows(self) -> list[Row]:
        """The lines of the table."""
        times = f"{self.harvester} against {self.model_checkpoint}"
        rows = [Row("training blocked by a snapshot / by ModelCheckpoint", self.ratio, BLOCK_TARGET, times)]
        if self.ratio_synchronised is not None:
            times = f"{self.harvester_synchronised} against {self.model_checkpoint_synchronised}"
            rows.append(Row("the same, until the GPU is idle", self.ratio_synchronised, BLOCK_TARGET, times))
        times = f"{self.harvester_beside_full} against {self.model_checkpoint}"
        rows.append(Row("the same, beside a full ModelCheckpoint", self.ratio_beside_full, None, times))
        return rows


def measure_block(options: Options, network: nn.Module | None = None) -> BlockResult:
    """Three kinds of epochs in one run, in the order ABCCBA, so that none always follows the same other.

    Args:
        options: How often, and where.
        network: What is harvested; None is a ResNet-50.
    """
    kinds: tuple[list[int], ...] = ([], [], [])
    for turn in range(WARM_UP + options.rounds):
        for place in range(3):
            kinds[place if turn % 2 == 0 else 2 - place].append(3 * turn + place)
    alone, weights_only, full = kinds
    harvest, checkpoints = options.folder / "harvest", options.folder / "checkpoints"
    harvested = sorted(alone + full)
    harvester = CheckpointHarvester(harvest, epochs=harvested, keep_last=2)
    reference = GatedCheckpoint(checkpoints, weights_only, save_weights_only=True)
    gpu = options.device if options.device.type == "cuda" else None
    clocks = HookClock(harvester, gpu), HookClock(reference, gpu)
    callbacks = [
        Pause(harvest, harvested, checkpoints, options.settle),
        harvester,
        reference,
        GatedCheckpoint(checkpoints / "full", full, save_weights_only=False),
        Pause(harvest, (), checkpoints / "full", options.settle),
    ]
    module = Idler(resnet50(weights=None) if network is None else network)
    # one epoch more: what a snapshot costs ends with the end of the epoch after it
    trainer = quiet_trainer(options.device, options.folder, callbacks, max_epochs=3 * (WARM_UP + options.rounds) + 1)
    trainer.fit(module, idle_data())
    return _block_result(tensor_bytes(module), clocks[0], clocks[1], alone, weights_only, full)


def _block_result(
    model_bytes: int,
    harvester: HookClock,
    reference: HookClock,
    alone: Sequence[int],
    weights_only: Sequence[int],
    full: Sequence[int],
) -> BlockResult:
    own, own_synchronised = _spreads(harvester, alone)
    beside, _ = _spreads(harvester, full)
    lightnings, lightnings_synchronised = _spreads(reference, weights_only)
    ratio_synchronised = None
    if own_synchronised is not None and lightnings_synchronised is not None:
        ratio_synchronised = own_synchronised.median / lightnings_synchronised.median
    return BlockResult(
        model_bytes,
        own,
        own_synchronised,
        beside,
        lightnings,
        lightnings_synchronised,
        harvester.by_hook(),
        own.median / lightnings.median,
        ratio_synchronised,
        beside.median / lightnings.median,
    )


def _spreads(clock: HookClock, epochs: Sequence[int]) -> tuple[Spread, Spread | None]:
    counted = [clock.of_epoch(epoch) for epoch in epochs[WARM_UP:]]
    synchronised = [seconds for _, seconds in counted if seconds is not None]
    return Spread.of([seconds for seconds, _ in counted]), Spread.of(synchronised) if synchronised else None


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


@dataclass(frozen=True)
class SettingResult:
    """Paired runs with one number of threads for torch."""

    setting: str
    threads: int
    steps: int
    steps_between: int
    snapshots: int
    runs: list[Training]
    pair_ratios: list[float]
    ratio: float
    every_other: Spread
    baseline_spread: float
    others_share: float
    blocked_share: float
    blocked_and_writer_share: float

    def rows(self) -> list[Row]:
        """The lines of the table."""
        pairs = ", ".join(f"{ratio:.4f}" for ratio in self.pair_ratios)
        spread = f"pairs {pairs}; runs without harvest differ by {self.baseline_spread:.1%}"
        others = f"other processes took {self.others_share:.1%} of the CPU"
        intervals = f"{len(self.every_other.raw)} snapshots; the middle half {quartiles(self.every_other)}"
        whole, part = f"time with harvest / without, {self.setting}", "of the run with harvest: "
        return [
            Row(whole, self.ratio, OVERHEAD_TARGET, f"{spread}; {others}", self.baseline_spread),
            Row("one run: an interval with a snapshot / without", self.every_other.median, OVERHEAD_TARGET, intervals),
            Row(f"{part}training blocked", self.blocked_share, OVERHEAD_TARGET - 1),
            Row(f"{part}training blocked or the writer's CPU busy", self.blocked_and_writer_share, None),
        ]


@dataclass(frozen=True)
class OverheadResult:
    """How much longer training takes."""

    settings: list[SettingResult]

    def rows(self) -> list[Row]:
        """The lines of the table."""
        return [row for setting in self.settings for row in setting.rows()]


def measure_overhead(options: Options) -> OverheadResult:
    """With a core to spare and with none; on a GPU there is always one to spare."""
    cores = torch.get_num_threads()
    settings = {"a core to spare": max(1, cores - 1), "all cores busy": cores}
    if options.device.type == "cuda":
        settings = {"GPU": cores}
    try:
        return OverheadResult([measure_setting(name, threads, options) for name, threads in settings.items()])
    finally:
        torch.set_num_threads(cores)


def measure_setting(name: str, threads: int, options: Options) -> SettingResult:
    """Pairs of runs in the order AB BA AB ..., after one run that says how long a step takes."""
    torch.set_num_threads(threads)
    between = max(1, round(SNAPSHOT_EVERY_SECONDS / step_seconds(options)))
    snapshots = max(2, round(options.seconds / SNAPSHOT_EVERY_SECONDS))
    steps = snapshots * between + between // 2  # the last snapshot is not at the very end, where training waits for it
    runs: list[Training] = []
    for pair in range(options.pairs):
        for harvested in (False, True) if pair % 2 == 0 else (True, False):
            runs.append(train(options, steps, between, harvested))
            say(f"  {name}, {'with' if harvested else 'without'} harvest: {runs[-1].seconds:.2f} s")
    every_other = train(options, (2 * snapshots + 3) * between, between, harvested=True, every=2)
    return _setting_result(
        name, threads, steps, between, snapshots, runs, Spread.of(ratios_of_every_other(every_other))
    )


def ratios_of_every_other(run: Training) -> list[float]:
    """Each interval with a snapshot against the mean of its neighbours without: a machine's drift cancels."""
    times = run.intervals  # the first is without a snapshot
    return [2 * times[place] / (times[place - 1] + times[place + 1]) for place in range(1, len(times) - 1, 2)]


def quartiles(spread: Spread) -> str:
    """The range of the middle half of some ratios."""
    return f"{spread.quartiles[0]:.3f} to {spread.quartiles[1]:.3f}"


def _setting_result(
    name: str, threads: int, steps: int, between: int, snapshots: int, runs: list[Training], every_other: Spread
) -> SettingResult:
    harvested = [run for run in runs if run.harvested]
    plain = [run for run in runs if not run.harvested]
    ratios = [one.seconds / other.seconds for one, other in zip(harvested, plain, strict=True)]
    seconds = [run.seconds for run in plain]
    total = sum(run.seconds for run in harvested)
    blocked = sum(sum(run.hooks.values()) for run in harvested)
    writing = sum(run.writer_seconds for run in harvested)
    return SettingResult(
        name,
        threads,
        steps,
        between,
        snapshots,
        runs,
        ratios,
        statistics.median(ratios),
        every_other,
        (max(seconds) - min(seconds)) / statistics.median(seconds),
        sum(run.others_seconds for run in runs) / sum(run.seconds for run in runs) / len(os.sched_getaffinity(0)),
        blocked / total,
        (blocked + writing) / total,
    )


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


class UsageClock:
    """Wall time, CPU time of this process and CPU time of all else on the machine, since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time(), machine_seconds()

    def read(self) -> tuple[float, float, float]:
        """The three, in seconds."""
        wall, process, machine = self._start
        own = time.process_time() - process
        return time.perf_counter() - wall, own, max(0.0, machine_seconds() - machine - own)

    def others_share(self) -> float:
        """The part of all cores that others took."""
        wall, _, others = self.read()
        return others / wall / len(os.sched_getaffinity(0))


def machine_seconds() -> float:
    """CPU time that everything on this machine has used, and that its host has taken from it."""
    with Path("/proc/stat").open(encoding="utf-8") as lines:
        user, nice, system, _idle, _waiting, *interrupts_and_stolen = map(int, lines.readline().split()[1:9])
    return (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")


def work_data(device: torch.device, steps: int) -> DataLoader[tuple[Tensor, Tensor]]:
    """The same batch again and again: what is measured is the training, not the reading."""
    count, size = (64, 224) if device.type == "cuda" else (4, 64)
    batch = torch.randn(count, 3, size, size, device=device), torch.randint(1000, (count,), device=device)
    return DataLoader([batch] * steps, batch_size=None)  # type: ignore[arg-type]


@dataclass(frozen=True)
class SizeResult:
    """Bytes of a harvest's folder."""

    snapshots: int
    files: dict[str, int]
    tensor_bytes: int
    ratio: float

    def rows(self) -> list[Row]:
        """The lines of the table."""
        note = f"{self.snapshots} snapshots, {sum(self.files.values())} bytes in {len(self.files)} files"
        return [Row("bytes on disk / bytes of the weights", self.ratio, SIZE_TARGET, note)]


def measure_size(options: Options) -> SizeResult:
    """Three snapshots of a ResNet-50."""
    folder, snapshots = options.folder / "size", 3
    module = Idler(resnet50(weights=None))
    trainer = quiet_trainer(options.device, options.folder, [CheckpointHarvester(folder)], max_epochs=snapshots)
    trainer.fit(module, idle_data())
    files = {path.name: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    weights = snapshots * tensor_bytes(module)
    return SizeResult(snapshots, files, weights, sum(files.values()) / weights)


@dataclass(frozen=True)
class Holdings:
    """What the process holds after some number of snapshots."""

    snapshots: int
    resident_bytes: int
    files: list[str]
    threads: list[str]


@dataclass(frozen=True)
class LeaksResult:
    """What the process holds more of after many snapshots than after few."""

    model_bytes: int
    holdings: list[Holdings]
    more_files: list[str]
    fewer_files: list[str]
    more_threads: list[str]
    fewer_threads: list[str]
    resident_growth: int
    ratio: float

    def rows(self) -> list[Row]:
        """The lines of the table."""
        first, last = self.holdings[0], self.holdings[-1]
        span = f"after {first.snapshots} and after {last.snapshots} snapshots"
        sizes = ", ".join(f"{held.resident_bytes / 1e6:.1f}" for held in self.holdings)
        note = f"MB after {', '.join(str(held.snapshots) for held in self.holdings)} snapshots: {sizes}"
        return [
            Row(
                f"open files that differ {span}", len(self.more_files + self.fewer_files), 0, f"{len(last.files)} open"
            ),
            Row(
                f"threads that differ {span}",
                len(self.more_threads + self.fewer_threads),
                0,
                f"{len(last.threads)} threads",
            ),
            Row("growth of resident memory / bytes of the model", self.ratio, MEMORY_TARGET, note),
        ]


class HoldingsProbe(Callback):
    """Looks at what the process holds after some numbers of snapshots, once they are written."""

    def __init__(self, harvest: Path) -> None:
        self.holdings: list[Holdings] = []
        self._harvest = harvest

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step in LEAK_SNAPSHOTS:
            wait_until_written(self._harvest, trainer.global_step)
            time.sleep(SETTLE_SECONDS)
            gc.collect()
            self.holdings.append(Holdings(trainer.global_step, resident_bytes(), open_files(), sorted(thread_names())))


def measure_leaks(options: Options) -> LeaksResult:
    """One run with a snapshot after each of many short steps; all are kept.

    Training is faster than the writer, so that both of the harvester's copies are in use before the first look.
    """
    folder = options.folder / "leaks"
    module = Idler(nn.Linear(*LEAK_WIDTHS))
    probe = HoldingsProbe(folder)
    callbacks = [probe, CheckpointHarvester(folder, every_n_train_steps=1)]
    trainer = quiet_trainer(options.device, options.folder, callbacks, max_epochs=1)
    trainer.fit(module, idle_data(max(LEAK_SNAPSHOTS) + 1))
    first, last = probe.holdings[0], probe.holdings[-1]
    growth, model_bytes = last.resident_bytes - first.resident_bytes, tensor_bytes(module)
    return LeaksResult(
        model_bytes,
        probe.holdings,
        _more(last.files, first.files),
        _more(first.files, last.files),
        _more(last.threads, first.threads),
        _more(first.threads, last.threads),
        growth,
        growth / model_bytes,
    )


def _more(items: Sequence[str], others: Sequence[str]) -> list[str]:
    return sorted((Counter(items) - Counter(others)).elements())


def resident_bytes() -> int:
    """Resident memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def open_files() -> list[str]:
    """What this process has open: names of files without their folders, kinds of everything else without numbers."""
    names = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:  # the one that lists the folder
            continue
        names.append(Path(target).name if target.startswith("/") else target.split("[")[0])
    return sorted(names)


def thread_names() -> list[str]:
    """The kernel's names of this process's threads."""
    return [(task / "comm").read_text(encoding="utf-8").strip() for task in Path("/proc/self/task").iterdir()]


Result = BlockResult | OverheadResult | SizeResult | LeaksResult

PARTS: dict[str, Callable[[Options], Result]] = {
    "block": measure_block,
    "overhead": measure_overhead,
    "size": measure_size,
    "leaks": measure_leaks,
}


def describe_machine(device: torch.device, folder: Path) -> dict[str, Any]:
    """What the numbers were measured on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else None,
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "file_system": file_system(folder),
        "load_average_before": os.getloadavg()[0],
        "packages": {name: importlib.metadata.version(name) for name in ("lightning-ckptkd", "lightning", "torch")},
    }


def file_system(folder: Path) -> str:
    """Kind of the file system that a folder is on."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    path = folder.resolve()
    kinds = {point: kind for _, point, kind, *_ in mounts if path.is_relative_to(point)}
    return kinds[max(kinds, key=len)]


def say(text: str) -> None:
    """Tell how far it is, apart from the table."""
    print(text, file=sys.stderr, flush=True)


def silence_lightning() -> None:
    """Keep Lightning's notes and hints out of the table."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|torch)\.")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.harvest", description=__doc__)
    option = parser.add_argument
    option("--part", choices=[*PARTS, "all"], default="all", help="what to measure")
    option("--seconds", type=float, default=60.0, help="overhead: about how long one run takes")
    option("--pairs", type=int, default=3, help="overhead: runs with and without harvest of each setting, 2 or more")
    option("--rounds", type=int, default=20, help="block: snapshots of each kind that are counted, 2 or more")
    option("--device", choices=["cpu", "cuda"], default="cpu")
    option("--folder", type=Path, default=Path(), help="where a temporary folder is made; should be a real disk")
    option("--out", type=Path, default=Path("benchmarks/results/harvest.json"), help="file for all numbers")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.pairs) < 2:
        parser.error("--rounds and --pairs should be 2 or more: one says nothing of the spread.")
    return arguments


def main() -> None:
    """Measure, write all numbers, print the table."""
    arguments = parse_arguments()
    silence_lightning()
    device = torch.device(arguments.device, 0) if arguments.device == "cuda" else torch.device("cpu")
    document: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.harvest", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(device, arguments.folder),
        "others_share": {},
        "results": {},
    }
    rows: list[Row] = []
    for part in PARTS if arguments.part == "all" else [arguments.part]:
        say(f"{part} ...")
        with tempfile.TemporaryDirectory(prefix=".benchmark-", dir=arguments.folder) as folder:
            options = Options(arguments.seconds, arguments.rounds, arguments.pairs, device, Path(folder))
            usage = UsageClock()
            result = PARTS[part](options)
            document["others_share"][part] = usage.others_share()
        document["results"][part] = asdict(result)
        rows += result.rows()
    document["table"] = format_table(("measured", "value", "target", "", "details"), [row.cells() for row in rows])
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(document["table"])
    others = ", ".join(f"{share:.1%} during {part}" for part, share in document["others_share"].items())
    print(f"\nOther processes took of the machine's CPU: {others}.")


if __name__ == "__main__":
    main()
