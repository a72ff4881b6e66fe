"""Which harvests make good soups: ``python -m benchmarks.students.soup_harvest TASK OUT [--data ROOT]``.

OUT is a folder of ``python -m benchmarks.students``. The same training is harvested by each of ``HARVESTS``, a soup
is made of each, and students are trained of it. Writes ``benchmarks/results/soup_harvest/TASK.json``, which is resumed.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.rows import half_width
from benchmarks.students.tasks import TASKS
from benchmarks.students.training import open_students, task_parser
from benchmarks.students.wrong_labels import PROBE_SIZE, describe
from lightning_ckptkd import MISelector
from lightning_ckptkd.selecting.report import format_table

RESULTS = Path(__file__).parents[1] / "results" / "soup_harvest"
SCALES = {"none": "", "fitted": "|scale=fitted"}
EARLY = (0.0, 1 / 3)
HARVESTS: dict[str, dict[str, Any]] = {
    "every fourth epoch": {"every_n_epochs": 4},
    "every second epoch": {"every_n_epochs": 2},
    "every epoch": {"every_n_epochs": 1},
    "every epoch of the first third": {"every_n_epochs": 1, "window": EARLY},
    "four an epoch in the first third": {"an_epoch": 4, "window": EARLY},
}


def main() -> None:
    """Train and select what is missing, and print all tables."""
    parser = task_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of the students")
    options = parser.parse_args()
    students, data = open_students(options)
    task = TASKS[options.task]
    path = RESULTS / f"{options.task}.json"
    document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"title": task.title, "harvests": {}}
    data.setup("fit")
    last = str(task.epochs[0] - 1)
    for number, (name, settings) in enumerate(HARVESTS.items()):
        folder = options.out / f"harvest_for_soup_{number}"
        found = document["harvests"].setdefault(name, {})
        if "soup" not in found:
            found["snapshots"] = students.harvest_again(folder, **settings)
            selector = MISelector(probe_size=PROBE_SIZE, ensemble="soup")
            with contextlib.redirect_stdout(io.StringIO()):
                selection = selector.select(
                    folder, task.teacher(), data.val_dataloader(), train=data.train_dataloader(), progress=False
                )
            found["soup"] = describe(selection)
        choices = {scale: f"selected:{folder.name}{suffix}" for scale, suffix in SCALES.items()}
        students.train_all([*choices.values(), last], options.seeds)
        trained = students.results["students"]
        found["students"] = {scale: trained[choice] for scale, choice in choices.items()}
        document["full"] = trained[last]
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")
    print(
        table({name: json.loads(found.read_text()) for name in TASKS if (found := RESULTS / f"{name}.json").exists()})
    )


def table(documents: dict[str, dict[str, Any]]) -> str:
    """What students of each soup gain on those of the last snapshot, in points, as Markdown."""
    rows = []
    for document in documents.values():
        full = document["full"]
        for name, found in document["harvests"].items():
            soup, epochs = found["soup"]["soup"], sorted(found["soup"]["epochs"])
            of = f"{len(epochs)} of epochs {epochs[0]} to {epochs[-1]}" if soup.get("taken") else "none, a set instead"
            cells = [document["title"], name, str(found["snapshots"]), of]
            for scale in SCALES:
                runs = found["students"].get(scale, {})
                gains = [100 * (run["accuracy"] - full[seed]["accuracy"]) for seed, run in runs.items()]
                cells.append(f"{statistics.mean(gains):+.1f} ± {half_width(gains):.1f}" if gains else "")
            rows.append(cells)
    return format_table(["task", "harvest", "snapshots", "soup", "gain", "gain, scale fitted"], rows)


if __name__ == "__main__":
    main()
