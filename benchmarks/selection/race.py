"""What a race costs and chooses against the full table: ``python -m benchmarks.selection.race TASK=FOLDER[=DATA] ...``.

FOLDER holds the harvest of ``python -m benchmarks.students TASK FOLDER`` and stays as it is; DATA is the root of its
data module. For each: processor seconds of the bare forward passes of all snapshots over the probe set, of the full
table and of the race, in one run; where the race's go; whether the first choice and the set are the same. ``--draws``:
how often they are over so many draws of four fifths of the validation samples, each snapshot run once for all draws.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.students.tasks import TASKS, Task
from lightning_ckptkd import MISelector, SnapshotStore
from lightning_ckptkd.information.uncertainty import jackknife_error
from lightning_ckptkd.selecting import SelectionSettings
from lightning_ckptkd.selecting.borrowing import borrowed
from lightning_ckptkd.selecting.choosing import choose_by_score
from lightning_ckptkd.selecting.features import Features
from lightning_ckptkd.selecting.items import read_items
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.race import Race
from lightning_ckptkd.selecting.report import format_table
from lightning_ckptkd.selecting.rows import ProbeRows
from lightning_ckptkd.selecting.rules import MI
from lightning_ckptkd.selecting.score import Score
from lightning_ckptkd.selecting.snapshot_scorer import SnapshotScorer
from lightning_ckptkd.snapshots import Selection
from lightning_ckptkd.tasks.batch import Batch

RESULTS = Path(__file__).parents[1] / "results" / "race.json"
TARGET, PROBE_SIZE, BATCH_SIZE = 0.40, 2000, 256
STAGES = {"forward passes": "run", "estimators": "measure"}


def main() -> None:
    """Measure what is asked for; the results of other harvests are kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("harvests", nargs="*", help="TASK=FOLDER[=DATA]")
    parser.add_argument("--draws", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"cost": {}, "draws": {}}
    for words in options.harvests:
        name, folder, *root = words.split("=")
        task = TASKS[name]
        images, labels = validation(task, Path(root[0]) if root else None)
        if options.draws:
            found["draws"][name] = count_draws(task, Path(folder) / "harvest", images, labels, options.draws)
            print(name, found["draws"][name], flush=True)
        else:
            found["cost"][name] = measure(task, Path(folder) / "harvest", images, labels)
            print(name, found["cost"][name], flush=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def validation(task: Task, root: Path | None) -> tuple[Tensor, Tensor]:
    """The validation samples, decoded: images (N, C, H, W) and labels (N,)."""
    data = task.open_data(root)
    data.setup("fit")
    batches = [(images.as_subclass(Tensor), labels) for images, labels in data.val_dataloader()]
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def measure(task: Task, harvest: Path, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """One harvest: costs in processor seconds, and what is chosen."""
    loader = DataLoader(TensorDataset(images, labels), BATCH_SIZE)
    snapshots = len(SnapshotStore.open(harvest).snapshots)
    module, size = task.teacher().eval(), min(PROBE_SIZE, len(images))
    start = time.process_time()
    with torch.no_grad():
        for _ in range(snapshots):
            for batch in torch.split(images[:size], BATCH_SIZE):
                module(batch)
    bare = time.process_time() - start
    full, full_seconds, _ = selected(task, harvest, loader, race=False)
    raced, seconds, stages = selected(task, harvest, loader, race=True)
    by_file = {candidate.file: candidate for candidate in full.candidates}
    ranked = [candidate for candidate in raced.candidates if candidate.rank is not None]
    errors = [abs((one.score or 0) - (by_file[one.file].score or 0)) for one in ranked]
    return {
        "snapshots": snapshots,
        "samples": size,
        "bare_seconds": bare,
        "full_table": full_seconds / bare,
        "race": seconds / bare,
        "samples_run": sum(one.scored_on or size for one in raced.candidates) / size / snapshots,
        "stages": {stage: spent / bare for stage, spent in stages.items()},
        "left": {str(one.epoch): one.scored_on for one in raced.candidates if one.scored_on is not None},
        "first_same": raced.chosen[0] == full.chosen[0],
        "chosen": [by_file[file].epoch for file in raced.chosen],
        "chosen_by_full_table": [by_file[file].epoch for file in full.chosen],
        "largest_difference_of_scores": max(errors),
        "worth": None if raced.worth is None else raced.worth.sentence,
    }


def selected(task: Task, harvest: Path, loader: Any, *, race: bool) -> tuple[Selection, float, dict[str, float]]:
    """A selection of a copy of a harvest, its processor seconds, and how many of them in the stages."""
    spent = dict.fromkeys(STAGES, 0.0)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        copy = Path(folder) / "harvest"
        shutil.copytree(harvest, copy, ignore=shutil.ignore_patterns("score*.json", "selection.*"))
        for stage, method in STAGES.items():
            timed = _timed(getattr(SnapshotScorer, method), spent, stage)
            stack.enter_context(patch.object(SnapshotScorer, method, timed))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        start = time.process_time()
        selection = MISelector(probe_size=PROBE_SIZE, batch_size=BATCH_SIZE, race=race).select(
            copy, task.teacher(), loader, progress=False
        )
        seconds = time.process_time() - start
    return selection, seconds, {**spent, "reading, ranking, writing, the picture": seconds - sum(spent.values())}


def _timed(method: Callable[..., Any], spent: dict[str, float], stage: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return method(*args, **kwargs)
        finally:
            spent[stage] += time.process_time() - start

    return call


class _Recorded(SnapshotScorer):
    """A scorer of samples that all snapshots were run on before."""

    def __init__(self, whole: SnapshotScorer, rule: MI, known: Mapping[str, Features], probe: Probe) -> None:
        rows = whole.rows
        self.rows = ProbeRows.of(probe, rows.task, rows.num_classes, BATCH_SIZE, rows.seed)
        self.scorer = rule.prepare(self.rows, "cpu")
        self._known = known
        images = (whole.rows.probe.inputs, whole.rows.targets)
        self._places = {key: place for place, key in enumerate(_keys(*images))}

    def run(self, weights: Mapping[str, Tensor], file: str, rows: ProbeRows) -> Features:
        """What was found before."""
        keys = _keys(rows.probe.inputs, rows.targets)
        return self._known[file].taken(torch.tensor([self._places[key] for key in keys]))


def _keys(images: Tensor | None, labels: Tensor) -> Iterator[bytes]:
    assert images is not None
    for image, label in zip(images, labels, strict=True):
        yield image.numpy().tobytes() + bytes([int(label)])


class _NoMemo:
    def read(self, key: str, snapshot: object) -> None:
        return None

    def write(self, key: str, snapshot: object, score: object) -> None:
        pass

    def gather(self, key: str, scores: object) -> None:
        pass


def count_draws(task: Task, harvest: Path, images: Tensor, labels: Tensor, draws: int) -> dict[str, Any]:
    """How often a race chooses as the full table does, over draws of the probe set."""
    rule, settings, module = MI(), SelectionSettings(), task.teacher()
    items = read_items(SnapshotStore.open(harvest))
    with borrowed(module, "cpu"):
        whole = SnapshotScorer(settings, rule, module, Probe((Batch(images, labels),)), "cpu", whole=True)
        known = {item.snapshot.file: whole.features(item) for item in items}
    counts = {"draws": draws, "first_same": 0, "set_same": 0, "set_within_one_error": 0, "samples_run": 0.0}
    cheap = [replace(item, load=dict, verify=lambda: None) for item in items]
    for draw in range(draws):
        generator = torch.Generator().manual_seed(1000 + draw)
        places = torch.randperm(len(images), generator=generator)[: min(PROBE_SIZE, 4 * len(images) // 5)].sort().values
        probe = Probe((Batch(images[places], labels[places]),))
        scorer, own = _Recorded(whole, rule, known, probe), replace(settings, seed=draw)
        full = [scorer.measure(item.candidate(), known[item.snapshot.file].taken(places)) for item in items]
        race = Race.of(scorer, own, rule, nn.Linear(1, 1), "cpu", _NoMemo(), "")
        assert isinstance(race, Race)
        scores = race.run(cheap, 3).scores
        chosen, theirs = (_chosen(found, own, scorer) for found in (scores, full))
        counts["first_same"] += chosen[0] == theirs[0]
        counts["set_same"] += set(chosen) == set(theirs)
        counts["set_within_one_error"] += _near(full, scorer, chosen, theirs)
        counts["samples_run"] += sum(s.candidate.scored_on or len(places) for s in scores) / len(places) / len(items)
    return {**counts, "samples": len(places), "samples_run": counts["samples_run"] / draws}


def _chosen(scores: list[Score], settings: SelectionSettings, scorer: SnapshotScorer) -> list[int]:
    chosen = choose_by_score(scores, settings, 3, scorer.scorer.rank, lambda *_: ()).chosen
    places = {score.candidate.file: place for place, score in enumerate(scores)}
    return [places[file] for file in chosen]


def _near(full: list[Score], scorer: SnapshotScorer, chosen: list[int], theirs: list[int]) -> bool:
    """Whether each of a set is within one standard error of the one of that place in the full table."""
    ranked = scorer.scorer.rank(full)
    values = [float(candidate.score or 0) for candidate in ranked.candidates]
    pairs = zip(chosen, theirs, strict=True)
    return all(
        values[other] - values[one] <= float(jackknife_error(ranked.replicates[:, other] - ranked.replicates[:, one]))
        for one, other in pairs
    )


def table(found: dict[str, Any]) -> str:
    """Costs, and where they go, as shares of the bare forward passes; then the draws."""
    costs = ["full table", "race", "samples run", *STAGES, "the rest"]
    header = ["harvest", "snapshots", "samples", *costs, "first", "set"]
    rows = [
        [
            name,
            str(one["snapshots"]),
            str(one["samples"]),
            *(f"{one[key]:.2f}" for key in ("full_table", "race", "samples_run")),
            *(f"{share:.2f}" for share in one["stages"].values()),
            "same" if one["first_same"] else "other",
            "same" if one["chosen"] == one["chosen_by_full_table"] else "other",
        ]
        for name, one in found["cost"].items()
    ]
    draws = [
        [name, *(str(one[key]) for key in ("draws", "samples", "first_same", "set_same", "set_within_one_error"))]
        for name, one in found["draws"].items()
    ]
    of_draws = ["harvest", "draws", "samples", "first same", "set same", "within one error"]
    return f"{format_table(header, rows)}\n\n{format_table(of_draws, draws)}\nTarget: race <= {TARGET}"


if __name__ == "__main__":
    main()
