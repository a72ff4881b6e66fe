"""What an epoch on cached logits costs: ``python -m benchmarks.distillation.epochs --before OTHER``, in plain epochs.

``short``: 10 steps, each epoch a Trainer.fit of its own, as :mod:`benchmarks.distillation.peers` has it. ``long``: one
fit of two epochs of 50 steps, of which the second counts. Both from the epoch's start to its end, data included, in
processor time of one thread, with the networks and images of :mod:`benchmarks.distillation`. Each build is a process of
its own, OTHER a clone of the one before; they take turns, and within each the ways do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from benchmarks.builds.against import ask
from benchmarks.distillation.costs import BATCH_SIZE, CLASSES, SIDE, make_harvest, student, teacher
from benchmarks.harvest.machine import describe_machine, say, silence_lightning
from benchmarks.harvest.trainings import quiet_trainer
from benchmarks.rows import Row, make_table
from lightning_ckptkd import DistillationModule, TeacherCache
from lightning_ckptkd.zoo import Classifier

RESULTS = Path(__file__).parents[1] / "results" / "epochs.json"
TARGET, TEACHERS, PLAIN = 1.05, (1, 4), "plain"
SETTINGS = {"short": (10, 1), "long": (50, 2)}  # steps an epoch, epochs a fit


class LastEpoch(Callback):
    """Processor time of the last epoch, and of its steps."""

    def __init__(self) -> None:
        self.epoch, self.steps, self._starts = 0.0, 0.0, (0.0, 0.0)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps, self._starts = 0.0, (time.process_time(), 0.0)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._starts = self._starts[0], time.process_time()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps += time.process_time() - self._starts[1]

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epoch = time.process_time() - self._starts[0]


def main() -> None:
    """Measure in turn, write all numbers, print what belongs into docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured")
    parser.add_argument("--before", type=Path, help="a clone of another build")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.worker)
        return
    builds = {"now": Path(__file__).parents[2], **({} if options.before is None else {"before": options.before})}
    found: dict[str, list[Any]] = {name: [] for name in builds}
    with tempfile.TemporaryDirectory() as name:
        workers = {build: start(root, Path(name) / build) for build, root in builds.items()}
        for number in range(options.rounds + 1):
            for build in list(workers) if number % 2 else list(reversed(workers)):
                say(f"round {number} of {options.rounds}: {build}")
                answer = ask(workers[build])
                if number:  # the first fills the caches
                    found[build].append(answer)
            if number:
                write(found)
        for worker in workers.values():
            worker.communicate()
    print(make_table(table_rows(found)))


def write(found: dict[str, list[Any]]) -> None:
    """All numbers, as they came."""
    results = {
        "command": "python -m benchmarks.distillation.epochs " + " ".join(sys.argv[1:]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(torch.device("cpu"), Path.cwd()),
        "seconds": found,
        "table": make_table(table_rows(found)),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def start(root: Path, scratch: Path) -> subprocess.Popen[str]:
    """A process that works with the package under ``root`` whenever it is asked."""
    here = str(Path(__file__).parents[2])
    code = f"import sys; sys.path[:0] = [{str(root)!r}, {here!r}]; import lightning_ckptkd; sys.path.pop(0)"
    code += "; from benchmarks.distillation.epochs import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "LIGHTNING_CKPTKD_CACHE": ""}
    command = [sys.executable, "-W", "ignore", "-c", code, "--worker", str(scratch)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=here
    )


def work(scratch: Path) -> None:
    """One build's process: answers each line of its input with a round."""
    silence_lightning()
    warnings.simplefilter("ignore")  # of Lightning, about workers and loggers that a benchmark does without
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr
    scratch.mkdir()
    make_harvest(scratch)
    for turn, _ in enumerate(sys.stdin):
        ways = [PLAIN, *map(str, TEACHERS)] if turn else list(map(str, TEACHERS))
        answer = {
            name: {
                way: one(way, scratch, steps, epochs if turn else 1) for way in (ways if turn % 2 else reversed(ways))
            }
            for name, (steps, epochs) in SETTINGS.items()
        }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def one(way: str, scratch: Path, steps: int, epochs: int) -> dict[str, float]:
    """The last epoch of one training."""
    seed_everything(0, verbose=False)
    data = TensorDataset(torch.randn(BATCH_SIZE * steps, 1, SIDE, SIDE), torch.randint(CLASSES, (BATCH_SIZE * steps,)))
    module: LightningModule = Classifier(student())
    if way != PLAIN:
        cache = TeacherCache(scratch / f"cache_{way}_{steps}")
        module = DistillationModule(
            student(), teacher(), scratch / "harvest", choice=list(range(int(way))), cache=cache
        )
    clock = LastEpoch()
    trainer = quiet_trainer(torch.device("cpu"), scratch, [clock], epochs)
    trainer.fit(module, DataLoader(data, BATCH_SIZE, shuffle=True))
    return {"epoch": clock.epoch, "steps": clock.steps}


def table_rows(found: dict[str, list[Any]]) -> list[Row]:
    """The median of the rounds' ratios, and what lies between the steps."""
    rows = []
    for setting, (steps, _) in SETTINGS.items():
        for way in map(str, TEACHERS):
            for build, rounds in found.items():
                epochs = in_plain(rounds, setting, lambda part: part["epoch"], way)
                between = statistics.median(
                    1000 * (part["epoch"] - part["steps"]) / steps for part in (one[setting][way] for one in rounds)
                )
                plain = statistics.median(
                    1000 * (part["epoch"] - part["steps"]) / steps for part in (one[setting][PLAIN] for one in rounds)
                )
                in_steps = statistics.median(in_plain(rounds, setting, lambda part: part["steps"], way))
                note = f"{min(epochs):.3f} to {max(epochs):.3f}; its steps {in_steps:.3f}; between two steps "
                note += f"{between:.2f} ms, plain {plain:.2f}"
                plural = "teacher" if way == "1" else "teachers"
                what = f"epoch of {steps} steps, cached / plain: {way} {plural}, build {build}"
                rows.append(Row(what, statistics.median(epochs), TARGET if build == "now" else None, note))
    return rows


def in_plain(rounds: list[Any], setting: str, value: Callable[[Any], float], way: str) -> list[float]:
    """A way's seconds over those without a teacher, round by round."""
    return [value(one[setting][way]) / value(one[setting][PLAIN]) for one in rounds]


if __name__ == "__main__":
    main()
