"""The information plane of a training run, drawn from its harvest.

    python -m benchmarks.students.information_plane fashion_mnist OUT --data FOLDER
    python -m benchmarks.students.information_plane cifar100 OUT --data FOLDER

trains the teacher of ``python -m benchmarks.students`` with a harvest in OUT, unless it is there already, scores every
snapshot with the default estimators on 2,000 validation images, and writes the selector's picture to
``docs/images/plane_TASK.png`` and its numbers to ``benchmarks/results/planes/TASK.json``. Where OUT has students of
the snapshots, their accuracies are beside them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.students.tasks import TASKS
from benchmarks.students.training import open_students, task_parser
from lightning_ckptkd import MISelector
from lightning_ckptkd.selecting.picture import PICTURE_NAME
from lightning_ckptkd.selecting.report import format_table

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results" / "planes"
PICTURES = REPOSITORY / "docs" / "images"
PROBE_SIZE = 2000


def main() -> None:
    """Train if need be, score, draw."""
    options = task_parser(__doc__).parse_args()
    opened, data = open_students(options)
    students = opened.mean_accuracies()
    data.setup("fit")
    harvest, network = options.out / "harvest", TASKS[options.task].teacher()
    selector = MISelector(probe_size=PROBE_SIZE, ensemble="top")
    selection = selector.select(harvest, network, data.val_dataloader(), device=options.device)
    points = [
        {
            "epoch": candidate.epoch,
            "input_information": candidate.input_information,
            "input_error": candidate.input_error,
            "label_information": candidate.label_information,
            "label_error": candidate.label_error,
            "probe_accuracy": candidate.accuracy,
            "rank": candidate.rank,
            "student_accuracy": students.get(candidate.epoch),
        }
        for candidate in selection.candidates
    ]
    RESULTS.mkdir(exist_ok=True)
    print(table(points))
    document = {"probe": selection.probe, "settings": selection.settings, "snapshots": points}
    (RESULTS / f"{options.task}.json").write_text(json.dumps(document, indent=1) + "\n")
    shutil.copy(harvest / PICTURE_NAME, PICTURES / f"plane_{options.task}.png")


def table(points: list[dict[str, Any]]) -> str:
    """The snapshots that taught, as Markdown."""
    header = ["epoch", "I(X;F) nats", "I(Y;F) nats", "accuracy % (probe)", "students' accuracy % (test)"]
    rows = [
        [
            str(point["epoch"]),
            f"{point['input_information']:.2f} ± {point['input_error']:.2f}",
            f"{point['label_information']:.3f} ± {point['label_error']:.3f}",
            f"{100 * point['probe_accuracy']:.1f}",
            f"{100 * point['student_accuracy']:.2f}",
        ]
        for point in points
        if point["student_accuracy"] is not None
    ]
    return format_table(header, rows)


if __name__ == "__main__":
    main()
