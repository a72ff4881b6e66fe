"""What the first epoch with live teachers costs: ``python -m benchmarks.distillation.warm``, in epochs after it.

``plain``: a training by cross-entropy, whose first epoch has its own price. ``unknown``: teachers whose fastest way has
to be found. ``known``: the same where a run before has found and remembered it. Each is a fresh process in which torch
has not run yet, forked from one that has imported all, in turn, with the networks and images of
:mod:`benchmarks.distillation`: ResNet-14 of width 16 teach a ResNet-8 of width 8 on batches of 128 images of 28 x 28
pixels. The processor's time and the clock's are kept; ratios are of the former, which other work on the machine touches
less. Python's first full collection of garbage, some 0.3 s wherever it falls, is made before. ``--before FOLDER``
measures another build beside this one: a clone of it, with this file in its place.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from typing_extensions import override

from benchmarks.distillation.costs import loader, make_harvest, student, teacher
from benchmarks.harvest.machine import describe_machine, say, silence_lightning
from benchmarks.harvest.trainings import quiet_trainer
from benchmarks.rows import Row, make_table
from lightning_ckptkd import DistillationModule
from lightning_ckptkd.teachers import TeacherPanel
from lightning_ckptkd.zoo import Classifier

RESULTS = Path(__file__).parents[1] / "results" / "warm.json"
PLAIN, UNKNOWN, KNOWN, BEFORE = "plain", "unknown", "known", "before"
TARGETS = {KNOWN: 1.10, UNKNOWN: 1.25}
TEACHERS = (1, 4)
EPOCHS = 3
WORDS = {
    PLAIN: "no teacher",
    UNKNOWN: "the way has to be found",
    KNOWN: "the way is known",
    BEFORE: "the build before",
}


class Clocks(Callback):
    """Seconds of the processor and of the clock from each epoch's start to the next one's."""

    def __init__(self) -> None:
        self._times: list[tuple[float, float]] = []

    def seconds(self) -> dict[str, list[float]]:
        """One number for each epoch."""
        pairs = list(zip(self._times, self._times[1:], strict=False))
        return {
            name: [stop[place] - start[place] for start, stop in pairs] for place, name in enumerate(("cpu", "wall"))
        }

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._times.append((time.process_time(), time.perf_counter()))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._times.append((time.process_time(), time.perf_counter()))


def main() -> None:
    """Measure in turn, write all numbers, print what belongs into docs/benchmarks.md."""
    options = arguments()
    silence_lightning()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    if options.only:
        print(json.dumps(measure([(options.only, count) for count in TEACHERS], options)))
        return
    kinds = [(PLAIN, 0)] + [(kind, count) for count in TEACHERS for kind in (UNKNOWN, KNOWN)]
    found = measure(kinds, options)
    write(found, options)
    if options.before is not None:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.distillation.warm", "--only", BEFORE]
        command += ["--rounds", str(options.rounds), "--batches", str(options.batches)]
        own = {"PYTHONPATH": str(options.before)}
        answer = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, cwd=options.before, env={**os.environ, **own}
        ).stdout
        for count, ways in json.loads(answer.splitlines()[-1]).items():
            found[count] |= ways
        write(found, options)
    print(make_table(table_rows(found)))


def write(found: dict[str, dict[str, list[Any]]], options: argparse.Namespace) -> None:
    """All numbers, as they came."""
    results = {
        "command": "python -m benchmarks.distillation.warm " + " ".join(sys.argv[1:]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine(torch.device("cpu"), Path.cwd()),
        "settings": {"rounds": options.rounds, "batches": options.batches, "epochs": EPOCHS, "threads": 1},
        "seconds": found,
        "table": make_table(table_rows(found)),
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    """The command line's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--batches", type=int, default=20, help="an epoch's")
    parser.add_argument("--before", type=Path, help="a clone of another build, with this file in its place")
    parser.add_argument("--only", choices=(BEFORE,), help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(kinds: list[tuple[str, int]], options: argparse.Namespace) -> dict[str, dict[str, list[Any]]]:
    """Each in turn, in rounds: number of teachers to kind to what the rounds gave."""
    found: dict[str, dict[str, list[Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        in_child(partial(make_harvest, folder))
        for number in range(options.rounds):
            for kind, count in kinds:
                say(f"round {number + 1} of {options.rounds}: {kind}, {count} teachers")
                os.environ["LIGHTNING_CKPTKD_CACHE"] = str(folder / f"ways_{number}_{count}")
                measured = in_child(partial(one, kind, count, folder, options.batches))
                found.setdefault(str(count), {}).setdefault(kind, []).append(measured)
    return found


def in_child(work: Callable[[], Any]) -> Any:
    """What a piece of work gives in a forked process."""
    with tempfile.NamedTemporaryFile() as file:
        child = os.fork()
        if not child:
            try:
                Path(file.name).write_text(json.dumps(work()))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        if os.waitpid(child, 0)[1]:
            raise RuntimeError("a training failed")
        return json.loads(Path(file.name).read_text())


def one(kind: str, count: int, folder: Path, batches: int) -> dict[str, Any]:
    """A training's seconds, by epochs, and those of what its first batch was tried for."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    tried: dict[str, float] = {"cpu": 0.0, "wall": 0.0}
    calibrate = TeacherPanel.calibrate

    def timed(*args: Any, **kwargs: Any) -> None:
        start = time.process_time(), time.perf_counter()
        calibrate(*args, **kwargs)
        tried.update(cpu=time.process_time() - start[0], wall=time.perf_counter() - start[1])

    TeacherPanel.calibrate = timed  # type: ignore[method-assign]
    seed_everything(0, verbose=False)
    clocks = Clocks()
    module: LightningModule = Classifier(student())
    if kind != PLAIN:
        module = DistillationModule(student(), teacher(), folder / "harvest", choice=list(range(count)))
    quiet_trainer(torch.device("cpu"), folder, [clocks], EPOCHS).fit(module, loader(batches, 0))
    path = vars(module.panel.ensemble.path) if isinstance(module, DistillationModule) else {}
    return {**clocks.seconds(), "tried": tried, "path": [name for name, on in path.items() if on]}


def first_over_later(epochs: list[float]) -> float:
    """The first epoch in later ones."""
    return epochs[0] / statistics.median(epochs[1:])


def table_rows(found: dict[str, dict[str, list[Any]]]) -> list[Row]:
    """The median of the rounds' ratios, and where the first epoch's time beyond a later one's went."""
    rows = []
    for count, ways in found.items():
        for kind, rounds in ways.items():
            ratios = [first_over_later(one["cpu"]) for one in rounds]
            later = statistics.median(statistics.median(one["cpu"][1:]) for one in rounds)
            tried = statistics.median(one["tried"]["cpu"] for one in rounds)
            wall = statistics.median(first_over_later(one["wall"]) for one in rounds)
            note = f"{min(ratios):.2f} to {max(ratios):.2f}; by the clock {wall:.2f}; a later one takes {later:.2f} s"
            if kind != PLAIN:
                note += f", the first batch's search {tried:.2f}; " + ", ".join(rounds[0]["path"])
            plural = "teacher" if count == "1" else "teachers"
            what = WORDS[kind] if kind == PLAIN else f"{count} {plural}, {WORDS[kind]}"
            rows.append(Row(f"first epoch / a later one: {what}", statistics.median(ratios), TARGETS.get(kind), note))
    return rows


if __name__ == "__main__":
    main()
