"""A choice for the run's loggers: each snapshot's numbers at its step, the table and the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from lightning_ckptkd.selecting.picture import PICTURE_NAME
from lightning_ckptkd.selecting.report import numbers_by_step
from lightning_ckptkd.snapshots.folders import Folder
from lightning_ckptkd.snapshots.selection import Candidate, Selection
from lightning_ckptkd.trainer.loggers import log_numbers, log_picture, log_table

_LEFT_OUT = ("sha256",)
_MAX_PICTURE = 2**24  # bytes


def log_selection(loggers: Sequence[Any], selection: Selection, folder: Folder, step: int) -> None:
    """Tell the loggers; those that have no place for tables or pictures get the numbers.

    Args:
        loggers: Of a run.
        selection: The choice.
        folder: The harvest's, where the picture is.
        step: The run's global step.
    """
    log_numbers(loggers, "selection/numbers", list(numbers_by_step(selection)))
    header, rows = tabulate(selection)
    log_table(loggers, "selection/table", header, rows, step)
    if loggers and folder.exists(PICTURE_NAME):
        log_picture(loggers, "selection/picture", folder.read(PICTURE_NAME, limit=_MAX_PICTURE), step)


def tabulate(selection: Selection) -> tuple[list[str], list[list[Any]]]:
    """Columns of what is known of some snapshot, and a row for each, with whether it teaches, alone or in a soup."""
    names = [
        field.name
        for field in fields(Candidate)
        if field.name not in _LEFT_OUT and any(getattr(item, field.name) is not None for item in selection.candidates)
    ]
    teach = selection.taught_by
    rows = [[*(getattr(item, name) for name in names), item.file in teach] for item in selection.candidates]
    return [*names, "chosen"], rows
