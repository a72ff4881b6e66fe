"""Students from cached logits against students from live teachers, on Fashion-MNIST.

Parts ``accuracy`` and ``views`` of :mod:`benchmarks.distillation.costs`. 5,000 training images, four snapshots of one
ResNet-14 of width 16, students that are ResNet-8 of width 8, 10 epochs each. A student that is in the results is not
trained again.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from torch.utils.data import DataLoader, DistributedSampler
from typing_extensions import override

from benchmarks.rows import Row, half_width
from benchmarks.students.tasks import TASKS
from benchmarks.students.training import fit
from lightning_ckptkd import CheckpointHarvester, DistillationModule, TeacherCache
from lightning_ckptkd.zoo import Classifier, FashionMNISTDataModule

SEEDS, VIEWS_SEEDS, VIEWS = 5, 3, (1, 2, 4)
_TASK = TASKS["fashion_mnist"]


class InOneOrder(FashionMNISTDataModule):
    """Training images in an order that depends on seed and epoch alone: the same for live and cached teachers."""

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        images = self.sets["train"]
        return DataLoader(images, self.batch_size, sampler=DistributedSampler(images, 1, 0, seed=torch.initial_seed()))


class Study:
    """Trains students, and the teacher where there is no harvest.

    Args:
        data: Root of the data module.
        harvest: Of the teacher; None takes ``harvest`` in ``data``.
        teachers: Epochs of the harvest.
        results: The students that are known, by kind and seed; new ones are added.
        write: Writes the results; called after each student.
    """

    def __init__(
        self,
        data: Path,
        harvest: Path | None,
        teachers: Sequence[int],
        results: dict[str, Any],
        write: Callable[[], None],
    ) -> None:
        self._make_data = partial(InOneOrder, data, train_size=5000, num_workers=0)
        self._harvest = data / "harvest" if harvest is None else harvest
        self._teachers = list(teachers)
        self._results, self._write = results, write
        known = results.setdefault("teachers", self._teachers)
        if known != self._teachers:
            raise SystemExit(f"The students in the results have the teachers {known}. Give --teachers as they are.")

    def accuracy(self, seed: int, *, augment: bool, views: int | None) -> float:
        """Test accuracy in percent of one student; ``views`` None has live teachers."""
        kind = f"{'augmented' if augment else 'plain'} images, {'live' if views is None else f'{views} cached views'}"
        done = self._results.setdefault(kind, {})
        if str(seed) not in done:
            started = time.perf_counter()
            accuracy = self._train(seed, augment, views)
            done[str(seed)] = {"accuracy": accuracy, "seconds": round(time.perf_counter() - started, 1)}
            self._write()
            print(f"{kind}, seed {seed}: {done[str(seed)]}", flush=True)
        return 100 * float(done[str(seed)]["accuracy"])

    def _train(self, seed: int, augment: bool, views: int | None) -> float:
        data = self._make_data(augment=augment)
        if not self._harvest.exists():
            self._train_teacher()
        with tempfile.TemporaryDirectory() as folder:
            seed_everything(seed, verbose=False)
            module = DistillationModule(
                _TASK.student(),
                _TASK.teacher(),
                self._harvest,
                choice=self._teachers,
                cache=None if views is None else TeacherCache(folder, views=views, seed=seed),
                lr_scheduler=_TASK.lr_scheduler(1),
            )
            trainer = fit(module, data, _TASK.epochs[1])
        (found,) = trainer.test(Classifier(module.student), data, verbose=False)  # the teachers are not asked again
        return found["test_acc"]

    def _train_teacher(self) -> None:
        seed_everything(0, verbose=False)
        module = Classifier(_TASK.teacher(), lr_scheduler=_TASK.lr_scheduler(0))
        fit(module, self._make_data(), _TASK.epochs[0], CheckpointHarvester(dirpath=self._harvest, submodule="network"))


def accuracy_rows(study: Study) -> list[Row]:
    """The same images in the same order, so that live teachers and cached logits differ in their precision alone."""
    pairs = [[study.accuracy(seed, augment=False, views=views) for views in (1, None)] for seed in range(SEEDS)]
    differences = [cached - live for cached, live in pairs]
    mean, half = statistics.mean(differences), half_width(differences)
    means = [statistics.mean(column) for column in zip(*pairs, strict=True)]
    note = (
        f"{mean:+.2f} ± {half:.2f} points over {SEEDS} seeds; cached {means[0]:.2f} %, live {means[1]:.2f} %; "
        f"differences {', '.join(f'{value:+.2f}' for value in differences)}"
    )
    return [Row("difference of accuracy, cached from live / half its 95% interval", abs(mean) / half, 1.0, note)]


def views_rows(study: Study) -> list[Row]:
    """Accuracy with random crops and flips, by number of cached views; live teachers see new ones each epoch."""
    rows = []
    for views in (*VIEWS, None):
        found = [study.accuracy(seed, augment=True, views=views) for seed in range(VIEWS_SEEDS)]
        note = f"± {half_width(found):.2f}; {', '.join(f'{value:.2f}' for value in found)}"
        rows.append(
            Row("live teachers" if views is None else f"{views} cached views", statistics.mean(found), None, note)
        )
    return rows
