"""``leaks``: memory, files and threads over many snapshots."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from typing_extensions import override

from benchmarks.harvest.measured import Options, Row
from benchmarks.harvest.trainings import (
    Idler,
    idle_data,
    quiet_trainer,
    tensor_bytes,
    wait_until_written,
)
from lightning_ckptkd import CheckpointHarvester

LEAK_SNAPSHOTS = (3, 50, 100, 150, 200)
SETTLE_SECONDS = 0.3  # between a written snapshot and the look
LEAK_WIDTHS = (1024, 1280)  # 5.2 MB
MEMORY_TARGET = 1.0


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
