"""Selecting: score every snapshot of a harvest on the probe set, spread over ranks, and choose by a rule."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lightning_ckptkd.errors import ArgumentError, SelectionError
from lightning_ckptkd.information.joint import JointStep
from lightning_ckptkd.information.label import label_entropy
from lightning_ckptkd.information.ranking import POSITION_RULES
from lightning_ckptkd.selecting.borrowing import borrowed
from lightning_ckptkd.selecting.choosing import choose, too_few
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.proxy_scorer import ProxyScorer, TrainingData
from lightning_ckptkd.selecting.score import Score
from lightning_ckptkd.selecting.score_files import ScoreFiles, scoring_key
from lightning_ckptkd.selecting.scoring import describe_probe
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.selecting.snapshot_scorer import SnapshotScorer, check_snapshot
from lightning_ckptkd.selecting.student_proxy import StudentProxy
from lightning_ckptkd.snapshots import Candidate, Selection, Snapshot, SnapshotStore
from lightning_ckptkd.snapshots.fields import shown
from lightning_ckptkd.trainer.ranks import current_rank, num_ranks, on_all_ranks, on_rank_zero


def select_snapshots(
    store: SnapshotStore,
    settings: SelectionSettings,
    module: nn.Module | None,
    probe: Probe | None,
    *,
    proxy: StudentProxy | None = None,
    data: TrainingData | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Selection:
    """Score the snapshots of a harvest and choose among them.

    Each rank scores every n-th snapshot, and all get the same result: call it on every rank. The module is handed
    back as it came: weights, modes and device. Scores are kept in the folder, so that a selection that was interrupted
    goes on from them and a later one with the same settings has nothing to run.

    Args:
        store: The harvest.
        settings: How to score and choose.
        module: A module that the snapshots fit; not needed for a rule that goes by position.
        probe: The probe samples; likewise.
        proxy: Ranks the best again by what a student learns from them. The choice without it is written first, and
            stands if this takes too long for somebody: Ctrl-C in a single process ends it, and nothing else.
        data: What the proxy's students are trained on.
        device: Where the module runs.
        progress: Whether rank 0 shows a progress bar.

    Raises:
        SelectionError: If fewer snapshots can be chosen than were asked for.
        SnapshotError: If a file is missing, damaged or hostile.
        TeacherError: If a snapshot does not fit the module.
        ArgumentError: If the module or the probe does not suit the settings.
    """
    if proxy is not None and data is None:
        raise ArgumentError("student_proxy trains students and needs training data. Give a train= dataloader.")
    wanted = settings.num_teachers or 1
    if wanted > len(store.snapshots):
        raise SelectionError(too_few(store, wanted, len(store.snapshots), []))
    work: _Work = _Positions(store)
    if settings.needs_probe:
        if module is None or probe is None:
            raise ArgumentError(_what_is_missing(store, settings, module))
        work = _Scoring(store, settings, module, probe, device)

    own = store.snapshots[current_rank() :: num_ranks()]
    bar = tqdm(own, desc="Selecting teachers", unit="snapshot", disable=not progress or current_rank() > 0)
    scored = [score for part in on_all_ranks(lambda: work.score(bar)) for score in part]
    by_file = {score.candidate.file: score for score in scored}
    scores = [by_file[snapshot.file] for snapshot in store.snapshots]
    choice = choose(store, settings, scores, work.entropies, work.grow)
    on_rank_zero(lambda: work.finish(scores))
    selection = Selection(
        run_id=store.manifest.run_id,
        rule=settings.rule,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings=asdict(settings),
        probe=describe_probe(probe) if settings.needs_probe and probe is not None else {},
        candidates=choice.candidates,
        chosen=choice.chosen,
        joint=choice.joint,
    )
    if proxy is None:
        return selection
    assert module is not None and probe is not None
    assert data is not None
    on_rank_zero(lambda: selection.write(store))
    started = time.perf_counter()
    scorer = ProxyScorer(store, settings, proxy, module, probe, data, device)
    best = sorted((c for c in choice.candidates if c.rank is not None), key=lambda c: c.rank or 0)
    try:
        students = scorer.score(best[: proxy.candidates], progress=progress and current_rank() == 0)
    except KeyboardInterrupt:
        if num_ranks() > 1:  # the others wait, and can't be told
            raise
        return replace(selection, proxy={**proxy.describe(), "cancelled": True})
    choice = choose(store, settings, scores, work.entropies, work.grow, students)
    cost = {"cancelled": False, "students": len(students), "seconds": round(time.perf_counter() - started, 1)}
    return replace(
        selection,
        candidates=choice.candidates,
        chosen=choice.chosen,
        joint=choice.joint,
        proxy={**proxy.describe(), **cost},
    )


class _Work(Protocol):
    """What is done for a choice besides choosing; each rank makes the same calls."""

    entropies: tuple[float, float]

    def score(self, snapshots: Iterable[Snapshot]) -> list[Score]:
        """Score this rank's snapshots."""

    def grow(self, pool: Sequence[Candidate], count: int | None, worth: tuple[float, float]) -> Sequence[JointStep]:
        """Make a joint choice."""

    def finish(self, scores: Sequence[Score]) -> None:
        """What is left to do once the choice is made; rank 0 alone."""


class _Positions:
    """For rules that go by position: the snapshots are read and verified, and no more."""

    entropies = (0.0, 0.0)

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store

    def score(self, snapshots: Iterable[Snapshot]) -> list[Score]:
        return [check_snapshot(self._store, snapshot) for snapshot in snapshots]

    def grow(self, pool: Sequence[Candidate], count: int | None, worth: tuple[float, float]) -> Sequence[JointStep]:
        raise AssertionError("a rule by position makes no joint choice")

    def finish(self, scores: Sequence[Score]) -> None:
        pass


class _Scoring:
    """For rules that run the snapshots."""

    def __init__(
        self,
        store: SnapshotStore,
        settings: SelectionSettings,
        module: nn.Module,
        probe: Probe,
        device: torch.device | str,
    ) -> None:
        self._store, self._settings, self._module, self._probe, self._device = store, settings, module, probe, device
        self._files = ScoreFiles(store, scoring_key(settings, module, probe))
        self._scorer = SnapshotScorer(store, settings, module, probe, device)
        self.entropies = self._scorer.input_entropy, label_entropy(probe.labels)

    def score(self, snapshots: Iterable[Snapshot]) -> list[Score]:
        with borrowed(self._module, self._device):
            return [self._score(snapshot) for snapshot in snapshots]

    def grow(self, pool: Sequence[Candidate], count: int | None, worth: tuple[float, float]) -> Sequence[JointStep]:
        by_file = {snapshot.file: snapshot for snapshot in self._store.snapshots}
        own = range(current_rank(), len(pool), num_ranks())

        def members() -> list[tuple[int, Tensor, Tensor | None]]:
            with borrowed(self._module, self._device):
                return [(index, *self._scorer.member(by_file[pool[index].file])) for index in own]

        gathered = {index: (f, logits) for part in on_all_ranks(members) for index, f, logits in part}
        ordered = [gathered[index] for index in range(len(pool))]
        return on_rank_zero(lambda: self._scorer.grow(ordered, count, worth))

    def finish(self, scores: Sequence[Score]) -> None:
        self._files.gather(self._store.snapshots, scores)

    def _score(self, snapshot: Snapshot) -> Score:
        score = self._files.read(snapshot)
        if score is not None:
            self._store.verify(snapshot)  # it may be damaged since, and must not be chosen then
            return score
        score = self._scorer.score(snapshot)
        self._files.write(snapshot, score)
        return score


def _what_is_missing(store: SnapshotStore, settings: SelectionSettings, module: nn.Module | None) -> str:
    named = store.manifest.source.get("class_path")
    source = shown(named) if named else "a class that the manifest does not name"
    missing = f"the model that was trained, {source}" if module is None else "data to probe it with"
    return (
        f"rule={settings.rule!r} runs the snapshots and needs {missing}. Give both (`ckptkd select` takes "
        f"--model and --data, or --fit_config), or a rule that goes by position: {', '.join(POSITION_RULES)}."
    )
