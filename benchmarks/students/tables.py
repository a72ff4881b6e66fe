"""The paper's tables rerun on a task: ``python -m benchmarks.students.tables TASK OUT [--data ROOT]``.

Trains the teachers once (in OUT/harvest, and three independent ones), selects, distils students of 5 seeds from every
choice, and writes ``benchmarks/results/tables/TASK.json`` and ``docs/images/table_TASK.png``. Stopped at any point, it
goes on there when it is started again; two processes with different ``--seeds`` can share the students. ``--only
table`` makes table and picture of what is there.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from benchmarks.rows import half_width, mean_of_groups
from benchmarks.students.tasks import TASKS, WRONG_LABELS, Task
from benchmarks.students.training import ALONE, INDEPENDENT, Students, open_students, task_parser
from lightning_ckptkd import MISelector
from lightning_ckptkd.selecting import StudentProxy
from lightning_ckptkd.selecting.report import format_table
from lightning_ckptkd.snapshots import SnapshotStore
from lightning_ckptkd.teachers import load_teachers
from lightning_ckptkd.zoo.images import ImageDataModule

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results" / "tables"
PICTURES = REPOSITORY / "docs" / "images"
PROBE_SIZE, SEEDS, SIZES = 2000, (0, 1, 2, 3, 4), (2, 3, 4)
STEPS = ("teachers", "selections", "students", "table")


def main() -> None:
    """Do what is missing."""
    parser = task_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the students to train now")
    parser.add_argument("--only", choices=STEPS, nargs="+", default=STEPS)
    options = parser.parse_args()
    students, data = open_students(options)
    task = TASKS[options.task]
    if "teachers" in options.only:
        students.train_independent(range(1, max(SIZES)))
    selections = (
        select_all(task, students, data, options.out, options.device)
        if "selections" in options.only
        else read(options.out)
    )
    if "students" in options.only:
        choices = [*(str(epoch) for epoch in task.tried), *selections_choices(selections), *independent_choices()]
        students.train_all(list(dict.fromkeys([ALONE, *choices])), options.seeds)
    if "table" in options.only:
        write_table(options.task, students, data, selections, options.device)


def select_all(task: Task, students: Students, data: ImageDataModule, out: Path, device: str) -> dict[str, Any]:
    """What each rule chooses of the first harvest, best first, and how long it takes.

    Args:
        task: Whose harvest it is.
        students: Their teacher is trained.
        data: Where the probe set is from.
        out: Folder for ``selections.json``; what is in it already is not done again.
        device: What the snapshots run on.
    """
    data.setup("fit")
    found = read(out)
    proxy = StudentProxy(task.student(), steps=200, candidates=5)
    rules: dict[str, dict[str, Any]] = {
        "half-way": {"rule": "half", "num_teachers": 1},
        "MI": {"num_teachers": 1},
        "accuracy": {"rule": "accuracy", "num_teachers": 1},
        "student-aware": {"num_teachers": 1, "student_proxy": proxy},
    }
    for ensemble in ("top", "greedy", "spaced"):
        rules |= {f"{ensemble} {size}": {"ensemble": ensemble, "num_teachers": size} for size in SIZES}
    harvest = students.harvest(0)
    for name, rule in rules.items():
        if name in found:
            continue
        for scores in harvest.glob("*scores*.json"):
            scores.unlink()  # so that each rule's time is that of a first selection
        selector = MISelector(probe_size=PROBE_SIZE, **rule)
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            chosen = selector.select(
                harvest,
                task.teacher(),
                data.val_dataloader(),
                train=data.train_dataloader(),
                device=device,
                progress=False,
            )
        seconds = time.perf_counter() - started
        epochs = {candidate.file: candidate.epoch for candidate in chosen.candidates}
        found[name] = {"epochs": [epochs[file] for file in chosen.chosen], "seconds": round(seconds, 1)}
        write(out, found)
        print(f"{name}: {found[name]}", flush=True)
    latest = sorted((snapshot.epoch for snapshot in SnapshotStore.open(harvest).snapshots), reverse=True)
    found |= {f"last {size}": {"epochs": latest[:size], "seconds": 0.0} for size in SIZES}
    write(out, found)
    return found


def write(out: Path, selections: dict[str, Any]) -> None:
    """Keep the selections that were made."""
    (out / "selections.json").write_text(json.dumps(selections, indent=1) + "\n")


def read(out: Path) -> dict[str, Any]:
    """The selections that were made."""
    path = out / "selections.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def selections_choices(selections: dict[str, Any]) -> Iterator[str]:
    """The students that the selections ask for; sets of the same snapshots are one."""
    for selection in selections.values():
        yield as_choice(selection["epochs"])


def as_choice(epochs: list[int]) -> str:
    """A set of epochs as :meth:`Students.train_all` has it."""
    return ",".join(map(str, sorted(epochs)))


def independent_choices() -> list[str]:
    """The full ensembles, of two teachers and more."""
    return [INDEPENDENT + ",".join(map(str, range(size))) for size in SIZES]


def teacher_accuracies(
    task: Task, students: Students, data: ImageDataModule, choices: list[str], device: str
) -> dict[str, float]:
    """Test accuracy of the teachers of each choice together, by the mean of their logits."""
    data.setup("test")
    batches = list(data.test_dataloader())
    labels = torch.cat([y for _, y in batches])
    single: dict[str, Tensor] = {}

    def logits(folder: Path, epoch: int) -> Tensor:
        key = f"{folder} {epoch}"
        if key not in single:
            ensemble = load_teachers({str(folder): task.teacher()}, [epoch])[0].to(torch.device(device), torch.float32)
            single[key] = torch.cat([ensemble(x.to(device))[0].cpu() for x, _ in batches])
        return single[key]

    last = task.epochs[0] - 1
    found = {}
    for choice in choices:
        if choice.startswith(INDEPENDENT):
            members = [(students.harvest(int(n)), last) for n in choice.removeprefix(INDEPENDENT).split(",")]
        else:
            members = [(students.harvest(0), int(epoch)) for epoch in choice.split(",")]
        together = torch.stack([logits(*member) for member in members]).mean(0)
        found[choice] = float((together.argmax(1) == labels).float().mean())
    return found


def write_table(name: str, students: Students, data: ImageDataModule, selections: dict[str, Any], device: str) -> None:
    """Raw numbers, table and picture."""
    results = students.results
    choices = [choice for choice in results["students"] if choice != ALONE]
    document = {
        **results,
        "title": TASKS[name].title,
        "teacher_epochs": TASKS[name].epochs[0],
        "selections": selections,
        "teacher_accuracies": teacher_accuracies(TASKS[name], students, data, choices, device),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {os.cpu_count()} cores",
    }
    RESULTS.mkdir(exist_ok=True, parents=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    draw(document, PICTURES / f"table_{name}.png")
    others = read_results(wrong_labels=name in WRONG_LABELS)
    print(table(document), course(document), summary(others), sep="\n\n")


def read_results(*, wrong_labels: bool = False) -> dict[str, dict[str, Any]]:
    """What was written of each task with right, or of each with wrong labels, in the order of :data:`TASKS`."""
    names = [name for name in TASKS if (name in WRONG_LABELS) == wrong_labels]
    return {
        path.stem: json.loads(path.read_text())
        for path in (RESULTS / f"{name}.json" for name in names)
        if path.exists()
    }


def summary(documents: dict[str, dict[str, Any]]) -> str:
    """All tasks side by side, as Markdown: a student alone and the full teacher's, and what others gain on the latter.

    Args:
        documents: By task.
    """
    rows: dict[str, dict[str, str]] = {}
    gains: dict[str, list[list[float]]] = {}
    for task, results in documents.items():
        last = str(results["teacher_epochs"] - 1)
        for name, choice in {"student alone, %": ALONE, "full teacher, %": last}.items():
            rows.setdefault(name, {})[task] = _with_interval(accuracies(results, choice))
        for name, choice in {"student alone": ALONE, **choices_by_name(results)}.items():
            gains.setdefault(name, []).append(differences(results, choice, last))
            rows.setdefault(name, {})[task] = difference(results, choice, last) or "the same"
    cells = []
    for name, by_task in rows.items():
        own = gains.get(name, [])
        pooled = "{:+.2f} ± {:.2f}".format(*mean_of_groups(own)) if len(own) == len(documents) else ""
        cells.append([name, *(by_task.get(task, "") for task in documents), pooled])
    return format_table(["students of", *documents, "mean of all"], cells)


def table(results: dict[str, Any]) -> str:
    """The rows of the paper's tables and of ours, as Markdown."""
    length, last = results["teacher_epochs"], str(results["teacher_epochs"] - 1)
    teachers = [results["teacher"], *results["independent"].values()]
    seconds = statistics.median(teacher["seconds"] for teacher in teachers) / length
    cells = []
    for name, choice in {"student alone": ALONE, "full teacher": last, **choices_by_name(results)}.items():
        epochs = _teacher_epochs(name, choice, length)
        by_position = name == "half-way" or name.startswith("last")
        selecting = None if by_position else results["selections"].get(name, {}).get("seconds")
        own = accuracies(results, choice)
        teacher = results["teacher_accuracies"].get(choice)
        cells.append(
            [
                name,
                "" if choice == ALONE or choice.startswith(INDEPENDENT) else choice.replace(",", ", "),
                "" if teacher is None else f"{100 * teacher:.1f}",
                _with_interval(own),
                difference(results, choice, last),
                f"{epochs}",
                f"{epochs * seconds:.0f}",
                "" if selecting is None else f"{selecting:.0f}",
            ]
        )
    header = [
        "teachers",
        "epochs",
        "their accuracy %",
        "student's accuracy %",
        "less that of the full teacher's",
        "teacher epochs",
        "seconds",
        "selection s",
    ]
    return format_table(header, cells)


def course(results: dict[str, Any]) -> str:
    """The student of each snapshot that was tried, as Markdown."""
    last = str(results["teacher_epochs"] - 1)
    rows = []
    for choice in sorted((choice for choice in results["students"] if choice.isdigit()), key=int):
        own = accuracies(results, choice)
        rows.append(
            [
                choice,
                f"{100 * results['teacher_accuracies'][choice]:.1f}",
                _with_interval(own),
                difference(results, choice, last),
            ]
        )
    return format_table(["epoch", "teacher's accuracy %", "student's accuracy %", "less the full teacher's"], rows)


def choices_by_name(results: dict[str, Any]) -> dict[str, str]:
    """What taught, beside the full teacher, under the names of the table's rows; single snapshots come first."""
    selections = sorted(results["selections"].items(), key=lambda item: len(item[1]["epochs"]) > 1)
    found = {name: as_choice(selection["epochs"]) for name, selection in selections}
    singles = [choice for choice in results["students"] if choice.isdigit()]
    found["best single one (oracle)"] = max(singles, key=lambda choice: statistics.mean(accuracies(results, choice)))
    full = sorted((choice for choice in results["students"] if choice.startswith(INDEPENDENT)), key=len)
    found |= {f"full ensemble of {choice.count(',') + 1}": choice for choice in full}
    return {name: choice for name, choice in found.items() if choice in results["students"]}


def _teacher_epochs(name: str, choice: str, length: int) -> int:
    """Epochs that have to be trained before the student can begin."""
    if choice == ALONE:
        return 0
    if choice.startswith(INDEPENDENT):
        return (choice.count(",") + 1) * length
    return int(choice) + 1 if name == "half-way" else length


def accuracies(results: dict[str, Any], choice: str) -> list[float]:
    """Of a choice's students in percent, by seed."""
    runs = results["students"][choice]
    return [100 * runs[seed]["accuracy"] for seed in sorted(runs, key=int)]


def differences(results: dict[str, Any], choice: str, other: str) -> list[float]:
    """Between two choices' students of the same seeds, in points."""
    one, two = results["students"][choice], results["students"][other]
    shared = sorted(set(one) & set(two), key=int)
    return [100 * (one[seed]["accuracy"] - two[seed]["accuracy"]) for seed in shared]


def difference(results: dict[str, Any], choice: str, other: str) -> str:
    """Mean and 95% interval of the differences; nothing where both are the same choice."""
    found = differences(results, choice, other)
    return "" if choice == other or not found else f"{statistics.mean(found):+.2f} ± {half_width(found):.2f}"


def _with_interval(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {half_width(values):.2f}"


def draw(results: dict[str, Any], path: Path) -> None:
    """Accuracy of teacher and student over the teacher's epochs, and of the ensembles' students."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=False, width_ratios=(3, 2))
    epochs = sorted((choice for choice in results["students"] if choice.isdigit()), key=int)
    numbers = [int(epoch) for epoch in epochs]
    means = [statistics.mean(accuracies(results, epoch)) for epoch in epochs]
    widths = [half_width(accuracies(results, epoch)) for epoch in epochs]
    left.errorbar(numbers, means, widths, marker="o", capsize=3, label="student of that snapshot")
    teachers = [100 * results["teacher_accuracies"][epoch] for epoch in epochs]
    left.plot(numbers, teachers, "s--", color="tab:gray", label="the snapshot itself")
    alone, width = accuracies(results, ALONE), half_width(accuracies(results, ALONE))
    mean = statistics.mean(alone)
    left.axhspan(mean - width, mean + width, color="tab:orange", alpha=0.25)
    left.axhline(mean, color="tab:orange", label="student alone")
    for name, colour in (("MI", "tab:red"), ("half-way", "tab:green")):
        if name in results["selections"]:
            left.axvline(results["selections"][name]["epochs"][0], color=colour, linestyle=":", label=name)
    left.set(xlabel="teacher's epoch", ylabel="test accuracy %", title=results["title"])
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(fontsize=8)
    rows = {"student alone": ALONE, "full teacher": str(results["teacher_epochs"] - 1), **choices_by_name(results)}
    found = {name: accuracies(results, choice) for name, choice in rows.items()}
    places = range(len(found))
    right.errorbar(
        [statistics.mean(own) for own in found.values()],
        places,
        xerr=[half_width(own) for own in found.values()],
        fmt="o",
        capsize=3,
    )
    right.set_yticks(places, list(found), fontsize=8)
    right.invert_yaxis()
    right.grid(axis="x", alpha=0.4)
    right.set(xlabel="student's test accuracy %, 95% interval over seeds")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
