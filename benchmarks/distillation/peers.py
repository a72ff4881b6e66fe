"""Speed beside the others: ``python -m benchmarks.distillation.peers``, as ratios that are measured in one run.

``distillation``: a step and an epoch of DistillationModule, with its teachers running and with cached logits, against
the published loop, torchdistill and training without a teacher. ``selection``: MISelector against a student of each
snapshot and against the paper's decoders. What is compared is taken in turn. The row of the harvest is that of
``benchmarks.harvest``. Give it the machine for itself. ``--device cuda`` runs it on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.builds.against import KEPT
from benchmarks.distillation.peer_loops import (
    INSTALL_TORCHDISTILL,
    LightningTraining,
    PublishedLoop,
    Stopwatch,
    TorchdistillTraining,
    Training,
    has_torchdistill,
    make_loader,
)
from benchmarks.distillation.step_parts import step_parts
from benchmarks.harvest.clocks import UsageClock
from benchmarks.harvest.machine import describe_machine, say, silence_lightning
from benchmarks.harvest.trainings import quiet_trainer
from benchmarks.selection.ranking import probe as digits
from lightning_ckptkd import CheckpointHarvester, DistillationModule, MISelector, SnapshotStore
from lightning_ckptkd.selecting.report import format_table
from lightning_ckptkd.selecting.rules import MI
from lightning_ckptkd.teachers import Acceleration, TeacherCache, TeacherEnsemble
from lightning_ckptkd.teachers.remembered import CACHE_VARIABLE
from lightning_ckptkd.zoo import CIFARResNet, Classifier

RESULTS = Path(__file__).parents[1] / "results" / "peers.json"
HARVEST_RESULTS = Path(__file__).parents[1] / "results" / "harvest.json"
PARTS = ("distillation", "selection")
SNAPSHOTS, VALIDATION, BATCH_SIZE = 6, 500, 128
PARTS_ROUNDS = 3  # epochs of each way in which the teachers' time is taken, beside those that are counted
STUDENT_EPOCHS = 3  # of each snapshot's student, where all are tried
TEACHERS = (1, 4)
LIVE, CACHED = "DistillationModule", "DistillationModule with TeacherCache"
COMPILED, HALF = "DistillationModule, teachers compiled", "DistillationModule, teachers in bfloat16"
LOGITS = {LIVE: "live", COMPILED: "live, compiled", HALF: "live, bfloat16", CACHED: "cached"}
PUBLISHED, TORCHDISTILL, ALONE = "published loop", "torchdistill", "training without a teacher"
SELECTOR, BRUTE_FORCE, DECODERS = "MISelector", "a student of each snapshot", "the paper's decoders"


@dataclass(frozen=True)
class Ratio:
    """Our seconds over those of another, round by round."""

    rounds: list[float]

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
        """From seconds of both, in the order of the rounds, two or more of them."""
        return cls([a / b for a, b in zip(ours, theirs, strict=True)])

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """What the middle half of the rounds lies between."""
        lower, _, upper = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return lower, upper

    @property
    def verdict(self) -> str:
        """Who is faster, and whether the middle half of the rounds agrees on it."""
        lower, upper = self.quartiles
        word = "faster" if self.median < 1 else "SLOWER"
        return f"{word}, but within the noise" if lower <= 1 <= upper else word

    def __str__(self) -> str:
        return f"{self.median:.3g}"

    @property
    def spread(self) -> str:
        """The middle half as text."""
        return "{:.3g} to {:.3g}".format(*self.quartiles)


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    rounds: int
    repeats: int
    steps: int
    device: torch.device


def main() -> None:
    """Measure, write all numbers, print what belongs into docs/benchmarks.md."""
    arguments = parse_arguments()
    silence_lightning()
    os.environ[CACHE_VARIABLE] = ""  # the first epoch has to find how teachers run
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device, 0) if arguments.device == "cuda" else torch.device("cpu")
    steps = arguments.steps if arguments.steps is not None else 100 if device.type == "cuda" else 30
    options = Options(arguments.rounds, arguments.repeats, steps, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, threads: {torch.get_num_threads()}"
    if all(variable in os.environ for variable in KEPT):
        name += ", memory kept"
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if arguments.parts:
        measured = measure(arguments.parts, options)
        results[name] = {**results.get(name, {}), **measured}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(make_section(results))
    if not has_torchdistill():
        say(INSTALL_TORCHDISTILL)


def measure(parts: Sequence[str], options: Options) -> dict[str, Any]:
    """Measure some parts on the harvest of one teacher."""
    measured = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        about = {
            "command": shlex.join(["python", "-m", "benchmarks.distillation.peers", *sys.argv[1:]]),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": describe_machine(options.device, folder),
            "torchdistill": importlib.metadata.version("torchdistill") if has_torchdistill() else None,
            "settings": {"rounds": options.rounds, "repeats": options.repeats, "steps": options.steps},
        }
        say(f"a teacher of {SNAPSHOTS} epochs ...")
        train_teacher(folder / "harvest", options)
        for part in parts:
            measure_part = measure_distillation if part == "distillation" else measure_selection
            usage = UsageClock()
            seconds = measure_part(folder / "harvest", folder, options)
            measured[part] = {**about, "others_share": usage.others_share(), "seconds": seconds}
    return measured


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distillation.peers", description=(__doc__ or "").splitlines()[0]
    )
    option = parser.add_argument
    option("--device", choices=["cpu", "cuda"], default="cpu")
    option("--threads", type=int, help="CPU threads; None leaves them as they are")
    option(
        "--parts", nargs="*", choices=PARTS, default=PARTS, help="the other part's results are kept; none: only print"
    )
    option("--rounds", type=int, default=7, help="distillation: epochs of each way that are counted, 2 or more")
    option("--repeats", type=int, default=3, help="selection: runs of each way that are counted, 2 or more")
    option("--steps", type=int, help="distillation: in an epoch; 30, and 100 on a GPU")
    option("--out", type=Path, default=RESULTS, help="file for all numbers; what the repository has is kept in it")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.repeats) < 2:
        parser.error("--rounds and --repeats should be 2 or more: one says nothing of the spread.")
    return arguments


def teacher_network() -> nn.Module:
    """A ResNet-14 of width 16 for grey images."""
    return CIFARResNet(14, 10, 16, 1)


def student_network() -> nn.Module:
    """A ResNet-8 of width 8, always with the same first weights."""
    torch.manual_seed(1)
    return CIFARResNet(8, 10, 8, 1)


def training_images(count: int | None = None) -> TensorDataset:
    """scikit-learn's digits, enlarged to 28 x 28 pixels; again and again where ``count`` are more than there are."""
    images, labels = (values[VALIDATION:] for values in digits())
    which = torch.arange(len(labels) if count is None else count) % len(labels)
    return TensorDataset(images[which], labels[which])


def validation_loader() -> DataLoader[Any]:
    """Those that are not trained on."""
    return DataLoader(TensorDataset(*(values[:VALIDATION] for values in digits())), batch_size=256)


def train_teacher(harvest: Path, options: Options) -> None:
    """Six epochs, a snapshot of each."""
    torch.manual_seed(0)
    trainer = quiet_trainer(
        options.device, harvest.parent, [CheckpointHarvester(harvest, submodule="network")], max_epochs=SNAPSHOTS
    )
    trainer.fit(Classifier(teacher_network()), make_loader(training_images(), options.device))


def measure_distillation(harvest: Path, folder: Path, options: Options) -> dict[str, Any]:
    """One epoch of each way in turn, several times; the first round is kept apart."""
    return {str(number): _time_ways(_ways(harvest, folder, options, number), options, number) for number in TEACHERS}


def _ways(harvest: Path, folder: Path, options: Options, number: int) -> dict[str, Training]:
    data, device = training_images(BATCH_SIZE * options.steps), options.device
    choice = list(range(SNAPSHOTS - number, SNAPSHOTS))
    store = SnapshotStore.open(harvest)
    chosen = [snapshot for snapshot in store.snapshots if snapshot.epoch in choice]

    def loaded() -> list[nn.Module]:
        return TeacherEnsemble.load(store, chosen, teacher_network()).members

    def ours(**how: Any) -> LightningTraining:
        module = DistillationModule(student_network(), teacher_network(), harvest, choice=choice, **how)
        return LightningTraining(module, data, device, folder)

    ways: dict[str, Training] = {
        PUBLISHED: PublishedLoop(student_network(), loaded(), data, device),
        LIVE: ours(),
        COMPILED: ours(acceleration="compile"),
        CACHED: ours(cache=TeacherCache(folder / f"cache{number}")),
        ALONE: LightningTraining(Classifier(student_network()), data, device, folder),
    }
    half = Acceleration(bf16=True)
    if half.halves(device):
        ways[HALF] = ours(acceleration=half)
    if has_torchdistill():
        ways[TORCHDISTILL] = TorchdistillTraining(student_network(), loaded(), data, device)
    return ways


def _time_ways(ways: dict[str, Training], options: Options, number: int) -> dict[str, Any]:
    seconds: dict[str, Any] = {name: {"epochs": [], "steps": []} for name in ways}
    for turn in range(options.rounds + 1):
        say(f"distillation, teachers {number}: round {turn} of {options.rounds} ...")
        names = list(ways) if turn % 2 == 0 else list(reversed(ways))
        for name in names:
            watches = [Stopwatch(options.device, each_step=False)]
            if options.device.type == "cuda" and turn:  # waiting for each step would slow the epoch
                watches.append(Stopwatch(options.device, each_step=True))
            for watch in watches:
                ways[name].run_epoch(watch)
            if turn:
                seconds[name]["epochs"].append(watches[0].epoch)
                seconds[name]["steps"].append(watches[-1].step)
            else:
                seconds[name] |= {"first_epoch": watches[0].epoch, "first_preparation": watches[0].preparation}
    for _ in range(PARTS_ROUNDS):
        for name, training in ways.items():
            seconds[name].setdefault("parts", []).append(step_parts(training, options.device))
    return seconds


def measure_selection(harvest: Path, folder: Path, options: Options) -> dict[str, Any]:
    """Each way to choose among the snapshots in turn, several times, after a selection that is not counted."""
    ways: dict[str, Callable[[], int]] = {
        SELECTOR: partial(_select, harvest, options),
        BRUTE_FORCE: partial(_try_students, harvest, folder, options),
        DECODERS: partial(_select, harvest, options, input_estimator="convolutional", label_estimator="convolutional"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    chosen: dict[str, list[int]] = {name: [] for name in ways}
    _select(harvest, options)
    for turn in range(options.repeats):
        say(f"selection: round {turn + 1} of {options.repeats} ...")
        for name in list(ways) if turn % 2 == 0 else list(reversed(ways)):
            start = time.perf_counter()
            chosen[name].append(ways[name]())
            seconds[name].append(time.perf_counter() - start)
    return {"seconds": seconds, "chosen_epochs": chosen}


def _select(harvest: Path, options: Options, **estimators: str) -> int:
    (harvest / "scores.json").unlink(missing_ok=True)
    selector = MISelector(rule=MI(**estimators), num_teachers=1)  # type: ignore[arg-type]
    with contextlib.redirect_stdout(io.StringIO()):
        selection = selector.select(
            harvest, teacher_network(), validation_loader(), device=options.device, progress=False
        )
    return next(item.epoch for item in selection.candidates if item.file in selection.chosen)


def _try_students(harvest: Path, folder: Path, options: Options) -> int:
    """Distil a student from each snapshot alone; the epoch of the one whose student is the best."""
    accuracies = []
    for epoch in range(SNAPSHOTS):
        module: LightningModule = DistillationModule(
            student_network(), teacher_network(), harvest, choice=[epoch], acceleration="none"
        )  # in so few steps a search for the fastest way would not pay off
        trainer = quiet_trainer(options.device, folder, [], max_epochs=STUDENT_EPOCHS)
        trainer.fit(module, make_loader(training_images(), options.device))
        (metrics,) = trainer.validate(module, validation_loader(), verbose=False)
        accuracies.append(metrics["val_acc"])
    return accuracies.index(max(accuracies))


def make_table(document: dict[str, Any]) -> str:
    """The tables of one machine as Markdown."""
    tables = []
    if "distillation" in document:
        rows = [
            row
            for number, ways in document["distillation"]["seconds"].items()
            for row in _distillation_rows(number, ways)
        ]
        header = [
            "DistillationModule's seconds / those of",
            "teachers",
            "logits",
            "step",
            "epoch",
            "",
            "middle half of the epochs",
        ]
        tables.append(format_table(header, rows))
        tables.append(_parts_table(document["distillation"]["seconds"]))
    single = _single_rows(document)
    if single:
        tables.append(format_table(["measured", "ratio", "", "details"], single))
    return "\n\n".join(tables)


def make_section(results: dict[str, Any]) -> str:
    """What stands between the markers of docs/benchmarks.md: each machine's tables."""
    sections = []
    for name, document in results.items():
        shares = ", ".join(f"{document[part]['others_share']:.1%} during {part}" for part in PARTS if part in document)
        note = f"Other processes took of the machine's CPU: {shares}."
        sections.append(f"### {name}\n\n{make_table(document)}\n\n{note}")
    return "\n\n".join(sections)


def _distillation_rows(number: str, ways: dict[str, Any]) -> list[list[str]]:
    rows = []
    for ours, logits in LOGITS.items():
        for other in (PUBLISHED, TORCHDISTILL, ALONE):
            if ours not in ways or other not in ways:
                continue
            step, epoch = (Ratio.of(ways[ours][what], ways[other][what]) for what in ("steps", "epochs"))
            rows.append([other, number, logits, f"{step}", f"{epoch}", epoch.verdict, epoch.spread])
    return rows


def _parts_table(seconds: dict[str, Any]) -> str:
    """Where a step's time goes, of each way."""
    rows = []
    for number, ways in seconds.items():
        for name, found in ways.items():
            steps, teachers = ([1e3 * parts[what] for parts in found["parts"]] for what in ("step", "teachers"))
            rest = [step - own for step, own in zip(steps, teachers, strict=True)]
            rows.append([name, number, *(f"{statistics.median(times):.0f}" for times in (steps, teachers, rest))])
    return format_table(["milliseconds of a step", "teachers", "in all", "teachers run", "the rest"], rows)


def _single_rows(document: dict[str, Any]) -> list[list[str]]:
    rows = []
    for number, ways in document.get("distillation", {}).get("seconds", {}).items():
        epoch = statistics.median(ways[PUBLISHED]["epochs"])
        teachers = (
            f"{number} teacher{'s' if number != '1' else ''}, {document['distillation']['settings']['steps']} steps"
        )
        for what, way, key in (
            ("the first epoch, in which the fastest way to run the teachers is found", LIVE, "first_epoch"),
            ("the first epoch, in which the teachers are compiled", COMPILED, "first_epoch"),
            ("filling the cache, once", CACHED, "first_preparation"),
        ):
            ratio = ways[way][key] / epoch
            name = f"{what} / an epoch of the {PUBLISHED}"
            rows.append([name, f"{ratio:.3g}", "", f"{teachers} an epoch; measured once"])
    if "selection" in document:
        seconds = document["selection"]["seconds"]["seconds"]
        for other in (BRUTE_FORCE, DECODERS):
            ratio = Ratio.of(seconds[SELECTOR], seconds[other])
            details = f"{_seconds(seconds[SELECTOR])} against {_seconds(seconds[other])}; middle half {ratio.spread}"
            rows.append([f"{SELECTOR} / {other}", f"{ratio}", ratio.verdict, details])
    return rows + _harvest_rows(document)


def _harvest_rows(document: dict[str, Any]) -> list[list[str]]:
    """The row of ``benchmarks.harvest``, where that was measured on the same kind of device."""
    if not HARVEST_RESULTS.exists():
        return []
    harvest = json.loads(HARVEST_RESULTS.read_text())
    block = harvest["results"].get("block")
    gpus = {document[part]["machine"]["gpu"] for part in PARTS if part in document}
    if block is None or gpus != {harvest["machine"]["gpu"]}:
        return []
    times = [f"{1e3 * block[way]['median']:.1f} ms" for way in ("harvester", "model_checkpoint")]
    verdict = "faster" if block["ratio"] < 1 else "SLOWER"
    details = f"{times[0]} against {times[1]}; from harvest.json, another run"
    return [["training blocked by a snapshot / by ModelCheckpoint", f"{block['ratio']:.3g}", verdict, details]]


def _seconds(rounds: Sequence[float]) -> str:
    return f"{statistics.median(rounds):.3g} s"


if __name__ == "__main__":
    main()
