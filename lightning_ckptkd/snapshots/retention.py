"""Which snapshots to keep where not all of them fit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.snapshots.manifest import Snapshot


@dataclass(frozen=True)
class Retention:
    """A rule that thins out a harvest while it grows; with neither argument it keeps all.

    Args:
        last: Keep this many, the newest.
        max_bytes: Keep what fits into this many bytes of weights, spread evenly over the training so far.

    Raises:
        ArgumentError: If both are given, or one is not positive.
    """

    last: int | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        check_types(Retention, vars(self))
        if self.last is not None and self.max_bytes is not None:
            raise ArgumentError(f"Give keep_last={self.last} or keep_bytes={self.max_bytes}, not both.")
        for name, value in (("keep_last", self.last), ("keep_bytes", self.max_bytes)):
            if value is not None and value < 1:
                raise ArgumentError(f"{name} should be 1 or more, got {value}.")

    def check_room(self, snapshot_bytes: int) -> None:
        """Check that at least one snapshot fits.

        Raises:
            ArgumentError: If not.
        """
        if self.max_bytes is not None and self.max_bytes < snapshot_bytes:
            raise ArgumentError(
                f"keep_bytes={self.max_bytes} is less than one snapshot needs, {snapshot_bytes} bytes. Give more, or a "
                "narrower dtype."
            )

    def kept(self, snapshots: Sequence[Snapshot]) -> list[Snapshot]:
        """The snapshots to keep, in the order of training; the newest is always among them."""
        kept = list(snapshots)
        if self.last is not None:
            return kept[-self.last :]
        if self.max_bytes is not None:
            while len(kept) > 1 and sum(snapshot.size for snapshot in kept) > self.max_bytes:
                del kept[least_missed([snapshot.global_step for snapshot in kept])]
        return kept


def least_missed(steps: Sequence[int]) -> int:
    """The place of the snapshot to drop so that the others stay evenly spread while training goes on.

    The second newest goes if it is nearer to its predecessor than any two before it are to each other; otherwise the
    earliest of those with the nearest neighbours. With snapshots at equal distances, all gaps but the newest are then
    either one stride or two.

    Args:
        steps: Two or more steps in rising order.

    Returns:
        An index of ``steps``, not the last; the first only if there are two.
    """
    last = len(steps) - 1
    if last < 3:
        return last - 1
    stride = min(later - earlier for earlier, later in itertools.pairwise(steps[: last - 1]))
    if steps[last - 1] - steps[last - 2] < stride:
        return last - 1
    return min(range(1, last - 1), key=lambda i: steps[i + 1] - steps[i - 1])
