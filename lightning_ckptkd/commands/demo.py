"""The main job on scikit-learn's digits: ``python -m lightning_ckptkd.commands.demo``, which is ``make demo``.

For each seed it runs what a user would type: ``ckptkd fit`` with harvest and selection, then ``ckptkd distill`` from
the chosen snapshots and from the last one alone, and the same student without a teacher.
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
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lightning.pytorch.cli import LightningCLI
from matplotlib.figure import Figure
from tqdm import tqdm

from lightning_ckptkd.commands.cli import known_warnings_ignored
from lightning_ckptkd.commands.cli import main as ckptkd
from lightning_ckptkd.harvester import FOLDER_NAME
from lightning_ckptkd.selecting.picture import PICTURE_NAME
from lightning_ckptkd.selecting.report import format_table
from lightning_ckptkd.snapshots import MANIFEST_NAME, SELECTION_NAME, SnapshotStore
from lightning_ckptkd.teachers import choose_teachers

_SEEDS = (0, 1, 2)
_QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
_ROWS = {  # run: its row in the table
    "teacher": "the teacher itself, last epoch",
    "alone": "student, no teacher",
    "last": "student of the last snapshot",
    "selected": "student of the chosen snapshots",
}


@dataclass(frozen=True)
class Run:
    """One trained network.

    Attributes:
        accuracy: Share of held-out test images classified correctly.
        teacher_epochs: Epochs that a teacher had to be trained for.
        seconds: Wall-clock time of the training, with harvest and selection where they are part of it.
    """

    accuracy: float
    teacher_epochs: int
    seconds: float


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description="Harvest, select and distil on scikit-learn's digits.")
    parser.add_argument("--configs", type=Path, default=Path("configs/digits"), help="folder of the two configs")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write into")
    options = parser.parse_args()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # images that are in memory need no processes to load them, whatever the number of cores
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    out = _new_folder(options.out)
    started = time.perf_counter()
    runs: dict[str, list[Run]] = {name: [] for name in _ROWS}
    with tqdm(total=len(_ROWS) * len(_SEEDS), desc="Demo", unit="run") as bar:
        for seed in _SEEDS:
            for name, run in _run_seed(options.configs, out / f"seed_{seed}", seed):
                runs[name].append(run)
                bar.update()
    table = format_runs(runs)
    (out / "students.md").write_text(table + "\n")
    numbers = {name: [asdict(run) for run in of_seeds] for name, of_seeds in runs.items()}
    (out / "students.json").write_text(json.dumps(numbers, indent=1) + "\n")
    _draw_runs(runs, out / "students.png")
    print(f"\nDigits, mean over {len(_SEEDS)} seeds, {time.perf_counter() - started:.0f} s in all\n\n{table}\n")
    snapshots = _snapshots(out / "seed_0")
    for path, what in (
        (out / "students.png", "the picture of this table"),
        (out / "students.md", "the table"),
        (out / "students.json", "the runs that it is made of"),
        (out / "log.txt", "the tables of the three selections"),
        (snapshots / PICTURE_NAME, "the information plane of seed 0"),
        (snapshots / SELECTION_NAME, "its scores and choice"),
        (snapshots / MANIFEST_NAME, "its harvest, with the .safetensors files beside it"),
    ):
        print(f"Written: {path}, {what}")


def _run_seed(configs: Path, out: Path, seed: int) -> Iterator[tuple[str, Run]]:
    """Train the teacher and the three students of one seed, by the commands that a user would type."""

    def train(name: str, command: str, *words: str) -> tuple[LightningCLI, float]:
        logger = (f"--trainer.logger.save_dir={out}", "--trainer.logger.name=", f"--trainer.logger.version={name}")
        started = time.perf_counter()
        config = str(configs / f"{command}.yaml")
        with (out.parent / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
            cli = ckptkd([command, "--config", config, *words, f"--seed_everything={seed}", *logger, *_QUIET])
        return cli, time.perf_counter() - started

    fit, seconds = train("teacher", "fit")
    yield "teacher", Run(_test(fit), fit.trainer.current_epoch, seconds)

    small = ("--model.network.depth=8", "--model.network.width=4", "--trainer.callbacks=null")
    alone, seconds = train("alone", "fit", *small)
    yield "alone", Run(_test(alone), 0, seconds)

    for name, choice in (("last", "full"), ("selected", "selected")):
        words = (f"--model.snapshots={_snapshots(out)}", f"--model.choice={choice}")
        distilled, seconds = train(name, "distill", *words)
        store = SnapshotStore.open(_snapshots(out))
        epochs = max(snapshot.epoch for snapshot in choose_teachers(store, choice)) + 1
        yield name, Run(_test(distilled), epochs, seconds)


def _test(cli: LightningCLI) -> float:
    with known_warnings_ignored():
        (result,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    return result["test_acc"]


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


def format_runs(runs: dict[str, list[Run]]) -> str:
    """The table of teacher and students, means over seeds, as Markdown.

    Args:
        runs: Of each row, one a seed.
    """
    rows = []
    for name, row in _ROWS.items():
        accuracies = [100 * run.accuracy for run in runs[name]]
        rows.append(
            [
                row,
                f"{statistics.mean(accuracies):.1f}",
                f"{min(accuracies):.1f} to {max(accuracies):.1f}",
                f"{statistics.mean(run.teacher_epochs for run in runs[name]):.0f}",
                f"{statistics.mean(run.seconds for run in runs[name]):.1f}",
            ]
        )
    return format_table(["", "test accuracy %", "range", "teacher epochs needed", "seconds"], rows)


def _draw_runs(runs: dict[str, list[Run]], path: Path) -> None:
    figure = Figure(figsize=(7.5, 3), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(_ROWS):
        accuracies = [100 * run.accuracy for run in runs[name]]
        axes.plot(accuracies, [place] * len(accuracies), "o", color="#0072b2", alpha=0.6)
        axes.plot(statistics.mean(accuracies), place, "|", color="#d55e00", ms=22, mew=3)
    axes.set_yticks(range(len(_ROWS)), list(_ROWS.values()))
    axes.invert_yaxis()
    axes.margins(y=0.15)
    axes.grid(axis="x", alpha=0.3)
    axes.set(title="Digits: dots are seeds, bars their mean", xlabel="accuracy on held-out test images, %")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
