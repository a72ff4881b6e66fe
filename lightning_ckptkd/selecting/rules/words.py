"""What a rule calls its numbers in the table and the picture of a choice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One number of each snapshot.

    Attributes:
        field: Name of the attribute of a candidate.
        header: What the table calls it, with its unit.
        error: Name of the attribute with its standard error; empty if it has none.
        percent: Whether it is a share that is shown in per cent.
    """

    field: str
    header: str
    error: str = ""
    percent: bool = False


@dataclass(frozen=True)
class HeldOut:
    """Which of a rule's terms says how much a snapshot tells of held-out labels.

    Attributes:
        term: Its name.
        unit: What it is measured in, once it is scaled.
        scale: What it is multiplied by.
    """

    term: str
    unit: str = "nats"
    scale: float = 1.0


@dataclass(frozen=True)
class Words:
    """How a rule presents itself.

    Attributes:
        score: What its score is called.
        columns: What else it knows of each snapshot, for the table; the first two are the axes of the picture's plane.
        lines: What is drawn over training, a candidate's attribute and its label.
        axis: What these lines are measured in.
        nothing: What the picture says where there is no score to draw.
    """

    score: str = "score"
    columns: tuple[Column, ...] = ()
    lines: tuple[tuple[str, str], ...] = ()
    axis: str = ""
    nothing: str = "there are no scores to draw"
