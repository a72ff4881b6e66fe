"""One scored snapshot: what the record says of it, and what standard errors are reckoned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_ckptkd.snapshots import Candidate


@dataclass(frozen=True)
class Score:
    """A candidate and its numbers without each group of probe samples in turn.

    Attributes:
        candidate: For the record.
        input_replicates: Of I(X;F) in nats; empty where the rule does not need it.
        label_replicates: Of I(Y;F) in nats; likewise.
        score_replicates: Of what the rule ranks by, where that is no sum of the two; likewise.
    """

    candidate: Candidate
    input_replicates: tuple[float, ...] = field(default=())
    label_replicates: tuple[float, ...] = field(default=())
    score_replicates: tuple[float, ...] = field(default=())


def stack_replicates(scores: Sequence[Score], name: str) -> Tensor:
    """The replicates of that name of all snapshots, shape (G, S), float64."""
    return torch.tensor([getattr(score, name) for score in scores], dtype=torch.float64).T
