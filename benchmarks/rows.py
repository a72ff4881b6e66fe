"""Measured values and their targets, as lines of a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning_ckptkd.selecting.report import format_table


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        what: Was measured.
        value: What came out.
        target: Is met by a value that is not larger; None where there is none.
        note: Details.
    """

    what: str
    value: float
    target: float | None
    note: str

    def cells(self) -> tuple[str, ...]:
        """The line as text."""
        if self.target is None:
            return self.what, f"{self.value:.3f}", "", "", self.note
        verdict = "met" if self.value <= self.target else "MISSED"
        return self.what, f"{self.value:.3f}", f"<= {self.target}", verdict, self.note


def make_table(rows: Iterable[Row]) -> str:
    """Rows as Markdown."""
    return format_table(["measured", "value", "target", "", "details"], [row.cells() for row in rows])


def half_width(values: Sequence[float]) -> float:
    """Of the 95% interval of their mean, by Student's t; NaN of a single value."""
    if len(values) < 2:
        return math.nan
    return _quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def mean_of_groups(groups: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The mean of the groups' means, and half the width of its 95% interval.

    Each group has a spread of its own (degrees of freedom by Welch and Satterthwaite), and none counts for more than
    another.

    Args:
        groups: Of one value or more; the width is NaN where one has a single value.
    """
    mean = statistics.mean(statistics.mean(group) for group in groups)
    if any(len(group) < 2 for group in groups):
        return mean, math.nan
    squares = [statistics.variance(group) / len(group) / len(groups) ** 2 for group in groups]
    total = math.fsum(squares)
    if not total:
        return mean, 0.0
    freedom = total**2 / math.fsum(square**2 / (len(group) - 1) for square, group in zip(squares, groups, strict=True))
    return mean, _quantile(freedom) * math.sqrt(total)


def _quantile(freedom: float) -> float:
    """Student's t at 97.5%."""
    from scipy.stats import t as student_t  # here, since benchmarks.gpu runs where there is no SciPy

    return float(student_t.ppf(0.975, freedom))
