"""Ranking scored snapshots and choosing among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_ckptkd.errors import SelectionError
from lightning_ckptkd.information.joint import JointStep
from lightning_ckptkd.information.ranking import ScoreRule, choose_spaced, rank_by_position, rank_by_score
from lightning_ckptkd.information.uncertainty import jackknife_error
from lightning_ckptkd.selecting.score import Score, stack_replicates
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.snapshots import Candidate, JointChoice, SnapshotStore

_DEFAULT_TEACHERS = 3
POOL = 40  # snapshots that a joint choice is made among

Grow = Callable[[Sequence[Candidate], int | None, tuple[float, float]], Sequence[JointStep]]
"""Makes a joint choice among candidates, the best first: how many (None for as many as tell something), and what a
nat of each term is worth."""


@dataclass(frozen=True)
class Choice:
    """What came out.

    Attributes:
        candidates: All, with their ranks.
        chosen: Names of the chosen files, the best first.
        joint: The steps of a joint choice.
    """

    candidates: tuple[Candidate, ...]
    chosen: tuple[str, ...]
    joint: tuple[JointChoice, ...] = ()


def choose(
    store: SnapshotStore,
    settings: SelectionSettings,
    scores: Sequence[Score],
    entropies: tuple[float, float],
    grow: Grow,
    students: Mapping[str, Score] | None = None,
) -> Choice:
    """Rank the usable snapshots and choose.

    Args:
        store: The harvest.
        settings: How to choose.
        scores: Of every snapshot, in the order of training.
        entropies: The most that I(X;F) and I(Y;F) could be, in nats.
        grow: Makes a joint choice.
        students: Of snapshots that were tried on a student, by file: these come before all others, in the order of
            what their students tell of the labels.

    Raises:
        SelectionError: If fewer snapshots can be chosen than were asked for.
    """
    usable = [score for score in scores if score.candidate.excluded is None]
    wanted = settings.num_teachers
    if len(usable) < (wanted or 1):
        raise SelectionError(too_few(store, wanted or 1, len(usable), [score.candidate for score in scores]))
    count = wanted
    if count is None:
        count = 1 if settings.rule in ("full", "half") else min(_DEFAULT_TEACHERS, len(usable))
    steps = torch.tensor([score.candidate.global_step for score in usable], dtype=torch.float64)
    candidates = [score.candidate for score in usable]
    worth = 0.0, 0.0
    if not settings.needs_probe:
        order = rank_by_position(steps, settings.rule, count)
    else:
        if settings.rule == "mi":
            candidates, replicates, worth = _with_scores(usable, settings, entropies)
        else:
            replicates = stack_replicates(usable, "score_replicates")
        values = torch.tensor([candidate.score for candidate in candidates], dtype=torch.float64)
        order = rank_by_score(values, replicates, steps)
        if students:
            candidates = [_with_student(candidate, students.get(candidate.file)) for candidate in candidates]
            order = _students_first(order, candidates, students, steps)
    best = [candidates[index] for index in order.tolist()]
    ranks = {candidate.file: rank for rank, candidate in enumerate(best, start=1)}
    by_file = {candidate.file: candidate for candidate in candidates}
    ranked = tuple(
        replace(by_file.get(score.candidate.file, score.candidate), rank=ranks.get(score.candidate.file))
        for score in scores
    )
    joint: tuple[JointChoice, ...] = ()
    if settings.needs_probe and settings.ensemble == "spaced":
        best = [candidates[index] for index in choose_spaced(order, steps, count).tolist()]
    elif settings.needs_probe and settings.ensemble == "greedy":
        floor = settings.label_floor * max(candidate.label_information or 0.0 for candidate in candidates)
        pool = [candidate for candidate in best if (candidate.label_information or 0.0) >= floor][:POOL]
        pool = pool if len(pool) >= (wanted or 1) else best[:POOL]
        grown = grow(pool, wanted, worth)
        best, count = [pool[step.member] for step in grown], len(grown)
        joint = tuple(
            JointChoice(
                pool[step.member].file, step.input_information, step.label_information, step.gain, step.gain_error
            )
            for step in grown
        )
    return Choice(ranked, tuple(candidate.file for candidate in best[:count]), joint)


def _with_scores(
    usable: Sequence[Score], settings: SelectionSettings, entropies: tuple[float, float]
) -> tuple[list[Candidate], Tensor, tuple[float, float]]:
    """Candidates with terms, scores and errors; the replicates of the scores (G, S); what a nat is worth."""
    rule = ScoreRule(
        settings.input_weight, settings.label_weight, settings.normalisation, settings.label_floor, *entropies
    )
    x, y = (
        torch.tensor([getattr(score.candidate, name) for score in usable], dtype=torch.float64)
        for name in ("input_information", "label_information")
    )
    replicates = rule.scores(
        stack_replicates(usable, "input_replicates"), stack_replicates(usable, "label_replicates"), rule.above_floor(y)
    )
    errors = jackknife_error(replicates).tolist()
    terms = [term.tolist() for term in (*rule.terms(x, y), rule.scores(x, y))]
    candidates = [
        replace(score.candidate, input_term=input_term, label_term=label_term, score=value, score_error=error)
        for score, input_term, label_term, value, error in zip(usable, *terms, errors, strict=True)
    ]
    return candidates, replicates, rule.weights_of_nats(x, y)


def _with_student(candidate: Candidate, student: Score | None) -> Candidate:
    if student is None:
        return candidate
    names = "student_information", "student_error", "student_accuracy"
    return replace(candidate, **{name: getattr(student.candidate, name) for name in names})


def _students_first(
    order: Tensor, candidates: Sequence[Candidate], students: Mapping[str, Score], steps: Tensor
) -> Tensor:
    tried = [index for index, candidate in enumerate(candidates) if candidate.file in students]
    values = torch.tensor([candidates[index].student_information for index in tried], dtype=torch.float64)
    replicates = stack_replicates([students[candidates[index].file] for index in tried], "score_replicates")
    first = [tried[place] for place in rank_by_score(values, replicates, steps[tried]).tolist()]
    return torch.tensor([*first, *(index for index in order.tolist() if index not in tried)])


def too_few(store: SnapshotStore, wanted: int, usable: int, candidates: Sequence[Candidate]) -> str:
    """The message where fewer snapshots are usable than were asked for."""
    reasons = "".join(
        f" {candidate.file} is excluded: {candidate.excluded}." for candidate in candidates if candidate.excluded
    )
    return (
        f"num_teachers={wanted}, but {store.folder} has {usable} usable of {len(store.snapshots)} snapshots.{reasons} "
        f"The snapshots are kept; ask for fewer: `ckptkd select {store.folder} --num_teachers {max(usable, 1)}`."
    )
