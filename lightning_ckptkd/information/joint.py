r"""What a set of snapshots tells together: I(X; F1..Fk) and I(Y; F1..Fk), grown one snapshot at a time.

The features of the set are stacked and decoded by one linear-Gaussian decoder (see :mod:`.gaussian`). A ridge
regression on stacked features is block elimination: what a snapshot adds depends on its features only through what
the set's features leave over of them. So that each candidate costs a few small matrix products for every snapshot
that joins the set, however large the set is. The label term is that of the mean logits, which a student learns from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_ckptkd.information.gaussian import Moments, add_noise, log_density_gains, noise_floor
from lightning_ckptkd.information.label import TEMPERATURES, head_gains, tempered_costs
from lightning_ckptkd.information.robust import pull_in, winsorise
from lightning_ckptkd.information.uncertainty import jackknife_error, leave_one_out
from lightning_ckptkd.shapes import Float, Int, Num

MAX_DIMENSIONS = 128
MOST_TEACHERS = 8  # where their number comes from the data
FEWEST = False  # whether it is the smallest number within the error of the best, instead of the largest
_RIDGES = (1.0, 1e-1, 1e-2, 1e-3)


def reduce_features(features: Num[Tensor, "N D"]) -> Float[Tensor, "N D_kept"]:
    """Features of unit variance without those that never change; their leading 128 principal components at most.

    What is far outside of all others is pulled in before (see :mod:`.robust`).

    Args:
        features: Shape (N, D).

    Returns:
        Shape (N, D_kept) with D_kept <= 128, float64.
    """
    features = winsorise(features)
    features = features - features.mean(0)
    deviation = features.square().mean(0).sqrt()
    features = features[:, deviation > 1e-9 * deviation.max()]
    features = features / features.square().mean(0).sqrt()
    if features.shape[1] > MAX_DIMENSIONS:
        _, vectors = torch.linalg.eigh(features.T @ features)
        features = features @ vectors[:, -MAX_DIMENSIONS:]
        features = features / features.square().mean(0).sqrt()
    return features


@dataclass
class _Member:
    """One snapshot as the set sees it; a list entry for each fold.

    Attributes:
        features: Reduced features, shape (N, D).
        left: What the set leaves of them, out of fold, shape (N, D).
        with_set: Whitened covariance with each block of the set, shapes (D_block, D).
        variance: What the set leaves of their ridged covariance, shape (D, D).
        with_x: What the set leaves of their covariance with X, shape (D, Dx).
    """

    features: Tensor
    left: Tensor
    variance: list[Tensor]
    with_x: list[Tensor]
    with_set: list[list[Tensor]] = field(default_factory=list)


class JointInformation:
    """What each sample tells of a growing set of snapshots.

    Args:
        x: Inputs, shape (N, Dx).
        features: Of each snapshot, from :func:`reduce_features`, shapes (N, D).
        logits: Of each snapshot, shapes (N, K); None where there are none.
        labels: Class indices, shape (N,).
        folds: Fold of each sample, shape (N,), two or more of them.
        expected_size: How large the set will be, for the choice of the ridge.
    """

    def __init__(
        self,
        x: Num[Tensor, "N Dx"],
        features: Sequence[Float[Tensor, "N _"]],
        logits: Sequence[Float[Tensor, "N K"]] | None,
        labels: Int[Tensor, " N"],
        folds: Int[Tensor, " N"],
        expected_size: int = 3,
    ) -> None:
        self._x = pull_in(x) - pull_in(x).mean(0)
        self._labels, self._folds, self._logits = labels, folds, logits
        self._held_out = [folds == fold for fold in range(int(folds.max()) + 1)]
        self._floor = noise_floor(Moments.of(x, x[:, :0]))
        self._features = list(features)
        self.chosen: list[int] = []
        self._choose_ridge(expected_size)

    def __len__(self) -> int:
        """How many snapshots can join."""
        return len(self._features)

    def gains(self, candidate: int | None = None) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """What each sample adds to I(X; F1..Fk) and to I(Y;F) of the mean logits.

        Args:
            candidate: Reckoned with the set; None for the set alone.

        Returns:
            Nats, shapes (N,); the second one is zero where there are no logits.
        """
        residual = self._residual
        if candidate is not None:
            residual = residual - self._explained(self._members[candidate])
        return self._input_gains(residual), self._label_gains(candidate)

    def add(self, candidate: int) -> None:
        """Let a snapshot join the set."""
        joined = self._members[candidate]
        factors = [torch.linalg.cholesky(variance) for variance in joined.variance]
        whitened_x = [_solve(factor, with_x) for factor, with_x in zip(factors, joined.with_x, strict=True)]
        rows = torch.empty_like(joined.left)
        for held_out, factor in zip(self._held_out, factors, strict=True):
            rows[held_out] = _solve(factor, joined.left[held_out].T).T
        for index, member in enumerate(self._members):
            if index == candidate or index in self.chosen:
                continue
            products = self._products(joined.features, member.features)
            blocks = []
            for fold, factor in enumerate(factors):
                product = products[fold]
                for mine, other in zip(joined.with_set, member.with_set, strict=True):
                    product = product - mine[fold].T @ other[fold]
                block = _solve(factor, product)
                blocks.append(block)
                member.variance[fold] = member.variance[fold] - block.T @ block
                member.with_x[fold] = member.with_x[fold] - block.T @ whitened_x[fold]
                held_out = self._held_out[fold]
                member.left[held_out] -= rows[held_out] @ block
            member.with_set.append(blocks)
        for fold, held_out in enumerate(self._held_out):
            self._residual[held_out] -= rows[held_out] @ whitened_x[fold]
        self.chosen.append(candidate)
        if self._logits is not None:
            self._fit_temperatures()

    def _choose_ridge(self, expected_size: int) -> None:
        """The ridge with which the first few snapshots together leave the least of X."""
        volumes = []
        for ridge in _RIDGES:
            self._start(ridge, self._features[:expected_size])
            for member in range(min(expected_size, len(self._features))):
                self.add(member)
            left = add_noise(self._residual.T @ self._residual / len(self._x), self._floor)
            volumes.append(float(torch.linalg.slogdet(left).logabsdet))
        self._start(_RIDGES[volumes.index(min(volumes))], self._features)

    def _start(self, ridge: float, features: Sequence[Tensor]) -> None:
        self.chosen = []
        self._residual = self._x.clone()
        self._temperatures: Sequence[float] = TEMPERATURES
        self._members = []
        for values in features:
            identity = ridge * torch.eye(values.shape[1], dtype=values.dtype, device=values.device)
            variance = [product + identity for product in self._products(values, values)]
            self._members.append(_Member(values, values.clone(), variance, self._products(values, self._x)))

    def _products(self, left: Tensor, right: Tensor) -> list[Tensor]:
        """Mean of left^T right over the samples outside each fold."""
        parts = [left[held_out].T @ right[held_out] for held_out in self._held_out]
        total = torch.stack(parts).sum(0)
        sizes = [len(left) - int(held_out.sum()) for held_out in self._held_out]
        return [(total - part) / size for part, size in zip(parts, sizes, strict=True)]

    def _explained(self, member: _Member) -> Tensor:
        """What a candidate explains of X beyond the set, out of fold, shape (N, Dx)."""
        explained = torch.empty_like(self._x)
        for fold, held_out in enumerate(self._held_out):
            factor = torch.linalg.cholesky(member.variance[fold])
            explained[held_out] = member.left[held_out] @ torch.cholesky_solve(member.with_x[fold], factor)
        return explained

    def _label_gains(self, candidate: int | None) -> Tensor:
        if self._logits is None:
            return torch.zeros(len(self._x), dtype=torch.float64, device=self._x.device)
        members = self.chosen if candidate is None else [*self.chosen, candidate]
        return head_gains(self._mean_logits(members), self._labels, self._folds, self._temperatures)

    def _mean_logits(self, members: Sequence[int]) -> Tensor:
        assert self._logits is not None
        total = self._logits[members[0]].double()
        for member in members[1:]:
            total = total + self._logits[member]  # one after another: K may be in the tens of thousands
        return total / len(members)

    def _input_gains(self, residual: Tensor) -> Tensor:
        left, alone = self._products(residual, residual), self._products(self._x, self._x)
        gains = torch.empty(len(residual), dtype=torch.float64, device=residual.device)
        for fold, held_out in enumerate(self._held_out):
            gains[held_out] = log_density_gains(
                residual[held_out],
                self._x[held_out],
                add_noise(left[fold], self._floor),
                add_noise(alone[fold], self._floor),
                self._floor,
            )
        return gains

    def _fit_temperatures(self) -> None:
        """Candidates are compared at the set's own temperature and its neighbours."""
        best = int(tempered_costs(self._mean_logits(self.chosen), self._labels).mean(0).argmin())
        self._temperatures = TEMPERATURES[max(0, best - 1) : best + 2]


@dataclass(frozen=True)
class JointStep:
    """A set after one snapshot joined it.

    Attributes:
        member: Which one.
        input_information: I(X; F1..Fk) in nats.
        label_information: I(Y;F) of the mean logits in nats; zero where there are none.
        gain: What the member added to the joint score; for the first one its score.
        gain_error: Standard error of the gain.
    """

    member: int
    input_information: float
    label_information: float
    gain: float
    gain_error: float


def grow_set(
    joint: JointInformation,
    first: int,
    count: int | None,
    weights: tuple[float, float],
    seed: int,
    *,
    most: int = MOST_TEACHERS,
) -> list[JointStep]:
    """Choose snapshots that tell much together, greedily: each adds the most to what those before it tell.

    Args:
        joint: An empty set.
        first: The first member.
        count: How many to choose; None goes on until the best gain is within its standard error, ``most`` at most.
        weights: What a nat of I(X;F) and of I(Y;F) is worth.
        seed: Of the jackknife's groups.
        most: See ``count``.

    Returns:
        The steps; their members are the set.
    """
    size = len(joint)
    before: Tensor | float = 0.0
    steps: list[JointStep] = []
    candidates = [first]
    while candidates and len(steps) < (count or most):
        parts = {member: joint.gains(member) for member in candidates}
        totals = {member: weights[0] * x + weights[1] * y for member, (x, y) in parts.items()}
        member = max(candidates, key=lambda candidate: float(totals[candidate].mean()))
        gains = totals[member] - before
        gain, error = float(gains.mean()), float(jackknife_error(leave_one_out(gains, seed)))
        if steps and count is None and gain <= error:
            break
        joint.add(member)
        x, y = joint.gains()
        steps.append(JointStep(member, float(x.mean()), float(y.mean()), gain, error))
        before = weights[0] * x + weights[1] * y
        candidates = [other for other in range(size) if other not in joint.chosen]
    return steps


def count_best(
    joint: JointInformation,
    weights: tuple[float, float],
    seed: int,
    *,
    most: int = MOST_TEACHERS,
    fewest: bool | None = None,
) -> list[JointStep]:
    """How many of the best snapshots to take: as many as tell jointly what the best number of them tells.

    Sets of the first one, two and so on are held against that of them which tells most; equal to it are those within
    one standard error of their difference (of the same samples, by the jackknife).

    Args:
        joint: An empty set; its snapshots are in order, the best first.
        weights: What a nat of I(X;F) and of I(Y;F) is worth.
        seed: Of the jackknife's groups.
        most: The largest number.
        fewest: Whether the smallest of the equal numbers is taken, instead of the largest; None is ``FEWEST``.

    Returns:
        The steps; their members are the set.
    """
    steps: list[JointStep] = []
    totals: list[Tensor] = []
    for member in range(min(most, len(joint))):
        joint.add(member)
        x, y = joint.gains()
        total = weights[0] * x + weights[1] * y
        gains = total - totals[-1] if totals else total
        error = float(jackknife_error(leave_one_out(gains, seed)))
        steps.append(JointStep(member, float(x.mean()), float(y.mean()), float(gains.mean()), error))
        totals.append(total)
    best = max(totals, key=lambda total: float(total.mean()))
    behind = [best - total for total in totals]
    equal = [
        place
        for place, lacks in enumerate(behind)
        if float(lacks.mean()) <= float(jackknife_error(leave_one_out(lacks, seed)))
    ]
    fewest = FEWEST if fewest is None else fewest
    return steps[: (equal[0] if fewest else equal[-1]) + 1]


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    """factor^-1 right, for a lower triangular factor."""
    solved: Tensor = torch.linalg.solve_triangular(factor, right, upper=False)
    return solved
