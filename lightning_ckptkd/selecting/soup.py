"""Soup: the choice of one network, the mean of the weights of snapshots (Wortsman et al., ICML 2022, of one run)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from lightning_ckptkd.errors import ArgumentError, near_names

KINDS = ("greedy", "window")
NAME = "soup"
WINDOW = 9


@dataclass(frozen=True)
class Soup:
    """How a soup is made of snapshots; the short name is ``ensemble="soup"``.

    Its held-out information is what the rule says that a network tells of the probe set's labels: I(Y;F) of ``MI``, the
    number itself of ``Loss`` and ``Accuracy``. Where it is not above that of the best member, no soup is made, and the
    best snapshots are chosen as without one.

    Args:
        kind: ``greedy`` begins with the best snapshot; each next one by the rule's score joins where the soup's
            held-out information grows by more than ``margin`` standard errors of that growth. ``window`` is the mean
            of the snapshots around the best.
        window: Of how many snapshots, those nearest to the best in training. None: 9 of a ``window``, all of
            ``greedy``.
        margin: Standard errors, 0 or more.
        candidates: How many of the best ``greedy`` tries at most.
        batch_norm_samples: Training samples on which BatchNorm statistics are estimated anew; they are kept in memory.

    Raises:
        ArgumentError: If an option can't be used.
    """

    kind: str = "greedy"
    window: int | None = None
    margin: float = 1.0
    candidates: int = 40
    batch_norm_samples: int = 2000

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ArgumentError(
                f"kind={self.kind!r} of Soup is unknown. Near names: {near_names(str(self.kind), KINDS)}."
            )
        for name, least in (("window", 2), ("candidates", 2), ("batch_norm_samples", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ArgumentError(f"{name} of Soup should be {least} or more, got {value}.")
        if not (self.margin >= 0 and math.isfinite(self.margin)):
            raise ArgumentError(f"margin of Soup should be 0 or more, got {self.margin}.")

    @classmethod
    def of(cls, ensemble: str | Soup) -> Soup | None:
        """The soup that an option asks for; None where it asks for a set."""
        if isinstance(ensemble, Soup):
            return ensemble
        return cls() if ensemble == NAME else None

    def describe(self) -> dict[str, Any]:
        """For the record."""
        return {"name": NAME, **asdict(self)}
