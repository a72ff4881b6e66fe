"""When to take a snapshot."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError


@dataclass(frozen=True)
class Cadence:
    """The rule that says after which epochs or steps a snapshot is taken.

    Args:
        every_n_epochs: At the end of every n-th epoch.
        every_n_train_steps: After every n-th optimiser step, instead.
        epochs: At the end of these epochs (Lightning's ``current_epoch``, from 0), instead.
        window: Part of training, as two fractions of it, in which snapshots are taken.

    Raises:
        ArgumentError: If more than one of the first three is given, or a value can't be used.
    """

    every_n_epochs: int | None = None
    every_n_train_steps: int | None = None
    epochs: Sequence[int] | None = None
    window: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_types(Cadence, vars(self))
        given = {
            name: getattr(self, name)
            for name in ("every_n_epochs", "every_n_train_steps", "epochs")
            if getattr(self, name) is not None
        }
        if len(given) > 1:
            raise ArgumentError(f"Give one of {', '.join(given)}, not {len(given)} of them: {given}.")
        for name in ("every_n_epochs", "every_n_train_steps"):
            if given.get(name, 1) < 1:
                raise ArgumentError(f"{name} should be 1 or more, got {given[name]}.")
        if self.epochs is not None and (not self.epochs or min(self.epochs) < 0):
            raise ArgumentError(f"epochs should list epochs from 0 on, got {list(self.epochs)}.")
        if len(self.window) != 2 or not 0 <= self.window[0] < self.window[1] <= 1:
            raise ArgumentError(
                f"window should be two fractions of training, 0 <= start < end <= 1, got {tuple(self.window)}."
            )

    @property
    def by_steps(self) -> bool:
        """Whether the rule counts optimiser steps rather than epochs."""
        return self.every_n_train_steps is not None

    @property
    def needs_progress(self) -> bool:
        """Whether the rule must know how long training will be."""
        return tuple(self.window) != (0.0, 1.0)

    def due_after_epoch(self, epoch: int, progress: float | None) -> bool:
        """Whether to take a snapshot at the end of an epoch.

        Args:
            epoch: Lightning's ``current_epoch``.
            progress: Fraction of training that is done, None where its length is unknown.
        """
        if self.by_steps:
            return False
        if self.epochs is not None:
            return epoch in self.epochs and self._inside(progress)
        return (epoch + 1) % (self.every_n_epochs or 1) == 0 and self._inside(progress)

    def due_after_step(self, previous: int, step: int, progress: float | None) -> bool:
        """Whether to take a snapshot after a batch.

        Args:
            previous: ``global_step`` before the batch (a batch can take no step, or several).
            step: ``global_step`` after it.
            progress: Fraction of training that is done, None where its length is unknown.
        """
        n = self.every_n_train_steps
        return n is not None and step // n > previous // n and self._inside(progress)

    def count(self, max_epochs: int | None, max_steps: int | None, enough: int) -> int | None:
        """How many snapshots a training gives at most; it may end before.

        Args:
            max_epochs: Of the training; None for no limit.
            max_steps: Likewise.
            enough: Where counting ends.

        Returns:
            None where it can't be told.
        """
        length, other = (max_steps, max_epochs) if self.by_steps else (max_epochs, max_steps)
        if self.needs_progress and (length is None or other is not None):
            return None  # of two limits the nearer one says which part of training it is
        if length is None:
            return None if self.epochs is None else len(set(self.epochs))
        n = self.every_n_train_steps or self.every_n_epochs or 1
        due: Iterable[int] = range(n, length + 1, n)
        if self.epochs is not None:
            due = [epoch + 1 for epoch in set(self.epochs) if epoch < length]
        return sum(itertools.islice((1 for done in due if self._inside(done / length)), enough))

    def _inside(self, progress: float | None) -> bool:
        start, end = self.window
        return not self.needs_progress or progress is None or start < progress <= end
