"""How well each rule foretells the students: ``python -m benchmarks.students.rules OUT [OUT ...] [--data TASK=ROOT]``.

OUT are folders of ``python -m benchmarks.students`` or ``benchmarks.students.tables``. For each rule and folder:
Spearman's correlation between the score of a snapshot and the mean accuracy of its students, and what the students of
the rule's first choice lose against those of the best snapshot that was tried, and gain against those of the last.
Writes ``benchmarks/results/rules.json``; what is in it already is not done again.
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
from torch.nn import functional as F
from torchmetrics.functional import spearman_corrcoef

from benchmarks.students.tasks import TASKS, Task
from benchmarks.students.training import mean_accuracies
from lightning_ckptkd import MISelector
from lightning_ckptkd.selecting.report import format_table
from lightning_ckptkd.selecting.rules import make_rule
from lightning_ckptkd.snapshots import Selection
from lightning_ckptkd.teachers import load_teachers
from lightning_ckptkd.zoo.images import ImageDataModule

RESULTS = Path(__file__).parents[1] / "results" / "rules.json"
PROBE_SIZE = 2000
LOSS = {"rule": "validation loss"}  # of the teacher; no rule of the selector


@dataclass(frozen=True)
class Outcome:
    """One rule in one folder; accuracies in percentage points.

    Attributes:
        task: The folder's task and teacher seed.
        rule: Name of the rule (``mi`` if there is none) and its options.
        spearman: Correlation between scores and students' accuracies; None where all scores are equal.
        chosen: Epoch of the first choice, from 0.
        regret: Students of the best snapshot less those of the chosen one.
        gain: Students of the chosen snapshot less those of the last one.
    """

    task: str
    rule: dict[str, Any]
    spearman: float | None
    chosen: int
    regret: float
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
            {"label_estimator": "convolutional", "input_estimator": "convolutional"},
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
    parser.add_argument("out", type=Path, nargs="+", help="folders with a harvest and students.json")
    parser.add_argument("--data", nargs="*", default=[], metavar="TASK=ROOT", help="roots of the data modules")
    parser.add_argument("--quick", action="store_true", help="without the convolutional networks: they take minutes")
    options = parser.parse_args()
    roots = {task: Path(root) for task, root in (item.split("=", 1) for item in options.data)}
    outcomes = [Outcome(**outcome) for outcome in json.loads(RESULTS.read_text())] if RESULTS.exists() else []
    for folder in options.out:
        results = json.loads((folder / "students.json").read_text())
        done = {known(outcome.task, outcome.rule) for outcome in outcomes}
        wanted = [rule for rule in (*rules(), LOSS) if not (options.quick and "convolutional" in rule.values())]
        for outcome in compare(folder, results, roots.get(results["task"]), wanted, done):
            outcomes.append(outcome)
            RESULTS.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    print(correlations(outcomes))
    print(regrets(outcomes))


def known(task: str, rule: dict[str, Any]) -> str:
    """What an outcome is known by."""
    return f"{task} {json.dumps(rule)}"


def compare(
    folder: Path, results: dict[str, Any], root: Path | None, wanted: list[dict[str, Any]], done: set[str]
) -> Iterator[Outcome]:
    """Some rules on the harvest and students of one folder, without those that are done."""
    task, name = TASKS[results["task"]], f"{results['task']} {results['teacher_seed']}"
    wanted = [rule for rule in wanted if known(name, rule) not in done]
    if not wanted:
        return
    data = task.open_data(root)
    data.setup("fit")
    students = {epoch: 100 * accuracy for epoch, accuracy in mean_accuracies(results).items()}
    for rule in wanted:
        if rule == LOSS:
            losses = validation_losses(folder / "harvest", task, data, list(students))
            scores = {epoch: -loss for epoch, loss in losses.items()}
            yield make_outcome(name, LOSS, scores, max(scores, key=scores.__getitem__), students)
            continue
        selector = MISelector(rule=make_rule(**{"rule": "mi", **rule}), num_teachers=1, probe_size=PROBE_SIZE)
        with contextlib.redirect_stdout(io.StringIO()):
            selection = selector.select(folder / "harvest", task.teacher(), data.val_dataloader(), progress=False)
        yield judge(name, rule, selection, students)


def validation_losses(harvest: Path, task: Task, data: ImageDataModule, epochs: list[int]) -> dict[int, float]:
    """Cross-entropy in nats of some snapshots on the validation images, by epoch."""
    found = {}
    for epoch in epochs:
        teacher = load_teachers({str(harvest): task.teacher()}, [epoch])[0]
        losses = [F.cross_entropy(teacher(x)[0], y, reduction="none") for x, y in data.val_dataloader()]
        found[epoch] = float(torch.cat(losses).mean())
    return found


def judge(name: str, rule: dict[str, Any], selection: Selection, students: dict[int, float]) -> Outcome:
    """One rule of the selector against the students of the snapshots that were tried."""
    tried = [candidate for candidate in selection.candidates if candidate.epoch in students]
    scores = {candidate.epoch: candidate.score for candidate in tried if candidate.score is not None}
    if rule.get("rule") in ("half", "full"):
        (wanted,) = (candidate.epoch for candidate in selection.candidates if candidate.file == selection.chosen[0])
        chosen = min(students, key=lambda epoch: abs(epoch - wanted))
    else:
        chosen = min(tried, key=lambda candidate: candidate.rank or len(selection.candidates) + 1).epoch
    return make_outcome(name, rule, scores, chosen, students)


def make_outcome(
    name: str, rule: dict[str, Any], scores: dict[int, float], chosen: int, students: dict[int, float]
) -> Outcome:
    """What a rule's scores, by epoch, and its choice are worth; without a score of each snapshot no correlation."""
    spearman = None
    if len(scores) == len(students) and len(set(scores.values())) > 1:
        epochs = sorted(students)
        found = spearman_corrcoef(
            torch.tensor([scores[epoch] for epoch in epochs]), torch.tensor([students[epoch] for epoch in epochs])
        )
        spearman = float(found)
    last = max(students)
    return Outcome(
        name, rule, spearman, chosen, max(students.values()) - students[chosen], students[chosen] - students[last]
    )


def correlations(outcomes: list[Outcome]) -> str:
    """A line for each rule with scores, a column for each folder: Spearman's correlation."""
    rows = []
    tasks = list(dict.fromkeys(outcome.task for outcome in outcomes))
    for words, found in _by_rule(outcomes).items():
        own = [found[task].spearman if task in found else None for task in tasks]
        numbers = [value for value in own if value is not None]
        if numbers:
            cells = ["-" if value is None else f"{value:+.2f}" for value in own]
            rows.append([words, *cells, f"{statistics.mean(numbers):+.2f}", f"{min(numbers):+.2f}"])
    return format_table(["rule", *tasks, "mean", "worst"], rows)


def regrets(outcomes: list[Outcome]) -> str:
    """A line for each rule, a column for each folder: the epoch chosen and its gain; regret over all folders."""
    rows = []
    tasks = list(dict.fromkeys(outcome.task for outcome in outcomes))
    for words, found in _by_rule(outcomes).items():
        gains = [outcome.gain for outcome in found.values()]
        regret = statistics.mean(outcome.regret for outcome in found.values())
        cells = [f"{found[task].chosen}: {found[task].gain:+.1f}" if task in found else "-" for task in tasks]
        rows.append([words, *cells, f"{statistics.mean(gains):+.2f}", f"{min(gains):+.1f}", f"{regret:.2f}"])
    return format_table(["rule", *tasks, "mean", "worst", "mean regret"], rows)


def _by_rule(outcomes: list[Outcome]) -> dict[str, dict[str, Outcome]]:
    found: dict[str, dict[str, Outcome]] = {}
    for outcome in outcomes:
        words = ", ".join(f"{key}={value}" for key, value in outcome.rule.items())
        found.setdefault(words, {})[outcome.task] = outcome
    return found


if __name__ == "__main__":
    main()
