"""From a harvest to a trained student: ``python -m benchmarks.distillation.whole_way TASK OUT [--data ROOT]``.

OUT is a folder of ``python -m benchmarks.students TASK OUT``, whose harvest is there. Ours selects and distils, by
three ways; torchdistill distils the last snapshot, the published loop three snapshots of the second half of the run,
since the authors' selection was never released. Ten epochs each, the same optimiser and schedule, images in memory.
Every training is a process of its own that has nothing compiled or remembered; its imports are not counted.
``--draw`` makes the table and the picture of all tasks that were measured.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.distillation.peer_loops import (
    PublishedLoop,
    Stopwatch,
    TorchdistillTraining,
    make_loader,
)
from benchmarks.harvest.machine import describe_machine, say, silence_lightning
from benchmarks.harvest.trainings import quiet_trainer
from benchmarks.students.tasks import TASKS, Task
from benchmarks.students.training import task_parser
from lightning_ckptkd import DistillationModule, MISelector, SnapshotStore
from lightning_ckptkd.selecting.report import format_table
from lightning_ckptkd.teachers import TeacherCache, TeacherEnsemble
from lightning_ckptkd.zoo import Classifier

RESULTS = Path(__file__).parents[1] / "results" / "whole_way"
PICTURE = Path(__file__).parents[2] / "docs" / "images" / "whole_way.png"
EPOCHS, CPU = 10, torch.device("cpu")
SOUP, LIVE, CACHED = "select a soup (the default), distil", "select three, distil", "select three, distil, cached"
TORCHDISTILL, PUBLISHED = "torchdistill, the last snapshot", "published loop, three snapshots"
ALONE = "no teacher"
COLOURS = {LIVE: "#d55e00", CACHED: "#e69f00", SOUP: "#009e73", TORCHDISTILL: "#0072b2", PUBLISHED: "#56b4e9"}
Images = dict[str, TensorDataset]


def main() -> None:
    """Measure what is missing, or draw."""
    parser = task_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the students")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="these alone")
    parser.add_argument("--draw", action="store_true", help="only the table and the picture")
    parser.add_argument("--worker", nargs=2, metavar=("WAY", "SEED"), help="one training, its numbers as JSON")
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(train_one(TASKS[options.task], options, options.worker[0], int(options.worker[1]))))
        return
    if not options.draw:
        measure(options)
    documents = {name: json.loads(file.read_text()) for name in TASKS if (file := RESULTS / f"{name}.json").exists()}
    print(table(documents))
    draw(documents, PICTURE)


def measure(options: Any) -> None:
    """Train each student in turn; what is in the results is not trained again."""
    path = RESULTS / f"{options.task}.json"
    document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    document["title"] = TASKS[options.task].title
    document["machine"] = describe_machine(CPU, options.out)
    for seed in options.seeds:
        for way in options.ways:
            runs = document["runs"].setdefault(way, {})
            if str(seed) not in runs:
                runs[str(seed)] = run_worker(way, seed)
                say(f"{options.task}, {way}, seed {seed}: {runs[str(seed)]}")
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(document, indent=1) + "\n")


def run_worker(way: str, seed: int) -> dict[str, Any]:
    """One training in a process of its own, of one thread."""
    with tempfile.TemporaryDirectory() as empty:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": empty,
            "TORCHINDUCTOR_CACHE_DIR": f"{empty}/inductor",
        }
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.distillation.whole_way", *sys.argv[1:]]
        done = subprocess.run(
            [*command, "--worker", way, str(seed)], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def train_one(task: Task, options: Any, way: str, seed: int) -> dict[str, Any]:
    """Seconds from the harvest to the student, and its share of right answers on the test images."""
    silence_lightning()
    data = task.open_data(options.data)
    data.prepare_data()
    data.setup("fit")
    images = {split: in_memory(data.sets[split]) for split in ("train", "val", "test")}
    torch.manual_seed(seed)
    student = task.student()
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        harvest = Path(scratch, "harvest")  # a selection writes there
        shutil.copytree(options.out / "harvest", harvest, ignore=shutil.ignore_patterns("scores*", "selection*"))
        wall, processor = time.perf_counter(), processor_seconds()
        WAYS[way](task, harvest, images, student, Path(scratch))
        spent = {"seconds": time.perf_counter() - wall, "processor_seconds": processor_seconds() - processor}
    return {**{name: round(value, 2) for name, value in spent.items()}, "accuracy": accuracy(student, images["test"])}


def in_memory(split: Any) -> TensorDataset:
    """All samples of a data set as two tensors."""
    inputs, labels = zip(*(split[index] for index in range(len(split))), strict=True)
    return TensorDataset(torch.stack([Tensor(item) for item in inputs]), torch.tensor(labels))


def processor_seconds() -> float:
    """Of this process and of those that it started and waited for, compilers among them."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def accuracy(network: nn.Module, data: TensorDataset) -> float:
    """Share of right answers."""
    network.eval()
    with torch.inference_mode():
        right = [int((network(inputs).argmax(1) == labels).sum()) for inputs, labels in DataLoader(data, 500)]
    return sum(right) / len(data)


def ours(
    task: Task,
    harvest: Path,
    images: Images,
    student: nn.Module,
    scratch: Path,
    number: int | None = None,
    cached: bool = False,
) -> None:
    """MISelector, then DistillationModule."""
    train = make_loader(images["train"], CPU)
    MISelector(num_teachers=number).select(harvest, task.teacher(), DataLoader(images["val"], 256), train=train)
    module = DistillationModule(
        student,
        task.teacher(),
        harvest,
        lr_scheduler=partial(CosineAnnealingLR, T_max=EPOCHS),
        **({"cache": TeacherCache(scratch / "cache")} if cached else {}),  # type: ignore[arg-type]
    )
    quiet_trainer(CPU, scratch, [], max_epochs=EPOCHS).fit(module, train)


def alone(task: Task, harvest: Path, images: Images, student: nn.Module, scratch: Path) -> None:
    """Cross-entropy with Lightning."""
    module = Classifier(student, lr_scheduler=partial(CosineAnnealingLR, T_max=EPOCHS))
    quiet_trainer(CPU, scratch, [], max_epochs=EPOCHS).fit(module, make_loader(images["train"], CPU))


def peer(
    task: Task,
    harvest: Path,
    images: Images,
    student: nn.Module,
    scratch: Path,
    training: Callable[..., PublishedLoop | TorchdistillTraining],
    teachers: int,
) -> None:
    """One of the other loops, with as many snapshots, the last and those before it, evenly over the second half."""
    store = SnapshotStore.open(harvest)
    last = len(store.snapshots) - 1
    places = [last - round(last / 2 * place / max(1, teachers - 1)) for place in range(teachers)]
    chosen = [store.snapshots[place] for place in places]
    loop = training(student, TeacherEnsemble.load(store, chosen, task.teacher()).members, images["train"], CPU)
    schedule = CosineAnnealingLR(loop.optimizer, EPOCHS)
    for _ in range(EPOCHS):
        loop.run_epoch(Stopwatch(CPU, each_step=False))
        schedule.step()


WAYS: dict[str, Callable[[Task, Path, Images, nn.Module, Path], None]] = {
    SOUP: ours,
    LIVE: partial(ours, number=3),
    CACHED: partial(ours, number=3, cached=True),
    TORCHDISTILL: partial(peer, training=TorchdistillTraining, teachers=1),
    PUBLISHED: partial(peer, training=PublishedLoop, teachers=3),
    ALONE: alone,
}


def table(documents: dict[str, dict[str, Any]]) -> str:
    """Seconds of one processor and right answers of each way, mean of the seeds, as Markdown."""
    rows = []
    for document in documents.values():
        for way, runs in document["runs"].items():
            found = list(runs.values())
            seconds = statistics.mean(run["processor_seconds"] for run in found)
            right = [100 * run["accuracy"] for run in found]
            spread = f"{statistics.mean(right):.1f} ({min(right):.1f} to {max(right):.1f})"
            rows.append([document["title"], way, f"{seconds:.0f}", spread, str(len(found))])
    return format_table(["task", "way", "processor seconds", "test accuracy, %", "seeds"], rows)


def draw(documents: dict[str, dict[str, Any]], path: Path) -> None:
    """A panel for each task: how long it takes, and how good the student is."""
    figure = Figure(figsize=(5 * len(documents), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, document in zip(figure.subplots(1, len(documents), squeeze=False)[0], documents.values(), strict=True):
        for way, runs in document["runs"].items():
            seconds = statistics.mean(run["processor_seconds"] for run in runs.values())
            right = [100 * run["accuracy"] for run in runs.values()]
            middle = statistics.mean(right)
            reach = [[middle - min(right)], [max(right) - middle]]
            axes.errorbar(seconds, middle, reach, fmt="o", color=COLOURS.get(way, "#888888"), label=way, capsize=3)
        axes.set(xlabel="processor seconds from the harvest to the student", title=textwrap.fill(document["title"], 40))
        axes.set_xlim(left=0)
    figure.axes[0].set_ylabel("student's test accuracy, %")
    figure.axes[-1].legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
