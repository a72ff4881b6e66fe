"""From the two information terms of each snapshot to an order: normalise, add, tell apart, choose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_ckptkd.information.uncertainty import jackknife_error
from lightning_ckptkd.shapes import Bool, Float, Int, Num

NORMALISATIONS = ("max", "minmax", "entropy")
ENSEMBLES = ("top", "greedy", "spaced")
TIES = ("later", "earlier", "score")
DEFAULT_TIES = "score"  # of every rule


@dataclass(frozen=True)
class ScoreRule:
    """How two terms become a score.

    Attributes:
        input_weight: Weight of the normalised I(X;F).
        label_weight: Weight of the normalised I(Y;F).
        normalisation: As :func:`normalise` takes it.
        label_floor: Share of the largest I(Y;F) below which a snapshot's I(X;F) does not count.
        input_entropy: The most that I(X;F) could be, in nats; for ``entropy``.
        label_entropy: H(Y) in nats; likewise.
    """

    input_weight: float = 1.0
    label_weight: float = 1.0
    normalisation: str = "max"
    label_floor: float = 0.0
    input_entropy: float = 1.0
    label_entropy: float = 1.0

    def terms(
        self,
        input_information: Float[Tensor, "*some S"],
        label_information: Float[Tensor, "*some S"],
        counts: Bool[Tensor, " S"] | None = None,
    ) -> tuple[Float[Tensor, "*some S"], Float[Tensor, "*some S"]]:
        """Both terms normalised.

        Args:
            input_information: Nats, shape (..., S).
            label_information: Nats, shape (..., S).
            counts: Whose I(X;F) counts, shape (S,), bool; None asks :meth:`above_floor`. Replicates take that of the
                estimates, since a snapshot near the floor would fall below it in some and have no standard error.

        Returns:
            Shapes (..., S).
        """
        counts = self.above_floor(label_information) if counts is None else counts
        label_term = normalise(label_information, self.normalisation, self.label_entropy)
        input_term = normalise(input_information, self.normalisation, self.input_entropy)
        return torch.where(counts, input_term, 0.0), label_term

    def scores(
        self,
        input_information: Float[Tensor, "*some S"],
        label_information: Float[Tensor, "*some S"],
        counts: Bool[Tensor, " S"] | None = None,
    ) -> Float[Tensor, "*some S"]:
        """The weighted sum of both normalised terms, shape (..., S); arguments as :meth:`terms`."""
        input_term, label_term = self.terms(input_information, label_information, counts)
        return self.input_weight * input_term + self.label_weight * label_term

    def above_floor(self, label_information: Float[Tensor, "*some S"]) -> Bool[Tensor, "*some S"]:
        """Whether each snapshot's I(X;F) counts, shape (..., S), bool."""
        return label_information >= self.label_floor * label_information.amax(-1, keepdim=True)

    def weights_of_nats(
        self, input_information: Float[Tensor, " S"], label_information: Float[Tensor, " S"]
    ) -> tuple[float, float]:
        """What a nat of each term adds to a score, given the snapshots' terms, shapes (S,)."""
        weights = []
        for weight, values, entropy in (
            (self.input_weight, input_information, self.input_entropy),
            (self.label_weight, label_information, self.label_entropy),
        ):
            lowest = float(values.clamp_min(0).min()) if self.normalisation == "minmax" else 0.0
            scale = entropy if self.normalisation == "entropy" else float(values.max()) - lowest
            weights.append(weight / scale if scale > 0 else 0.0)
        return weights[0], weights[1]


def normalise(values: Float[Tensor, "*some S"], how: str, entropy: float = 1.0) -> Float[Tensor, "*some S"]:
    """Bring one term of all snapshots to a common scale.

    Args:
        values: Nats, shape (..., S), float64.
        how: ``max`` divides by the largest, ``minmax`` maps the smallest to 0 and the largest to 1, ``entropy``
            divides by ``entropy``. Negative values count as 0: a lower bound below zero tells nothing.
        entropy: The most that the term could be, in nats.

    Returns:
        Values in [0, 1], shape (..., S); all zero where there is nothing to tell them apart by.
    """
    values = values.clamp_min(0)
    if how == "entropy":
        return (values / max(entropy, 1e-12)).clamp_max(1)
    if how == "minmax":
        values = values - values.amin(-1, keepdim=True)
    largest = values.amax(-1, keepdim=True)
    return torch.where(largest > 0, values / largest.clamp_min(1e-300), 0.0)


def rank_by_score(
    scores: Float[Tensor, " S"], replicates: Float[Tensor, "G S"], steps: Num[Tensor, " S"], ties: str = DEFAULT_TIES
) -> Int[Tensor, " S"]:
    """Indices from the best score to the worst.

    Scores within one standard error of their difference (of the same samples, by the jackknife) are equal for all that
    the probe set can say. Of the best that is left and those equal to it, one comes next by ``ties``, and so on; a
    snapshot is held against the best that is left, not against its neighbour in rank.

    Args:
        scores: Shape (S,), finite.
        replicates: The scores without each group of samples in turn, shape (G, S).
        steps: Global step of each snapshot, shape (S,).
        ties: Which of the equal ones comes next: the ``later`` in training, the ``earlier``, or that with the higher
            ``score`` whatever its error, where the earlier of exactly equal ones comes first.

    Returns:
        Shape (S,), int64.
    """
    left, order = list(range(len(scores))), []
    while left:
        best = max(left, key=lambda index: (float(scores[index]), -float(steps[index])))
        if ties == "score":
            order.append(best)
            left.remove(best)
            continue
        errors = jackknife_error(replicates[:, [best]] - replicates[:, left]).tolist()
        equal = [
            index for index, error in zip(left, errors, strict=True) if float(scores[best] - scores[index]) <= error
        ]
        order.append((max if ties == "later" else min)(equal, key=lambda index: float(steps[index])))
        left.remove(order[-1])
    return torch.tensor(order, dtype=torch.long)


def choose_spaced(order: Int[Tensor, " S"], steps: Num[Tensor, " S"], count: int) -> Int[Tensor, "{count}"]:
    """The best that are not neighbours: each at least 1/(2 count) of training away from those before it.

    Where too few are left, the gap is halved until there are enough.

    Args:
        order: Indices from the best to the worst, shape (S,).
        steps: Global step of each snapshot, shape (S,).
        count: How many, at most S.

    Returns:
        Indices, the best first, shape (count,).
    """
    gap = float(steps.max()) / (2 * count)
    while True:
        taken: list[int] = []
        for index in order.tolist():
            if len(taken) < count and all(abs(float(steps[index] - steps[other])) >= gap for other in taken):
                taken.append(index)
        if len(taken) == count:
            return torch.tensor(taken, dtype=torch.long)
        gap = gap / 2 if gap > 0.5 else 0.0


def rank_last(steps: Num[Tensor, " S"], count: int) -> Int[Tensor, "{count}"]:
    """The last snapshots, the very last first.

    Args:
        steps: Global step of each snapshot in the order of training, shape (S,).
        count: How many, at most S.

    Returns:
        Indices, the best first, shape (count,).
    """
    return torch.arange(len(steps)).flip(0)[:count]


def rank_half(steps: Num[Tensor, " S"], count: int) -> Int[Tensor, "{count}"]:
    """The snapshots nearest to half of the last one's step (the paper's practical default).

    Arguments and result are those of :func:`rank_last`.
    """
    distance = (steps - float(steps[-1]) / 2).abs()
    return torch.tensor(sorted(range(len(steps)), key=lambda index: (float(distance[index]), index))[:count])


def rank_spaced(steps: Num[Tensor, " S"], count: int) -> Int[Tensor, "{count}"]:
    """The snapshots nearest to ``count`` equal parts of training, the last included.

    Arguments and result are those of :func:`rank_last`.
    """
    last = float(steps[-1])
    taken: list[int] = []
    for part in range(count, 0, -1):
        distance = (steps - last * part / count).abs()
        free = [index for index in range(len(steps)) if index not in taken]
        taken.append(min(free, key=lambda index: (float(distance[index]), index)))
    return torch.tensor(taken, dtype=torch.long)
