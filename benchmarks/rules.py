"""How well each rule foretells the students: ``python -m benchmarks.rules OUT [OUT ...] [--data TASK=ROOT]``.

OUT are folders of ``python -m benchmarks.students``. For each rule and folder: Spearman's correlation between the score
of a snapshot and the mean accuracy of its students, and what the students of the rule's first choice lose against
those of the best snapshot that was tried, and gain against those of the last. Writes ``benchmarks/results/rules.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torchmetrics.functional import spearman_corrcoef

from benchmarks.students import mean_accuracies
from benchmarks.tasks import TASKS
from lightning_ckptkd import MISelector
from lightning_ckptkd.report import format_table
from lightning_ckptkd.snapshots import Selection

RESULTS = Path(__file__).parent / "results" / "rules.json"
PROBE_SIZE = 2000


@dataclass(frozen=True)
class Outcome:
    """One rule in one folder; accuracies in percentage points.

    Attributes:
        task: The folder's task and teacher seed.
        rule: What :class:`MISelector` was given.
        spearman: Correlation between scores and students' accuracies; None where all scores are equal.
        chosen: Epoch of the first choice, from 0.
        loss: Students of the best snapshot less those of the chosen one.
        gain: Students of the chosen snapshot less those of the last one.
    """

    task: str
    rule: dict[str, Any]
    spearman: float | None
    chosen: int
    loss: float
    gain: float


def rules() -> Iterator[dict[str, Any]]:
    """What is compared."""
    for normalisation in ("max", "minmax", "entropy"):
        for floor in (0.0, 0.8, 0.9, 0.95):
            yield {"normalisation": normalisation, "label_floor": floor}
    for normalisation in ("max", "entropy"):
        for option in (
            {"given_label": True},
            {"feature": "logits"},
            {"feature": "probabilities"},
            {"feature": "probabilities", "given_label": True},
            {"label_estimator": "logistic"},
        ):
            yield {**option, "normalisation": normalisation, "label_floor": 0.9}
    yield {"input_weight": 0.0}
    yield {"label_weight": 0.0}
    yield {"rule": "mcmi"}
    yield {"rule": "accuracy"}
    yield {"rule": "half"}
    yield {"rule": "full"}


def main() -> None:
    """Compare the rules."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, nargs="+", help="folders of benchmarks.students")
    parser.add_argument("--data", nargs="*", default=[], metavar="TASK=ROOT", help="roots of the data modules")
    options = parser.parse_args()
    roots = dict(item.split("=", 1) for item in options.data)
    outcomes = [outcome for folder in options.out for outcome in compare(folder, roots)]
    RESULTS.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    print(table(outcomes))


def compare(folder: Path, roots: dict[str, str]) -> Iterator[Outcome]:
    """All rules on the harvest and students of one folder."""
    results = json.loads((folder / "students.json").read_text())
    task = TASKS[results["task"]]
    data = task.open_data(Path(roots[results["task"]]) if results["task"] in roots else None)
    data.setup("fit")
    students = {epoch: 100 * accuracy for epoch, accuracy in mean_accuracies(results).items()}
    name = f"{results['task']} {results['teacher_seed']}"
    for rule in rules():
        selector = MISelector(num_teachers=1, probe_size=PROBE_SIZE, **rule)
        with contextlib.redirect_stdout(io.StringIO()):
            selection = selector.select(folder / "harvest", task.teacher(), data.val_dataloader(), progress=False)
        yield judge(name, rule, selection, students)


def judge(name: str, rule: dict[str, Any], selection: Selection, students: dict[int, float]) -> Outcome:
    """One rule against the students of the snapshots that were tried."""
    tried = [candidate for candidate in selection.candidates if candidate.epoch in students]
    scores = [candidate.score for candidate in tried]
    spearman = None
    if all(score is not None for score in scores) and len(set(scores)) > 1:
        accuracies = torch.tensor([students[candidate.epoch] for candidate in tried])
        spearman = float(spearman_corrcoef(torch.tensor(scores), accuracies))
    last = max(students)
    if rule.get("rule") in ("half", "full"):
        (wanted,) = (candidate.epoch for candidate in selection.candidates if candidate.file == selection.chosen[0])
        chosen = min(students, key=lambda epoch: abs(epoch - wanted))
    else:
        chosen = min(tried, key=lambda candidate: candidate.rank or len(selection.candidates) + 1).epoch
    return Outcome(
        name,
        rule,
        spearman,
        chosen,
        max(students.values()) - students[chosen],
        students[chosen] - students[last],
    )


def table(outcomes: list[Outcome]) -> str:
    """A line for each rule, a column for each folder: correlation, first choice, gain against the last snapshot."""
    tasks = list(dict.fromkeys(outcome.task for outcome in outcomes))
    by_rule: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        words = ", ".join(f"{key}={value}" for key, value in outcome.rule.items())
        by_rule.setdefault(words, {})[outcome.task] = outcome
    rows = []
    for words, found in by_rule.items():
        cells = [
            f"{'-' if (o := found[task]).spearman is None else f'{o.spearman:+.2f}'}; {o.chosen}; {o.gain:+.1f}"
            for task in tasks
        ]
        mean = statistics.mean(found[task].gain for task in tasks)
        worst = min(found[task].gain for task in tasks)
        rows.append([words, *cells, f"{mean:+.2f}", f"{worst:+.1f}"])
    return format_table(["rule", *tasks, "mean gain", "worst"], rows)


if __name__ == "__main__":
    main()
