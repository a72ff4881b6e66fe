"""The main job on scikit-learn's digits: ``python -m lightning_ckptkd.commands.demo``, which is ``make demo``.

Twice: with right labels, and with 40% of the training and validation labels wrong. For each seed it runs what a user
would type: ``ckptkd fit`` with harvest and selection, then ``ckptkd distill`` from the chosen snapshots and from the
last one alone, and the same student without a teacher. Test labels are right, and nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lightning.pytorch.cli import LightningCLI
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from lightning_ckptkd.commands.cli import known_warnings_ignored
from lightning_ckptkd.commands.cli import main as ckptkd
from lightning_ckptkd.harvester import FOLDER_NAME
from lightning_ckptkd.selecting.picture import PICTURE_NAME, as_sentence
from lightning_ckptkd.selecting.report import format_table
from lightning_ckptkd.snapshots import MANIFEST_NAME, SELECTION_NAME, Selection, SnapshotStore
from lightning_ckptkd.snapshots.weights import load_into

_SEEDS = (0, 1, 2)
_QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
_CASES = {"labels right": 0.0, "40% of labels wrong": 0.4}  # the share of training and validation labels
_ROWS = {  # run: its row in the table
    "teacher": "the teacher itself, last epoch",
    "alone": "student, no teacher",
    "last": "student of the last snapshot",
    "selected": "student of the chosen snapshots",
}
_BLUE, _ORANGE, _GREY = "#0072b2", "#d55e00", "#666666"  # for colour-blind readers too


@dataclass(frozen=True)
class Trial:
    """One seed of a case.

    Attributes:
        accuracies: Of each row of the table, the share of test images classified correctly.
        snapshots: The same of each snapshot of the teacher, in the order of training; for the picture alone.
        chosen: Epochs of the snapshots that taught, from 0.
        worth: What the selection says that its choice is worth.
    """

    accuracies: dict[str, float]
    snapshots: list[float]
    chosen: list[int]
    worth: str


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description="Harvest, select and distil on scikit-learn's digits.")
    parser.add_argument("--configs", type=Path, default=Path("configs/digits"), help="folder of the two configs")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write into")
    options = parser.parse_args()
    if not (options.configs / "fit.yaml").is_file():  # else the command's own error is in the log alone
        parser.error(
            f"--configs: there is no fit.yaml in {str(options.configs)!r}. Run the demo in the root of a clone, or "
            "give the clone's configs/digits."
        )
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # images that are in memory need no processes to load them, whatever the number of cores
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    out = _new_folder(options.out)
    started = time.perf_counter()
    trials: dict[str, list[Trial]] = {case: [] for case in _CASES}
    with tqdm(total=len(_CASES) * len(_SEEDS) * len(_ROWS), desc="Demo", unit="run") as bar:
        for seed, (case, share) in itertools.product(_SEEDS, _CASES.items()):
            trials[case].append(
                _run(options.configs, _folder(out, case, seed), out / "log.txt", share, seed, bar.update)
            )
    numbers = {case: [asdict(trial) for trial in of_seeds] for case, of_seeds in trials.items()}
    (out / "students.json").write_text(json.dumps(numbers, indent=1) + "\n")
    text = f"{format_trials(trials)}\n\n{format_worths(trials)}"
    (out / "students.md").write_text(text + "\n")
    draw_trials(trials, out / "students.png")
    seconds = f"{time.perf_counter() - started:.0f} s, {time.process_time():.0f} s of CPU time"
    print(f"\nDigits, mean (range) of {len(_SEEDS)} seeds, test labels right; {seconds}\n\n{text}\n")
    snapshots = _snapshots(_folder(out, "40% of labels wrong", _SEEDS[0]))
    for path, what in (
        (out / "students.png", "the picture of this table"),
        (out / "students.md", "the table"),
        (out / "students.json", "the runs that it is made of"),
        (out / "log.txt", "the tables of the selections, and what was warned of"),
        (snapshots / PICTURE_NAME, "the information plane of the first seed with wrong labels"),
        (snapshots / SELECTION_NAME, "its scores and choice"),
        (snapshots / MANIFEST_NAME, "its harvest, with the .safetensors files beside it"),
    ):
        print(f"Written: {path}, {what}")


def _run(configs: Path, out: Path, log: Path, share: float, seed: int, done: Callable[[], object]) -> Trial:
    """Train the teacher and the three students of one seed, by the commands that a user would type."""

    def train(name: str, command: str, *words: str) -> LightningCLI:
        logger = (f"--trainer.logger.save_dir={out}", "--trainer.logger.name=", f"--trainer.logger.version={name}")
        common = (f"--data.wrong_labels={share}", f"--seed_everything={seed}", *logger, *_QUIET)
        with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            cli: LightningCLI = ckptkd([command, "--config", str(configs / f"{command}.yaml"), *words, *common])
        done()
        return cli

    teacher = train("teacher", "fit")
    accuracies = {"teacher": _test(teacher)}
    store = SnapshotStore.open(_snapshots(out))
    accuracies["alone"] = _test(train("alone", "fit", "--model.network.hidden=[32]", "--trainer.callbacks=null"))
    for name, choice in (("last", "full"), ("selected", "selected")):
        words = (f"--model.snapshots={_snapshots(out)}", f"--model.choice={choice}")
        accuracies[name] = _test(train(name, "distill", *words))

    selection = Selection.read(store)
    assert selection.worth is not None
    epochs = {candidate.file: candidate.epoch for candidate in selection.candidates}
    chosen = sorted(epochs[file] for file in selection.taught_by)
    return Trial(accuracies, _test_snapshots(teacher, store), chosen, as_sentence(selection.worth))


def _test(cli: LightningCLI) -> float:
    with known_warnings_ignored():
        (result,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    return result["test_acc"]


@torch.no_grad()
def _test_snapshots(cli: LightningCLI, store: SnapshotStore) -> list[float]:
    """Accuracy of each snapshot on the test images."""
    network = cli.model.network.eval()
    images, labels = map(torch.cat, zip(*cli.datamodule.test_dataloader(), strict=True))
    accuracies = []
    for snapshot in store.snapshots:
        load_into(network, store.load(snapshot), snapshot.file)
        accuracies.append(float((network(images).argmax(1) == labels).float().mean()))
    return accuracies


def _folder(out: Path, case: str, seed: int) -> Path:
    return out / f"wrong_{_CASES[case]:g}" / f"seed_{seed}"


def _snapshots(out: Path) -> Path:
    return out / "teacher" / FOLDER_NAME


def _new_folder(parent: Path) -> Path:
    """The first folder ``parent/run_<n>`` that is not there yet, made."""
    for number in itertools.count():
        folder = parent / f"run_{number}"
        if not folder.exists():
            break
    folder.mkdir(parents=True)
    return folder


def format_trials(trials: Mapping[str, Sequence[Trial]]) -> str:
    """The table of teacher and students, a column for each case, mean and range over seeds, as Markdown.

    Args:
        trials: Of each case, one a seed.
    """
    rows = [[row, *(_cell(_percents(of_seeds, name)) for of_seeds in trials.values())] for name, row in _ROWS.items()]
    return format_table(["test accuracy, %", *trials], rows)


def format_worths(trials: Mapping[str, Sequence[Trial]]) -> str:
    """What each selection said that its choice is worth, as a Markdown list.

    Args:
        trials: Of each case, one a seed.
    """
    return "\n".join(f"- {case}, seed {seed}: {trial.worth}" for case, seed, trial in _in_order(trials))


def _in_order(trials: Mapping[str, Sequence[Trial]]) -> Iterator[tuple[str, int, Trial]]:
    for case, of_seeds in trials.items():
        for seed, trial in enumerate(of_seeds):
            yield case, seed, trial


def _percents(trials: Sequence[Trial], name: str) -> list[float]:
    return [100 * trial.accuracies[name] for trial in trials]


def _cell(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def draw_trials(trials: Mapping[str, Sequence[Trial]], path: Path) -> None:
    """Draw each case in a column: above the snapshots over training, below the students.

    Args:
        trials: Of each case, one a seed.
        path: The picture to write.
    """
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    axes = figure.subplots(2, len(trials), sharex="row", sharey="row", height_ratios=(3, 2), squeeze=False)
    for column, (case, of_seeds) in enumerate(trials.items()):
        above, below = axes[:, column]
        _draw_snapshots(above, of_seeds)
        _draw_students(below, of_seeds)
        above.set_title(f"Digits, {case}")
    axes[0, 0].set_ylabel("test accuracy, %")
    axes[0, 0].legend(loc="lower right", fontsize="small")
    axes[1, 0].invert_yaxis()
    figure.savefig(path, dpi=120)


def _draw_snapshots(axes: Axes, trials: Sequence[Trial]) -> None:
    for number, trial in enumerate(trials):
        values = [100 * accuracy for accuracy in trial.snapshots]
        axes.plot(values, color=_BLUE, lw=1, alpha=0.7, label="" if number else "snapshots of a teacher, by seed")
        marks = [values[epoch] for epoch in trial.chosen]
        axes.plot(
            trial.chosen, marks, "o", ms=9, mfc="none", mec=_ORANGE, mew=2, label="" if number else "chosen to teach"
        )
        axes.plot(len(values) - 1, values[-1], "s", ms=5, color=_GREY, label="" if number else "the last one")
    axes.set_xlabel("epoch of the teacher")
    axes.grid(alpha=0.3)


def _draw_students(axes: Axes, trials: Sequence[Trial]) -> None:
    for place, name in enumerate(_ROWS):
        values = _percents(trials, name)
        axes.plot(values, [place] * len(values), "o", color=_ORANGE if name == "selected" else _BLUE, alpha=0.6)
        axes.plot(statistics.mean(values), place, "|", color="black", ms=20, mew=2)
    axes.set_yticks(range(len(_ROWS)), list(_ROWS.values()))
    axes.margins(y=0.2)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("test accuracy, %: dots are seeds, bars their mean")


if __name__ == "__main__":
    main()
