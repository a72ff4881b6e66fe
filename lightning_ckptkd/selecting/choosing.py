"""Ranking scored snapshots and choosing among them: a list in, a list out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_ckptkd.errors import SelectionError
from lightning_ckptkd.information.ranking import DEFAULT_TIES, choose_spaced, rank_by_score
from lightning_ckptkd.selecting.rules import AUTO, PositionRule, Ranked, Rule
from lightning_ckptkd.selecting.score import Score, replicates_of, values_of
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.snapshots import Candidate, JointChoice

STUDENT = "student_information"  # the term of a snapshot that was tried on a student

Rank = Callable[[Sequence[Score]], Ranked]
Grow = Callable[[Sequence[Score], Sequence[Candidate], int | str | None], Sequence[JointChoice]]
"""Makes a joint choice: all usable scores, the candidates with the best first, and how many (None for as many as tell
something, ``auto`` for as many of the best)."""


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


def choose_by_position(scores: Sequence[Score], rule: PositionRule, count: int) -> Choice:
    """Choose by the place in training.

    Args:
        scores: Of every snapshot, in the order of training; at least ``count`` of them usable.
        rule: Which places.
        count: How many.
    """
    candidates = [score.candidate for score in scores if score.candidate.excluded is None]
    order = rule.order(_steps(candidates), count).tolist()
    best = [candidates[index] for index in order]
    return Choice(_with_ranks(scores, candidates, best), tuple(candidate.file for candidate in best[:count]))


def choose_by_score(
    scores: Sequence[Score],
    settings: SelectionSettings,
    count: int | str,
    rank: Rank,
    grow: Grow,
    students: Mapping[str, Score] | None = None,
) -> Choice:
    """Rank the usable snapshots and choose.

    Args:
        scores: Of every snapshot, in the order of training; at least ``count`` of them usable.
        settings: How to choose.
        count: How many, where that does not depend on what they tell jointly; ``auto`` where it does.
        rank: Makes scores of what was measured.
        grow: Makes a joint choice.
        students: Of snapshots that were tried on a student, by file: these come before all others, in the order of
            what their students tell of the labels.
    """
    usable = [score for score in scores if score.ranks]
    ranked = rank(usable)
    candidates = list(ranked.candidates)
    steps = _steps(candidates)
    values = torch.tensor([candidate.score for candidate in candidates], dtype=torch.float64)
    ties = DEFAULT_TIES if settings.scoring is None else settings.scoring.ties
    order = rank_by_score(values, ranked.replicates, steps, ties)
    if students:
        candidates = [_with_student(candidate, students.get(candidate.file)) for candidate in candidates]
        order = _students_first(order, candidates, students, steps, ties)
    best = [candidates[index] for index in order.tolist()]
    everything = _with_ranks(scores, candidates, best)
    greedy = settings.ensemble == "greedy"
    if greedy or isinstance(count, str):
        number = AUTO if not greedy else settings.num_teachers if isinstance(settings.num_teachers, int) else None
        joint = tuple(grow(usable, best, number))
        return Choice(everything, tuple(step.file for step in joint), joint)
    if settings.ensemble == "spaced":
        best = [candidates[index] for index in choose_spaced(order, steps, count).tolist()]
    return Choice(everything, tuple(candidate.file for candidate in best[:count]))


def how_many(scores: Sequence[Score], rule: Rule, wanted: int | str | None, folder: str) -> int | str:
    """How many snapshots to choose; ``auto`` where that depends on what they tell jointly.

    Args:
        scores: Of every snapshot.
        rule: Says it where the user does not.
        wanted: What the user says.
        folder: The harvest's, for messages.

    Raises:
        SelectionError: If fewer can be chosen than were asked for.
    """
    candidates = [score.candidate for score in scores]
    usable = sum(candidate.excluded is None for candidate in candidates)
    least = wanted if isinstance(wanted, int) else 1
    if usable < least:
        raise SelectionError(too_few(folder, least, usable, len(candidates), candidates))
    if wanted is None:
        return rule.num_teachers if isinstance(rule.num_teachers, str) else min(rule.num_teachers, usable)
    return wanted


def too_few(folder: str, wanted: int, usable: int, total: int, candidates: Sequence[Candidate] = ()) -> str:
    """The message where fewer snapshots are usable than were asked for."""
    reasons = "".join(
        f" {candidate.file} is excluded: {candidate.excluded}." for candidate in candidates if candidate.excluded
    )
    remedy = f"ask for fewer: num_teachers={usable} (`--num_teachers {usable}`)" if usable else "none of them can teach"
    found = f"num_teachers={wanted}, but {folder} has {usable} usable of {total} snapshots."
    return f"{found}{reasons} The snapshots are kept; {remedy}."


def _steps(candidates: Sequence[Candidate]) -> Tensor:
    return torch.tensor([candidate.global_step for candidate in candidates], dtype=torch.float64)


def _with_ranks(
    scores: Sequence[Score], candidates: Sequence[Candidate], best: Sequence[Candidate]
) -> tuple[Candidate, ...]:
    """Every snapshot in the order of training, the usable ones with what is known of them."""
    ranks = {candidate.file: rank for rank, candidate in enumerate(best, start=1)}
    by_file = {candidate.file: candidate for candidate in candidates}
    everything = (by_file.get(score.candidate.file, score.candidate) for score in scores)
    return tuple(replace(candidate, rank=ranks.get(candidate.file)) for candidate in everything)


def _with_student(candidate: Candidate, student: Score | None) -> Candidate:
    if student is None:
        return candidate
    names = "student_information", "student_error", "student_accuracy"
    return replace(candidate, **{name: getattr(student.candidate, name) for name in names})


def _students_first(
    order: Tensor, candidates: Sequence[Candidate], students: Mapping[str, Score], steps: Tensor, ties: str
) -> Tensor:
    tried = [index for index, candidate in enumerate(candidates) if candidate.file in students]
    terms = [students[candidates[index].file].terms[STUDENT] for index in tried]
    places = rank_by_score(values_of(terms), replicates_of(terms), steps[tried], ties)
    first = [tried[place] for place in places.tolist()]
    return torch.tensor([*first, *(index for index in order.tolist() if index not in tried)])
