"""Which snapshots of a harvest teach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError, SelectionError
from lightning_ckptkd.information.ranking import rank_half, rank_last
from lightning_ckptkd.snapshots import SELECTION_NAME, Selection, Snapshot, SnapshotStore

_POSITIONS = {"full": rank_last, "half": rank_half}


def choose_teachers(store: SnapshotStore, choice: str | Sequence[int] | None = None) -> list[Snapshot]:
    """The snapshots that teach.

    Args:
        store: The harvest.
        choice: None takes the choice in ``selection.json`` or, where nothing was selected yet, the last snapshot,
            with a warning. ``selected`` insists on ``selection.json``; ``full`` is the last snapshot, ``half`` the
            one half-way through training; a list names epochs, counted from 0.

    Raises:
        ArgumentError: If ``choice`` is none of these.
        SelectionError: If it names an epoch that was not harvested.
        SnapshotError: If ``selection.json`` is missing where it is needed, or can't be trusted.
    """
    check_types(choose_teachers, locals())
    selected = choice == "selected" or choice is None
    if choice is None and not store.folder.exists(SELECTION_NAME):
        rank_zero_warn(
            f"{store.folder} has no {SELECTION_NAME}: the last snapshot alone will teach. Choose better teachers with "
            f"MISelector or `ckptkd select {store.folder}`, or give choice='full' to keep this one."
        )
        selected, choice = False, "full"
    if selected:
        by_file = {snapshot.file: snapshot for snapshot in (*store.snapshots, *store.soups)}
        return [by_file[name] for name in Selection.read(store).chosen]
    if isinstance(choice, str):
        if choice not in _POSITIONS:
            raise ArgumentError(
                f"choice={choice!r} is unknown; give 'selected', {', '.join(map(repr, _POSITIONS))} or epochs."
            )
        steps = torch.tensor([snapshot.global_step for snapshot in store.snapshots], dtype=torch.float64)
        return [store.snapshots[index] for index in _POSITIONS[choice](steps, 1).tolist()]
    by_epoch = {snapshot.epoch: snapshot for snapshot in store.snapshots}  # of several in an epoch the last
    epochs = list(choice or ())
    missing = [epoch for epoch in epochs if epoch not in by_epoch]
    if missing or not epochs:
        raise SelectionError(
            f"choice={epochs}: {store.folder} has no snapshot of the epochs {missing}; it has {sorted(by_epoch)}."
        )
    return [by_epoch[epoch] for epoch in epochs]


def scores_of(store: SnapshotStore, chosen: Sequence[Snapshot]) -> list[float | None]:
    """The score of each teacher in ``selection.json``; None where it has none.

    Raises:
        SnapshotError: If ``selection.json`` is missing, or can't be trusted.
    """
    selection = Selection.read(store)
    scores = {candidate.file: candidate.score for candidate in selection.candidates}
    if selection.soup.get("taken"):
        scores[selection.soup["file"]] = 1.0  # it teaches alone, whatever it counts
    return [scores.get(snapshot.file) for snapshot in chosen]


def selected_task(store: SnapshotStore, choice: str | Sequence[int] | None) -> str | None:
    """The task that the selection read its targets as; None where no selection chooses, or it does not say.

    Args:
        store: The harvest.
        choice: As :func:`choose_teachers` has it.

    Raises:
        SnapshotError: If ``selection.json`` can't be trusted.
    """
    if choice not in (None, "selected") or not store.folder.exists(SELECTION_NAME):
        return None
    task = Selection.read(store).settings.get("task")
    name = task.get("name") if isinstance(task, Mapping) else None
    return name if isinstance(name, str) else None


def check_weights(weights: Sequence[float | None] | str, count: int) -> Tensor:
    """What each teacher counts, as a tensor.

    Args:
        weights: A number for each.
        count: M, how many teachers there are.

    Returns:
        Shape (M,), float32, finite, 0 or more, not all 0.

    Raises:
        ArgumentError: If they can't be used.
    """
    found = [] if isinstance(weights, str) else weights
    usable = [value for value in found if value is not None and math.isfinite(value) and value >= 0]
    if len(usable) != count or len(found) != count or sum(usable) <= 0:
        raise ArgumentError(
            f"teacher_weights={weights!r} should be 'score' (of a selection that has scores, 0 or more) or {count} "
            "numbers of 0 or more, one for each teacher."
        )
    return torch.tensor(usable)
