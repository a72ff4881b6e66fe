r"""A race between snapshots: who can leave after a part of the samples, since others are surely better.

Successive elimination (Even-Dar, Mannor and Mansour, JMLR 2006), with paired errors: snapshots are held against each
other on the same samples, and the jackknife of the difference says how sure it is. What is foretold is the score on all
N samples, of which the n of a part are known: the difference on all is that on the part, with the standard error
e sqrt(1 - n / N). The quantile is Student's t, divided over all snapshots and rounds (Bonferroni), so that in a race
anybody leaves wrongly with a probability of ``DOUBT`` at most, as far as a part's errors can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lightning_ckptkd.information.uncertainty import jackknife_error, student_quantile
from lightning_ckptkd.shapes import Bool, Float

DOUBT = 0.05
SHARES = (1 / 8, 1 / 4, 1 / 2)  # of the samples, after which snapshots may leave
LEAST_PART = 128  # samples: of fewer, the rare ones on which good snapshots differ may all be missing


@dataclass(frozen=True)
class View:
    """Scores on a part of the samples, as low and as high as they may be where something is not sure yet.

    Attributes:
        low: Shape (S,), float64.
        low_replicates: Without each group of samples in turn, shape (G, S).
        high: Shape (S,); equal to ``low`` where all is sure but for the samples.
        high_replicates: Shape (G, S).
    """

    low: Float[Tensor, " S"]
    low_replicates: Float[Tensor, "G S"]
    high: Float[Tensor, " S"]
    high_replicates: Float[Tensor, "G S"]

    @classmethod
    def of(cls, scores: Float[Tensor, " S"], replicates: Float[Tensor, "G S"]) -> View:
        """Scores (S,) and replicates (G, S) of which nothing is unsure but for the samples."""
        return cls(scores, replicates, scores, replicates)


def parts_of(num_samples: int) -> tuple[int, ...]:
    """After how many of N samples snapshots may leave; none where there are too few to tell."""
    sizes = {max(LEAST_PART, math.ceil(share * num_samples)) for share in SHARES}
    return tuple(sorted(size for size in sizes if 2 * size <= num_samples + 1))


def quantile(num_snapshots: int, num_parts: int, num_groups: int) -> float:
    """How many standard errors are sure.

    Args:
        num_snapshots: S, of all that started.
        num_parts: How often they may leave.
        num_groups: G of the jackknife.
    """
    return student_quantile(1 - DOUBT / (num_snapshots * num_parts), num_groups - 1)


def who_leaves(
    views: Sequence[View], sure: float, share: float, count: int, *, first_by_ties: bool = False
) -> Bool[Tensor, " S"]:
    """Which snapshots can't be among the best.

    One leaves if another is surely better, so that it can't come first, and ``count`` others are surely not behind it
    by more than the standard error that a difference will have on all samples, so that it is not missed in the set.
    Each view has to say so, of the same other.

    Args:
        views: Of all that are in the race.
        sure: How many standard errors are sure.
        share: n / N.
        count: How many are chosen.
        first_by_ties: Whether one within a standard error of the best may come first, too: it stays then.

    Returns:
        Shape (S,), bool.
    """
    better: Tensor | None = None
    not_behind: Tensor | None = None
    for view in views:
        ahead = view.low[:, None] - view.high
        errors = jackknife_error(view.low_replicates[:, :, None] - view.high_replicates[:, None])
        margin = sure * math.sqrt(1 - share) * errors
        at_the_end = math.sqrt(share) * errors
        surely = ahead - at_the_end * first_by_ties > margin
        nearly = ahead + at_the_end * (not first_by_ties) > margin
        better = surely if better is None else better & surely
        not_behind = nearly if not_behind is None else not_behind & nearly
    assert better is not None and not_behind is not None, "a rule that races has a view"
    not_behind.fill_diagonal_(False)
    return better.any(0) & (not_behind.sum(0) >= count)


def surely_below(
    values: Float[Tensor, " S"], replicates: Float[Tensor, "G S"], floor: float, sure: float
) -> tuple[Bool[Tensor, " S"], Bool[Tensor, " S"]]:
    """Which values are surely below a share of the largest, and which surely are not, shapes (S,), bool.

    Args:
        values: Shape (S,).
        replicates: Shape (G, S).
        floor: The share.
        sure: How many standard errors are sure.
    """
    best = int(values.argmax())
    above = values - floor * values[best]
    errors = sure * jackknife_error(replicates - floor * replicates[:, [best]])
    return above < -errors, above > errors
