"""The student of each snapshot: what a selection is to foretell.

    python -m benchmarks.students digits OUT
    python -m benchmarks.students fashion_mnist OUT --data FOLDER
    python -m benchmarks.students cifar100 OUT --data FOLDER

trains one teacher with a harvest of every epoch in OUT/harvest, then one student from each of some snapshots and
seeds, all with the same budget, and writes the accuracies to OUT/students.json after each. Started again, it goes on;
several processes with different ``--seeds`` can work in one folder. ``--choices 3 7,11`` trains students of those
epochs alone, of several together where they are joined by commas.

FOLDER is the ``root`` of the zoo's data module: ``FashionMNIST/raw`` or ``train/<class>/<image>`` is in it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import shutil
import statistics
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn

from benchmarks.students.tasks import TASKS, Task
from lightning_ckptkd import CheckpointHarvester, DistillationModule, SnapshotStore
from lightning_ckptkd.losses import KDLoss
from lightning_ckptkd.teachers import TeacherCache, TeacherSchedule
from lightning_ckptkd.zoo import Classifier
from lightning_ckptkd.zoo.images import ImageDataModule

ALONE, INDEPENDENT, SELECTED = "alone", "independent:", "selected:"


def main() -> None:
    """Train the teacher and its students."""
    parser = task_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the students")
    parser.add_argument("--choices", nargs="*", help="epochs, joined by commas where several teach together")
    parser.add_argument(
        "--independent", type=int, nargs="*", default=[], help="numbers of more teachers to train first"
    )
    options = parser.parse_args()
    students = open_students(options)[0]
    students.train_independent(options.independent)
    choices = [str(epoch) for epoch in TASKS[options.task].tried] if options.choices is None else options.choices
    students.train_all([ALONE, *choices], options.seeds)


def task_parser(doc: str | None) -> argparse.ArgumentParser:
    """The arguments of all that works on a task's harvest."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("out", type=Path, help="folder for the harvest and students.json")
    parser.add_argument("--data", type=Path, help="root of the data module")
    parser.add_argument("--teacher_seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser


def open_students(options: argparse.Namespace) -> tuple[Students, ImageDataModule]:
    """The students that the arguments name, their teacher trained, and the data."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # images of this size need none
    task = TASKS[options.task]
    data = task.open_data(options.data)
    return Students(task, data, options.out, options.task, options.teacher_seed, options.device), data


class Students:
    """Trains a teacher once, and students of its snapshots; what is there already is not trained again.

    Args:
        task: What to train.
        data: Where the images are from.
        out: Folder for the harvest and the results.
        name: Of the task, for the record.
        teacher_seed: Seed of the teacher.
        device: What all trainings run on.
    """

    def __init__(self, task: Task, data: ImageDataModule, out: Path, name: str, teacher_seed: int, device: str) -> None:
        self._task, self._data, self._out, self._device = task, data, out, device
        self._path = out / "students.json"
        self._teacher_seed = teacher_seed
        out.mkdir(parents=True, exist_ok=True)
        with self._locked() as results:
            results.setdefault("task", name)
            results.setdefault("teacher_seed", teacher_seed)
            results.setdefault("students", {})
        if "teacher" not in self.results:
            found = self._train_teacher(0)
            with self._locked() as results:
                results["teacher"] = found

    @property
    def results(self) -> dict[str, Any]:
        """What ``students.json`` holds."""
        found: dict[str, Any] = json.loads(self._path.read_text())
        return found

    def harvest(self, teacher: int) -> Path:
        """Folder of the harvest of the first teacher (0), or of another one that was trained independently."""
        return self._out / (f"harvest_{teacher}" if teacher else "harvest")

    def train_independent(self, teachers: Iterable[int]) -> None:
        """Train more teachers in the same way from other seeds; only their last snapshot is kept."""
        for teacher in teachers:
            if str(teacher) in self.results.get("independent", {}):
                continue
            found = self._train_teacher(teacher)
            with self._locked() as results:
                results.setdefault("independent", {})[str(teacher)] = found

    def train_all(self, choices: Sequence[str], seeds: Iterable[int]) -> None:
        """Train students of all choices, seed by seed.

        Args:
            choices: ``alone``; epochs of the first teacher joined by commas; ``independent:`` and the numbers of
                teachers, of which the last snapshots teach together; or ``selected:`` and a harvest of the folder,
                whose selection is taken. ``|scale=`` and ``|alpha=`` after it change the loss,
                which else takes all logits as they are.
            seeds: Of the students; for one seed they begin alike and see the same samples.
        """
        epochs = sorted({epoch for choice in choices for epoch in _epochs(choice)})
        others = sorted({teacher for choice in choices for teacher in _independent(choice)})
        for seed in seeds:
            for choice in choices:
                if str(seed) in self.results["students"].get(choice, {}):
                    continue
                found = self._train_student(choice, seed, epochs, others)
                with self._locked() as results:
                    results["students"].setdefault(choice, {})[str(seed)] = found
                print(f"{self._out.name} {choice} seed {seed}: {found}", flush=True)

    def harvest_again(self, folder: Path, an_epoch: int | None = None, **settings: Any) -> int:
        """Train the first teacher once more and harvest it otherwise.

        Args:
            folder: Where to; what is there is removed.
            an_epoch: So many snapshots an epoch, as far as its number of steps allows.
            settings: Other options of :class:`CheckpointHarvester`.

        Returns:
            How many snapshots were taken.
        """
        shutil.rmtree(folder, ignore_errors=True)
        if an_epoch is not None:
            settings["every_n_train_steps"] = max(1, len(self._data.train_dataloader()) // an_epoch)
        self._fit_teacher(0, CheckpointHarvester(folder, submodule="network", **settings))
        return len(SnapshotStore.open(folder).snapshots)

    def mean_accuracies(self) -> dict[int, float]:
        """Of the students of each single snapshot, over seeds, by epoch."""
        return mean_accuracies(self.results)

    def _train_teacher(self, teacher: int) -> dict[str, float]:
        shutil.rmtree(self.harvest(teacher), ignore_errors=True)  # of a training that was cut short
        epochs = self._task.epochs[0]
        kept = {"epochs": [epochs - 1]} if teacher else {"every_n_epochs": self._task.every_n_epochs}
        return self._fit_teacher(teacher, CheckpointHarvester(self.harvest(teacher), submodule="network", **kept))

    def _fit_teacher(self, teacher: int, harvester: CheckpointHarvester) -> dict[str, float]:
        seed_everything(self._teacher_seed + 1000 * teacher, verbose=False)
        return self._fit(Classifier(_fast(self._task.teacher()), lr_scheduler=self._task.lr_scheduler(0)), harvester)

    def _train_student(self, choice: str, seed: int, epochs: list[int], others: list[int]) -> dict[str, float]:
        seed_everything(seed, verbose=False)
        student = _fast(self._task.student())
        lr_scheduler = self._task.lr_scheduler(1)
        if choice == ALONE:
            return self._fit(Classifier(student, lr_scheduler=lr_scheduler))
        options: dict[str, Any] = {"student": student, "teacher": self._task.teacher(), "lr_scheduler": lr_scheduler}
        choice, _, changed = choice.partition("|")
        option, _, value = changed.partition("=")
        options["kd_loss"] = KDLoss(scale=value if option == "scale" else "none")
        if option == "alpha":
            options["alpha"] = float(value)
        if choice.startswith(SELECTED):
            name = choice.removeprefix(SELECTED)
            options |= {"snapshots": self._out / name, "choice": "selected"}
            if self._task.views:
                options["cache"] = TeacherCache(self._out / "cache" / name, views=self._task.views)
            return self._fit(DistillationModule(**options))
        if _independent(choice):
            wanted, all_of_them, name = _independent(choice), others, "independent"
            taken = all_of_them if self._task.views else wanted
            options |= {"snapshots": [str(self.harvest(teacher)) for teacher in taken], "choice": "full"}
        else:
            wanted, all_of_them, name = _epochs(choice), epochs, "epochs"
            options |= {"snapshots": self.harvest(0), "choice": all_of_them if self._task.views else wanted}
        if self._task.views:  # one cache of all teachers for all students
            places = [all_of_them.index(number) for number in wanted]
            folder = self._out / "cache" / f"{name}_{'_'.join(map(str, all_of_them))}"
            options |= {"schedule": Always(places), "cache": TeacherCache(folder, views=self._task.views)}
        return self._fit(DistillationModule(**options))

    def _fit(self, module: LightningModule, *callbacks: Callback) -> dict[str, float]:
        started = time.perf_counter()
        trainer = fit(module, self._data, self._task.epochs[0 if callbacks else 1], *callbacks, device=self._device)
        seconds = time.perf_counter() - started
        network = module.student if isinstance(module, DistillationModule) else module.network
        (result,) = trainer.test(Classifier(network), self._data, verbose=False)  # type: ignore[arg-type]
        return {"accuracy": result["test_acc"], "seconds": round(seconds, 1)}

    def _locked(self) -> _LockedResults:
        return _LockedResults(self._path)


def fit(
    module: LightningModule, data: ImageDataModule, epochs: int, *callbacks: Callback, device: str = "cpu"
) -> Trainer:
    """Train on one device, without validation."""
    trainer = Trainer(
        max_epochs=epochs,
        accelerator=device,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        callbacks=list(callbacks),
    )
    trainer.fit(module, data)
    return trainer


class Always(TeacherSchedule):
    """The same teachers at every step: some of those that the cache holds.

    Args:
        places: Of the ensemble.
    """

    def __init__(self, places: list[int]) -> None:
        self.places = places

    def teachers(self, epochs: Sequence[int], step: int, epoch: int, part: float) -> list[int]:
        """Places of the teachers of one step."""
        return self.places


class _LockedResults:
    """A JSON file that several processes change in turn."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> dict[str, Any]:
        self._lock = self._path.with_suffix(".lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._results: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}
        return self._results

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            new = self._path.with_suffix(".new")
            new.write_text(json.dumps(self._results, indent=1) + "\n")
            new.replace(self._path)
        self._lock.close()


def mean_accuracies(results: dict[str, Any]) -> dict[int, float]:
    """Of the students of each single snapshot in a ``students.json``, over seeds, by epoch."""
    return {
        int(choice): statistics.mean(run["accuracy"] for run in runs.values())
        for choice, runs in results["students"].items()
        if choice.isdigit()
    }


def _epochs(choice: str) -> list[int]:
    if choice.startswith((ALONE, INDEPENDENT, SELECTED)):
        return []
    return [int(epoch) for epoch in choice.partition("|")[0].split(",")]


def _independent(choice: str) -> list[int]:
    return [int(n) for n in choice.removeprefix(INDEPENDENT).split(",")] if choice.startswith(INDEPENDENT) else []


def _fast(network: nn.Module) -> nn.Module:
    """Channels last, but not where they are no multiple of 8: torch 2.15's gradient then writes past its memory."""
    channels = [module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)]
    return network if any(number % 8 for number in channels) else network.to(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
