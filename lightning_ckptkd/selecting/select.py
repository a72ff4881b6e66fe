"""Selecting: run and score every snapshot of a list, rank them, choose; again with students where there is a proxy.

A list of snapshots comes in and a choice goes out. Where snapshots and earlier scores are read from, and where the
choice is written to, is the door's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from lightning_ckptkd.errors import SelectionError
from lightning_ckptkd.selecting.choosing import Choice, choose_by_position, how_many, too_few
from lightning_ckptkd.selecting.items import Harvested
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.proxy_scorer import ProxyScorer
from lightning_ckptkd.selecting.rows import ProbeRows
from lightning_ckptkd.selecting.rules import PositionRule, ScoringRule
from lightning_ckptkd.selecting.score import Score
from lightning_ckptkd.selecting.scoring import ScoredSnapshots, spread
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.selecting.snapshot_scorer import check_snapshot
from lightning_ckptkd.selecting.student_proxy import StudentProxy
from lightning_ckptkd.selecting.training_data import TrainingData
from lightning_ckptkd.trainer.ranks import current_rank, num_ranks, on_rank_zero


@dataclass(frozen=True)
class Outcome:
    """A choice, and what it was made on.

    Attributes:
        choice: What was chosen.
        rows: The probe set as it was scored; None where nothing was run.
        proxy: Student, budget and cost in seconds of a proxy distillation; empty where there was none.
        scores: Of every snapshot, in the order of training.
        soup: What is recorded of a soup; likewise.
        parts: Of a race, by number of samples, the scores on these by file; likewise.
    """

    choice: Choice
    rows: ProbeRows | None = None
    proxy: Mapping[str, Any] = field(default_factory=dict)
    scores: Sequence[Score] = ()
    soup: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[int, Mapping[str, Score]] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """Students that the best snapshots are tried on.

    Attributes:
        proxy: The student and its budget.
        data: What students are trained on.
        before: Is given the choice without them before they are trained, on rank 0, so that whatever ends them leaves
            one. Ctrl-C in a single process ends them, and nothing else.
    """

    proxy: StudentProxy
    data: TrainingData
    before: Callable[[Outcome], None]


def select_by_position(
    harvested: Harvested, settings: SelectionSettings, rule: PositionRule, *, progress: bool = False
) -> Outcome:
    """Choose by the place in training: the snapshots are read and verified, and no more.

    Each rank reads every n-th snapshot, and all get the same result: call it on every rank.

    Args:
        harvested: The snapshots.
        settings: How many to choose.
        rule: Theirs.
        progress: Whether rank 0 shows a progress bar.

    Raises:
        SelectionError: If fewer snapshots can be chosen than were asked for.
        SnapshotError: If a file is missing, damaged or hostile.
    """
    _check_count(harvested, settings)
    scores = spread(harvested.items, lambda own: [check_snapshot(item) for item in own], progress=progress)
    count = how_many(scores, rule, settings.num_teachers, harvested.folder)
    assert isinstance(count, int)  # the settings have checked it
    return Outcome(choose_by_position(scores, rule, count), scores=scores)


def select_by_score(
    harvested: Harvested,
    settings: SelectionSettings,
    rule: ScoringRule,
    module: nn.Module,
    probe: Probe,
    *,
    trial: Trial | None = None,
    training: TrainingData | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Outcome:
    """Score the snapshots and choose among them.

    Each rank scores every n-th snapshot, and all get the same result: call it on every rank. The module is handed
    back as it came: weights, modes and device.

    Args:
        harvested: The snapshots.
        settings: How to score and choose.
        rule: Theirs.
        module: A module that the snapshots fit.
        probe: The probe samples.
        trial: Ranks the best again by what a student learns from them.
        training: For the BatchNorm statistics of a soup.
        device: Where the module runs.
        progress: Whether rank 0 shows a progress bar.

    Raises:
        SelectionError: If fewer snapshots can be chosen than were asked for.
        SnapshotError: If a file is missing, damaged or hostile.
        TeacherError: If a snapshot does not fit the module.
        ArgumentError: If the module or the probe does not suit the settings.
    """
    _check_count(harvested, settings)
    needed = trial is not None
    scored = ScoredSnapshots(harvested, settings, rule, module, probe, device, need_logits=needed, progress=progress)
    outcome = Outcome(scored.choose(), scored.rows, scores=scored.scores, parts=scored.parts)
    on_rank_zero(scored.keep)
    if trial is not None:
        outcome = _try_students(harvested, settings, rule, module, scored, outcome, trial, device, progress=progress)
    soup = settings.soup
    if soup is None:
        return outcome
    found = scored.make_soup(outcome.choice, soup, training, progress=progress)
    return replace(outcome, choice=found.choice, soup=found.record)


def _try_students(
    harvested: Harvested,
    settings: SelectionSettings,
    rule: ScoringRule,
    module: nn.Module,
    scored: ScoredSnapshots,
    outcome: Outcome,
    trial: Trial,
    device: torch.device | str,
    *,
    progress: bool,
) -> Outcome:
    """The choice again with students."""
    on_rank_zero(lambda: trial.before(outcome))
    started = time.perf_counter()
    proxy = trial.proxy
    scorer = ProxyScorer(harvested, settings, rule, proxy, module, scored.rows, trial.data, device)
    best = sorted((c for c in outcome.choice.candidates if c.rank is not None), key=lambda c: c.rank or 0)
    try:
        students = scorer.score(best[: proxy.candidates], progress=progress and current_rank() == 0)
    except KeyboardInterrupt:
        if num_ranks() > 1:  # the others wait, and can't be told
            raise
        return replace(outcome, proxy={**proxy.describe(), "cancelled": True})
    cost = {"cancelled": False, "students": len(students), "seconds": round(time.perf_counter() - started, 1)}
    return replace(outcome, choice=scored.choose(students), proxy={**proxy.describe(), **cost})


def _check_count(harvested: Harvested, settings: SelectionSettings) -> None:
    wanted, total = settings.least, len(harvested.items)
    if wanted > total:
        raise SelectionError(too_few(harvested.folder, wanted, total, total))
