"""What is measured, as text: a line of the table, seconds of many repetitions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Options:
    """What the command line asks for; ``settle`` are seconds between a written snapshot and the next epoch."""

    seconds: float
    rounds: int
    pairs: int
    device: torch.device
    folder: Path
    settle: float = 0.3


@dataclass(frozen=True)
class Row:
    """One line of the table; the target is met by a value that is not larger.

    ``noise`` is by how much the value may be wrong, where that is known.
    """

    what: str
    value: float
    target: float | None
    note: str = ""
    noise: float = 0.0

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        if self.target is None:
            return self.what, f"{self.value:.5g}", "", "", self.note
        verdict = "met" if self.value <= self.target else "MISSED"
        if abs(self.value - self.target) < self.noise:
            verdict += ", but within the noise"
        return self.what, f"{self.value:.5g}", f"<= {self.target:g}", verdict, self.note


@dataclass(frozen=True)
class Spread:
    """Seconds of many repetitions."""

    raw: list[float]
    median: float
    quartiles: tuple[float, float]

    @classmethod
    def of(cls, raw: Sequence[float]) -> Spread:
        """Summarise two or more repetitions."""
        lower, median, upper = statistics.quantiles(raw, n=4, method="inclusive")
        return cls(list(raw), median, (lower, upper))

    def __str__(self) -> str:
        lower, upper = self.quartiles
        return f"{self.median * 1e3:.1f} ms ({lower * 1e3:.1f} to {upper * 1e3:.1f})"
