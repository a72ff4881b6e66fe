"""Ranking scored snapshots and choosing the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lightning_ckptkd.errors import SelectionError
from lightning_ckptkd.information.ranking import normalise, rank_by_position, rank_descending
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.snapshots import Candidate, SnapshotStore

_DEFAULT_TEACHERS = 3


def choose(
    store: SnapshotStore, settings: SelectionSettings, candidates: Sequence[Candidate]
) -> tuple[list[Candidate], tuple[str, ...]]:
    """Rank the usable candidates; gives all of them with their ranks, and the chosen files, the best first."""
    usable = [candidate for candidate in candidates if candidate.excluded is None]
    wanted = settings.num_teachers
    if len(usable) < (wanted or 1):
        raise SelectionError(too_few(store, wanted or 1, len(usable), candidates))
    if wanted is None:
        wanted = 1 if settings.rule in ("full", "half") else min(_DEFAULT_TEACHERS, len(usable))
    steps = torch.tensor([candidate.global_step for candidate in usable], dtype=torch.float64)
    if settings.rule == "mi":
        usable = _with_scores(usable, settings)
    if settings.needs_probe:
        scores = torch.tensor([candidate.score for candidate in usable], dtype=torch.float64)
        order = rank_descending(scores, steps).tolist()
    else:
        order = rank_by_position(steps, settings.rule, wanted).tolist()
    ranks = {usable[index].file: rank for rank, index in enumerate(order, start=1)}
    by_file = {candidate.file: candidate for candidate in usable}
    ranked = [
        replace(by_file.get(candidate.file, candidate), rank=ranks.get(candidate.file)) for candidate in candidates
    ]
    return ranked, tuple(usable[index].file for index in order[:wanted])


def _with_scores(usable: Sequence[Candidate], settings: SelectionSettings) -> list[Candidate]:
    terms = {
        name: normalise(
            torch.tensor([getattr(candidate, name) for candidate in usable], dtype=torch.float64),
            settings.normalisation,
        ).tolist()
        for name in ("input_information", "label_information")
    }
    return [
        replace(
            candidate,
            input_term=input_term,
            label_term=label_term,
            score=settings.input_weight * input_term + settings.label_weight * label_term,
        )
        for candidate, input_term, label_term in zip(usable, *terms.values(), strict=True)
    ]


def too_few(store: SnapshotStore, wanted: int, usable: int, candidates: Sequence[Candidate]) -> str:
    """The message where fewer snapshots are usable than were asked for."""
    reasons = "".join(
        f" {candidate.file} is excluded: {candidate.excluded}." for candidate in candidates if candidate.excluded
    )
    return (
        f"num_teachers={wanted}, but {store.folder} has {usable} usable of {len(store.snapshots)} snapshots.{reasons} "
        f"The snapshots are kept; ask for fewer: `ckptkd select {store.folder} --num_teachers {max(usable, 1)}`."
    )
