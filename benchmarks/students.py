"""The student of each snapshot: what a selection is to foretell.

    python -m benchmarks.students digits OUT
    python -m benchmarks.students fashion_mnist OUT --data FOLDER
    python -m benchmarks.students cifar100 OUT --data FOLDER

trains one teacher with a harvest of every epoch in OUT/harvest, then one student from each of some snapshots and
seeds, all with the same budget, and writes the accuracies to OUT/students.json after each. Started again, it goes on.
``--choices 3 7,11`` adds students of those epochs, of several together where they are joined by commas.

FOLDER is the ``root`` of the zoo's data module: ``FashionMNIST/raw`` or ``train/<class>/<image>`` is in it.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from lightning_ckptkd import CheckpointHarvester, DistillationModule
from lightning_ckptkd.zoo import (
    CIFAR100DataModule,
    CIFARResNet,
    Classifier,
    DigitsDataModule,
    FashionMNISTDataModule,
)
from lightning_ckptkd.zoo.images import ImageDataModule


@dataclass(frozen=True)
class Task:
    """Data, networks and budgets of one study.

    Attributes:
        data: Makes the data module; gets the data folder where there is one.
        channels: Of the images.
        classes: Number of classes K.
        student: Depth and width of the student; the teacher is a ResNet-14 of width 16.
        epochs: Of the teacher, and of each student.
        tried: Epochs of the harvest, from 0, whose snapshots teach.
    """

    data: Callable[..., ImageDataModule]
    channels: int
    classes: int
    student: tuple[int, int]
    epochs: tuple[int, int]
    tried: tuple[int, ...]

    def network(self, depth: int, width: int) -> CIFARResNet:
        """A network for the task's images."""
        return CIFARResNet(depth, self.classes, width, self.channels)


TASKS = {
    "digits": Task(
        partial(DigitsDataModule, train_size=300), 1, 10, (8, 4), (30, 30), (0, 2, 4, 6, 9, 11, 14, 19, 24, 29)
    ),
    "fashion_mnist": Task(
        partial(FashionMNISTDataModule, train_size=5000, num_workers=0),
        1,
        10,
        (8, 8),
        (20, 10),
        (0, 1, 3, 6, 8, 11, 14, 19),
    ),
    "cifar100": Task(
        partial(CIFAR100DataModule, train_size=10000, num_workers=0),
        3,
        100,
        (8, 8),
        (24, 6),
        (0, 2, 4, 7, 9, 12, 16, 23),
    ),
}


def main() -> None:
    """Train the teacher and its students."""
    parser = task_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="students of each choice")
    parser.add_argument("--choices", nargs="*", help="epochs, joined by commas where several teach together")
    options = parser.parse_args()
    students = open_students(options)[0]
    choices = [str(epoch) for epoch in TASKS[options.task].tried] if options.choices is None else options.choices
    for seed in range(options.seeds):
        for choice in ["alone", *choices]:
            students.train(choice, seed)


def task_parser(doc: str | None) -> argparse.ArgumentParser:
    """The arguments of all that works on a task's harvest."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("out", type=Path, help="folder for the harvest and students.json")
    parser.add_argument("--data", type=Path, help="root of the data module")
    parser.add_argument("--teacher_seed", type=int, default=0)
    return parser


def open_students(options: argparse.Namespace) -> tuple[Students, ImageDataModule]:
    """The students that the arguments name, their teacher trained, and the data."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # images of this size need none
    task = TASKS[options.task]
    data = task.data() if options.data is None else task.data(root=options.data)
    return Students(task, data, options.out, options.task, options.teacher_seed), data


class Students:
    """Trains a teacher once, and students of its snapshots; what is there already is not trained again.

    Args:
        task: What to train.
        data: Where the images are from.
        out: Folder for the harvest and the results.
        name: Of the task, for the record.
        teacher_seed: Seed of the teacher.
    """

    def __init__(self, task: Task, data: ImageDataModule, out: Path, name: str, teacher_seed: int) -> None:
        self._task, self._data, self._out = task, data, out
        self._path = out / "students.json"
        self._results: dict[str, Any] = {"task": name, "teacher_seed": teacher_seed, "students": {}}
        if self._path.exists():
            self._results = json.loads(self._path.read_text())
            return
        module = self._classifier(14, 16, task.epochs[0], teacher_seed)
        harvester = CheckpointHarvester(dirpath=out / "harvest", submodule="network")
        self._results["teacher"] = self._fit(module, task.epochs[0], harvester)
        self._write()

    def train(self, choice: str, seed: int) -> None:
        """Train one student and record it; ``choice`` is ``alone`` or epochs joined by commas."""
        done = self._results["students"].setdefault(choice, {})
        if str(seed) in done:
            return
        depth, width = self._task.student
        if choice == "alone":
            module: LightningModule = self._classifier(depth, width, self._task.epochs[1], seed)
        else:
            seed_everything(seed, verbose=False)
            module = DistillationModule(
                self._task.network(depth, width),
                self._task.network(14, 16),
                self._out / "harvest",
                choice=[int(epoch) for epoch in choice.split(",")],
                lr_scheduler=_in_three_parts(self._task.epochs[1]),
            )
        done[str(seed)] = self._fit(module, self._task.epochs[1])
        self._write()
        print(f"{self._results['task']} {choice} seed {seed}: {done[str(seed)]}", flush=True)

    def mean_accuracies(self) -> dict[int, float]:
        """Of the students of each single snapshot, over seeds, by epoch."""
        return mean_accuracies(self._results)

    def _classifier(self, depth: int, width: int, epochs: int, seed: int) -> Classifier:
        seed_everything(seed, verbose=False)
        return Classifier(self._task.network(depth, width), lr_scheduler=_in_three_parts(epochs))

    def _fit(self, module: LightningModule, epochs: int, *callbacks: Callback) -> dict[str, float]:
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            callbacks=list(callbacks),
        )
        started = time.perf_counter()
        trainer.fit(module, self._data)
        seconds = time.perf_counter() - started
        (result,) = trainer.test(module, self._data, verbose=False)
        return {"accuracy": result["test_acc"], "seconds": round(seconds, 1)}

    def _write(self) -> None:
        self._path.write_text(json.dumps(self._results, indent=1) + "\n")


def mean_accuracies(results: dict[str, Any]) -> dict[int, float]:
    """Of the students of each single snapshot in a ``students.json``, over seeds, by epoch."""
    return {
        int(choice): statistics.mean(run["accuracy"] for run in runs.values())
        for choice, runs in results["students"].items()
        if choice.isdigit()
    }


def _in_three_parts(epochs: int) -> Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]:
    """The learning rate falls to a tenth after a third and after two thirds of training."""
    return lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, max(1, epochs // 3), 0.1)


if __name__ == "__main__":
    main()
