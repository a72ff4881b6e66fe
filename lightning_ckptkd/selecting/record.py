"""What ``selection.json`` says of a choice."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import torch

from lightning_ckptkd.selecting.rows import ProbeRows
from lightning_ckptkd.selecting.select import Outcome
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.selecting.worth import worth_of
from lightning_ckptkd.snapshots import Selection


def make_selection(run_id: str, settings: SelectionSettings, outcome: Outcome) -> Selection:
    """The record of a choice.

    Args:
        run_id: Of the harvest.
        settings: What the choice was made with.
        outcome: The choice.
    """
    rows, choice, scoring = outcome.rows, outcome.choice, settings.scoring
    held_out = None if rows is None or scoring is None else scoring.held_out(rows.task)
    found = Selection(
        run_id=run_id,
        rule=settings.rule.name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings=settings.describe(None if rows is None else rows.task),
        probe={} if rows is None else describe_probe(rows),
        candidates=choice.candidates,
        chosen=choice.chosen,
        joint=choice.joint,
        proxy=dict(outcome.proxy),
        soup=dict(outcome.soup),
    )
    size = 0 if rows is None else len(rows)
    return replace(found, worth=worth_of(outcome.scores, found.taught_by, settings.rule, held_out, size, outcome.parts))


def describe_probe(rows: ProbeRows) -> dict[str, Any]:
    """Samples, classes and the label entropy in nats; and how many rows the samples have, where that is another number.

    Returns:
        JSON's types. ``classes`` are those that occur; None where targets are no class indices. ``label_entropy`` is
        None where it has no bound.
    """
    entropy = rows.task.label_entropy(rows.targets, rows.units)
    of_classes = rows.targets.dim() == 1 and not rows.targets.is_floating_point()
    described = {
        "size": len(rows),
        "classes": len(torch.unique(rows.targets)) if of_classes else None,
        "label_entropy": entropy,
    }
    return described if rows.samples is None else {**described, "rows": int(rows.counts.sum())}
