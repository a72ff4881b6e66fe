"""What choices, soups and scales are worth: ``python -m benchmarks.students.wrong_labels TASK OUT [--data ROOT]``.

OUT is a folder of ``python -m benchmarks.students``: a harvest, and the students of single snapshots and of no teacher.
This adds what the selection chooses by each rule (:data:`CHOICES`), its soups, and losses with scaled logits, and the
students of each, and writes ``benchmarks/results/wrong_labels/TASK.json``. Stopped at any point, it goes on there.
``--only table`` prints the tables of all tasks that are there.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.rows import half_width
from benchmarks.students.tasks import TASKS, Task
from benchmarks.students.training import ALONE, Students, open_students, task_parser
from lightning_ckptkd import MISelector
from lightning_ckptkd.selecting import Soup
from lightning_ckptkd.selecting.report import format_table
from lightning_ckptkd.selecting.rules import MI, Accuracy, Loss
from lightning_ckptkd.snapshots import Selection
from lightning_ckptkd.zoo.images import ImageDataModule

RESULTS = Path(__file__).parents[1] / "results" / "wrong_labels"
PROBE_SIZE, BARELY = 2000, 0.5  # points
CHOICES: dict[str, dict[str, Any]] = {
    "half": {"rule": "half"},
    "accuracy": {"rule": Accuracy(), "num_teachers": 1},
    "accuracy, earlier": {"rule": Accuracy(ties="earlier"), "num_teachers": 1},
    "loss": {"rule": Loss(), "num_teachers": 1},
    "loss, earlier": {"rule": Loss(ties="earlier"), "num_teachers": 1},
    "MI": {"num_teachers": 1},
    "MI, earlier": {"rule": MI(ties="earlier"), "num_teachers": 1},
    "MI, score": {"rule": MI(ties="score"), "num_teachers": 1},
    "I(Y;F) alone": {"rule": MI(input_weight=0), "num_teachers": 1},
    "I(Y;F) alone, earlier": {"rule": MI(input_weight=0, ties="earlier"), "num_teachers": 1},
    "I(X;F|Y)": {"rule": MI(given_label=True), "num_teachers": 1},
    "MI without a floor": {"rule": MI(label_floor=0.0), "num_teachers": 1},
    "top 3": {"num_teachers": 3},
    "top 3, earlier": {"rule": MI(ties="earlier"), "num_teachers": 3},
    "top 3, score": {"rule": MI(ties="score"), "num_teachers": 3},
    "auto": {"num_teachers": "auto"},
    "auto, earlier": {"rule": MI(ties="earlier"), "num_teachers": "auto"},
    "auto, score": {"rule": MI(ties="score"), "num_teachers": "auto"},
    "greedy": {"ensemble": "greedy"},
}
SOUPS = {"soup": Soup(), "window soup": Soup("window")}
SCALES = ("fitted", "standardised")
ALPHAS = (0.3, 0.7)
DRAWN = (
    ("no teacher", "#888888", "no teacher"),
    ("top 3, score", "#d55e00", "of the three that are chosen"),
    ("soup", "#009e73", "of a soup"),
)
PICTURE = Path(__file__).parents[2] / "docs" / "images" / "wrong_labels.png"


def main() -> None:
    """Do what is missing."""
    parser = task_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of the students")
    parser.add_argument("--only", choices=["students", "table"], nargs="+", default=["students", "table"])
    parser.add_argument("--arms", nargs="+", help="only these rows")
    options = parser.parse_args()
    if "students" in options.only:
        students, data = open_students(options)
        task = TASKS[options.task]
        chosen = select_all(task, students, data, options.out)
        students.train_all(list(arms(task, chosen, options.arms).values()), options.seeds)
        keep(options.task, students.results, chosen)
    if "table" in options.only:
        found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
        documents = {name: found[name] for name in TASKS if name in found}
        print(table(documents), foretold(documents), sep="\n\n")
        draw(documents, PICTURE)


def select_all(task: Task, students: Students, data: ImageDataModule, out: Path) -> dict[str, Any]:
    """What each rule chooses, as epochs; of a soup its members, and the folder of the harvest that it is in."""
    path = out / "chosen.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    data.setup("fit")
    for name, options in {**CHOICES, **{name: {"ensemble": soup} for name, soup in SOUPS.items()}}.items():
        if name in found:
            continue
        harvest = students.harvest(0)
        if name in SOUPS:
            harvest = out / f"harvest_{name.replace(' ', '_')}"
            shutil.rmtree(harvest, ignore_errors=True)
            shutil.copytree(students.harvest(0), harvest)
        with contextlib.redirect_stdout(io.StringIO()):
            selection = MISelector(probe_size=PROBE_SIZE, **options).select(
                harvest, task.teacher(), data.val_dataloader(), train=data.train_dataloader(), progress=False
            )
        found[name] = describe(selection)
        if name in SOUPS:
            found[name]["harvest"] = harvest.name
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(name, found[name]["epochs"], found[name]["worth"], flush=True)
    return found


def describe(selection: Selection) -> dict[str, Any]:
    """What is kept of a selection."""
    epochs = {candidate.file: candidate.epoch for candidate in selection.candidates}
    worth = None if selection.worth is None else vars(selection.worth)
    soup = {key: value for key, value in selection.soup.items() if key not in ("file", "sha256")}
    return {"epochs": [epochs[file] for file in selection.taught_by], "worth": worth, "soup": soup}


def arms(task: Task, chosen: dict[str, Any], wanted: list[str] | None = None) -> dict[str, str]:
    """What teaches in each row of the table, as :meth:`Students.train_all` has it; rows may be the same students."""
    last = str(task.epochs[0] - 1)
    rows = {"no teacher": ALONE, "full": last}
    for name, found in chosen.items():
        together = ",".join(map(str, sorted(found["epochs"])))
        if name not in SOUPS:
            rows[name] = together
            continue
        rows[name] = f"selected:{found['harvest']}"
        if found["soup"].get("taken"):
            rows[f"{name}'s members, mean of logits"] = together
    for name in ("full", "MI, earlier", "auto, earlier", "soup"):
        rows |= {f"{name}, {scale}": f"{rows[name]}|scale={scale}" for scale in SCALES}
    if task.epochs[1] > 20:  # short students only tell noise
        for name, alpha in itertools.product(("full", "MI, earlier"), ALPHAS):
            rows[f"{name}, alpha {alpha}"] = f"{rows[name]}|alpha={alpha}"
    return {name: choice for name, choice in rows.items() if wanted is None or name in wanted}


def keep(name: str, results: dict[str, Any], chosen: dict[str, Any]) -> None:
    """Raw numbers."""
    RESULTS.mkdir(exist_ok=True, parents=True)
    machine = f"CPU, {os.cpu_count()} cores"
    document = {**results, "title": TASKS[name].title, "chosen": chosen, "device": machine}
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


def accuracies(document: dict[str, Any], choice: str) -> dict[int, float]:
    """Of a choice's students in percent, by seed."""
    runs = document["students"].get(choice, {})
    return {int(seed): 100 * run["accuracy"] for seed, run in runs.items()}


def oracle(document: dict[str, Any]) -> str:
    """The single snapshot with the best students."""
    singles = [choice for choice in document["students"] if choice.isdigit()]
    return max(singles, key=lambda choice: statistics.mean(accuracies(document, choice).values()))


def gains(document: dict[str, Any], choice: str, other: str) -> list[float]:
    """Students of one choice less those of another of the same seeds, in points."""
    one, two = accuracies(document, choice), accuracies(document, other)
    return [one[seed] - two[seed] for seed in sorted(set(one) & set(two))]


def table(documents: dict[str, dict[str, Any]]) -> str:
    """A line for each row, a column for each task: points gained on the full teacher's students; means over tasks."""
    rows: dict[str, list[str]] = {}
    means: dict[str, list[float]] = {}
    regrets: dict[str, list[float]] = {}
    for name, document in documents.items():
        found = arms(TASKS[name], document["chosen"])
        last = str(TASKS[name].epochs[0] - 1)
        best = oracle(document)
        for row, choice in {**found, "oracle": best}.items():
            gained = gains(document, choice, last)
            cells = rows.setdefault(row, ["" for _ in documents])
            if not gained:
                continue
            mean = statistics.mean(gained)
            width = f" ± {half_width(gained):.1f}" if choice != last and len(gained) > 1 else ""
            cells[list(documents).index(name)] = f"{mean:+.1f}{width}"
            means.setdefault(row, []).append(mean)
            regrets.setdefault(row, []).append(-statistics.mean(gains(document, choice, best)))
    cells = [
        [
            row,
            *own,
            *([f"{statistics.mean(part[row]):+.2f}" for part in (means, regrets)] if row in means else ["", ""]),
        ]
        for row, own in rows.items()
    ]
    return format_table(["taught by", *documents, "mean gain", "mean regret"], cells)


def foretold(documents: dict[str, dict[str, Any]], row: str = "top 3, score") -> str:
    """How often the sentence of a selection was right: students of the chosen snapshots against the full teacher's.

    Args:
        documents: By task.
        row: Whose worth and students.
    """
    counts: dict[str, list[list[float]]] = {"it matters": [], "it does not": [], "it can't be said": []}
    for name, document in documents.items():
        worth = document["chosen"][row]["worth"]
        said = {True: "it matters", False: "it does not", None: "it can't be said"}[worth["matters"]]
        choice = arms(TASKS[name], document["chosen"])[row]
        counts[said].append(gains(document, choice, str(TASKS[name].epochs[0] - 1)))
    cells = []
    for said, tasks in counts.items():
        pairs = [gain for task in tasks for gain in task]
        more, less = (sum(sign * gain > BARELY for gain in pairs) for sign in (1, -1))
        mean = f"{statistics.mean(map(statistics.mean, tasks)):+.1f}" if tasks else ""
        cells.append([said, *map(str, (len(tasks), len(pairs), more, len(pairs) - more - less, less)), mean])
    header = [
        "the selection says",
        "runs",
        "pairs of students",
        f"more than {BARELY} better",
        "within",
        "worse",
        "mean gain",
    ]
    return format_table(header, cells)


def draw(documents: dict[str, dict[str, Any]], path: Path) -> None:
    """A panel for each task: students over the epoch of their teacher, and what choices reach."""
    across = 4
    figure = Figure(figsize=(3.4 * across, 3.1 * -(-len(documents) // across)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(-(-len(documents) // across), across, squeeze=False).flat
    for (name, document), axes in zip(documents.items(), panels, strict=False):
        epochs = sorted(int(choice) for choice in document["students"] if choice.isdigit())
        means = [statistics.mean(accuracies(document, str(epoch)).values()) for epoch in epochs]
        axes.plot(epochs, means, "o-", color="#0072b2", ms=4, label="of the snapshot of that epoch")
        found = arms(TASKS[name], document["chosen"])
        for row, colour, words in DRAWN:
            own = accuracies(document, found[row])
            if own:
                axes.axhline(statistics.mean(own.values()), color=colour, ls="--", label=words)
        axes.set(title=name, xlabel="teacher's epoch", ylabel="student's test accuracy, %")
    for axes in panels:
        axes.set_visible(False)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
