"""What comes of one snapshot: estimates with their errors, and what the record says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_ckptkd.information.folds import NUM_FOLDS
from lightning_ckptkd.information.uncertainty import NUM_GROUPS, jackknife_error, leave_one_out
from lightning_ckptkd.snapshots import Candidate


@dataclass(frozen=True)
class Term:
    """An estimate with what its standard error takes.

    Attributes:
        value: The estimate; in nats where it is an information.
        replicates: The estimate without each group of probe samples in turn.
    """

    value: float
    replicates: tuple[float, ...]

    @classmethod
    def of(cls, values: Tensor, seed: int, num_groups: int) -> Term:
        """The mean of a value for each sample, shape (N,); ``seed`` is that of the groups."""
        return cls(float(values.mean()), tuple(leave_one_out(values, seed, num_groups).tolist()))

    def plus(self, constant: float) -> Term:
        """The estimate of a sum with something that is known."""
        return Term(self.value + constant, tuple(value + constant for value in self.replicates))

    @property
    def error(self) -> float:
        """Standard error over probe samples."""
        return float(jackknife_error(torch.tensor(self.replicates, dtype=torch.float64)))


@dataclass(frozen=True)
class Score:
    """A snapshot that was scored.

    Attributes:
        candidate: For the record, as far as it is known before the snapshots are ranked.
        terms: What the rule measured, by the rule's own names; empty for a snapshot that is excluded, or for a rule
            by position.
    """

    candidate: Candidate
    terms: Mapping[str, Term] = field(default_factory=dict)

    @property
    def ranks(self) -> bool:
        """Whether it takes part in the ranking: it can be chosen, and was scored on all probe samples."""
        return self.candidate.excluded is None and self.candidate.scored_on is None


def values_of(terms: Sequence[Term]) -> Tensor:
    """The estimates of one kind of all snapshots, shape (S,), float64."""
    return torch.tensor([term.value for term in terms], dtype=torch.float64)


def replicates_of(terms: Sequence[Term]) -> Tensor:
    """The replicates of one kind of estimate of all snapshots, shape (G, S), float64."""
    return torch.tensor([term.replicates for term in terms], dtype=torch.float64).T


def num_groups(num_samples: int) -> int:
    """How many groups of samples a jackknife leaves out in turn: as many for terms that one fold scores as for others.

    Args:
        num_samples: Number of probe samples N.
    """
    return min(NUM_GROUPS, num_samples // NUM_FOLDS)
