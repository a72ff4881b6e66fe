"""From the two information terms of each snapshot to an order: normalise, add, choose."""

from __future__ import annotations

import torch
from torch import Tensor

NORMALISATIONS = ("max", "minmax")
POSITION_RULES = ("full", "half", "spaced")


def normalise(values: Tensor, how: str) -> Tensor:
    """Bring one term of all snapshots to a common scale.

    Args:
        values: Nats, shape (S,), float64.
        how: ``max`` divides by the largest, ``minmax`` maps the smallest to 0 and the largest to 1. Negative
            values count as 0: a lower bound below zero tells nothing.

    Returns:
        Values in [0, 1], shape (S,); all zero where there is nothing to tell them apart by.
    """
    values = values.clamp_min(0)
    if how == "minmax":
        values = values - values.min()
    return values / values.max() if float(values.max()) > 0 else torch.zeros_like(values)


def rank_descending(scores: Tensor, steps: Tensor) -> Tensor:
    """Indices from the best score to the worst; of equal scores the later snapshot is first.

    Args:
        scores: Shape (S,), finite.
        steps: Global step of each snapshot, shape (S,).
    """
    order = sorted(range(len(scores)), key=lambda index: (float(scores[index]), int(steps[index])), reverse=True)
    return torch.tensor(order, dtype=torch.long)


def rank_by_position(steps: Tensor, rule: str, count: int) -> Tensor:
    """The first ``count`` snapshots by a rule that looks at nothing but their place in training.

    Args:
        steps: Global step of each snapshot in the order of training, shape (S,).
        rule: ``full`` takes the last ones; ``half`` those nearest to half of the last one's step (the paper's
            practical default); ``spaced`` those nearest to count equal parts of training, the last included.
        count: How many, at most S.

    Returns:
        Indices, the best first, shape (count,).
    """
    last = float(steps[-1])
    if rule == "full":
        return torch.arange(len(steps)).flip(0)[:count]
    if rule == "half":
        distance = (steps - last / 2).abs()
        return torch.tensor(sorted(range(len(steps)), key=lambda index: (float(distance[index]), index))[:count])
    taken: list[int] = []
    for part in range(count, 0, -1):
        distance = (steps - last * part / count).abs()
        free = [index for index in range(len(steps)) if index not in taken]
        taken.append(min(free, key=lambda index: (float(distance[index]), index)))
    return torch.tensor(taken, dtype=torch.long)
