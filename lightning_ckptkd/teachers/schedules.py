"""Which teacher when: the places of the teachers that a training step learns from."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from typing_extensions import override

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError


class TeacherSchedule(ABC):
    """Says for each step which teachers run.

    A schedule has no state: what it says depends on the step alone, so that a resumed run goes on in the right place.

    Args:
        from_epoch: The student's first epoch, from 0, with teachers; before it the targets teach alone.
        until_epoch: The first epoch without them again; None: to the end.

    Attributes:
        needs_length: Whether the student's training must have a known length.

    Raises:
        ArgumentError: If no epoch is left.
    """

    needs_length = False
    from_epoch: int = 0
    until_epoch: int | None = None

    def __init__(self, from_epoch: int = 0, until_epoch: int | None = None) -> None:
        check_types(TeacherSchedule.__init__, locals())
        if not 0 <= from_epoch < (math.inf if until_epoch is None else until_epoch):
            raise ArgumentError(f"from_epoch={from_epoch} should be 0 or more and before until_epoch={until_epoch}.")
        self.from_epoch, self.until_epoch = from_epoch, until_epoch

    def teaches(self, epoch: int) -> bool:
        """Whether anybody teaches in an epoch of the student's."""
        return self.from_epoch <= epoch and (self.until_epoch is None or epoch < self.until_epoch)

    def check(self, epochs: Sequence[int]) -> None:  # noqa: B027 - most schedules suit any teachers
        """Check that the schedule suits the teachers, before training starts.

        Args:
            epochs: The teachers' epochs in their own training, in the order of the ensemble.

        Raises:
            ArgumentError: If it does not.
        """

    @abstractmethod
    def teachers(self, epochs: Sequence[int], step: int, epoch: int, part: float) -> list[int]:
        """Places of the teachers of one step, in an epoch with teachers.

        Args:
            epochs: As in :meth:`check`.
            step: Optimiser steps that the student has taken; batches, where Lightning counts no steps.
            epoch: The student's epoch, from 0.
            part: Share of the student's training that is done, in [0, 1].
        """


class AllTeachers(TeacherSchedule):
    """All of them in each step.

    Args:
        from_epoch: See :class:`TeacherSchedule`.
        until_epoch: Likewise.
    """

    @override
    def teachers(self, epochs: Sequence[int], step: int, epoch: int, part: float) -> list[int]:
        return list(range(len(epochs)))


class RandomTeacher(TeacherSchedule):
    """One teacher a step, drawn at random, the same one for the same step and on all ranks.

    Args:
        seed: Of the draw.
        from_epoch: See :class:`TeacherSchedule`.
        until_epoch: Likewise.

    Raises:
        ArgumentError: Before training, if there is one teacher, as a soup is.
    """

    def __init__(self, seed: int = 0, from_epoch: int = 0, until_epoch: int | None = None) -> None:
        super().__init__(from_epoch, until_epoch)
        check_types(RandomTeacher.__init__, locals())
        self.seed = seed

    @override
    def check(self, epochs: Sequence[int]) -> None:
        _check_several(self, epochs)

    @override
    def teachers(self, epochs: Sequence[int], step: int, epoch: int, part: float) -> list[int]:
        drawn = hashlib.sha256(f"{self.seed} {step}".encode()).digest()
        return [int.from_bytes(drawn[:8], "little") % len(epochs)]


class Progressive(TeacherSchedule):
    """One teacher after another in the order of their training, each for an equal part of the student's.

    Args:
        cumulative: Whether the earlier ones stay when the next one comes.
        from_epoch: See :class:`TeacherSchedule`; the parts are those of the whole training.
        until_epoch: Likewise.

    Raises:
        ArgumentError: Before training, if there is one teacher, as a soup is.
    """

    needs_length = True

    def __init__(self, cumulative: bool = False, from_epoch: int = 0, until_epoch: int | None = None) -> None:
        super().__init__(from_epoch, until_epoch)
        check_types(Progressive.__init__, locals())
        self.cumulative = cumulative

    @override
    def check(self, epochs: Sequence[int]) -> None:
        _check_several(self, epochs)

    @override
    def teachers(self, epochs: Sequence[int], step: int, epoch: int, part: float) -> list[int]:
        in_order = sorted(range(len(epochs)), key=lambda place: epochs[place])
        current = min(int(part * len(epochs)), len(epochs) - 1)
        return in_order[: current + 1] if self.cumulative else [in_order[current]]


class Route(TeacherSchedule):
    """One teacher at a time, by a table.

    Args:
        stages: From an epoch of the student on (from 0, which must be there), the teacher of that epoch of its own
            training: ``{0: 5, 10: 19}``.
        from_epoch: See :class:`TeacherSchedule`.
        until_epoch: Likewise.

    Raises:
        ArgumentError: If nobody teaches in epoch 0.
    """

    def __init__(self, stages: Mapping[int, int], from_epoch: int = 0, until_epoch: int | None = None) -> None:
        super().__init__(from_epoch, until_epoch)
        check_types(Route.__init__, locals())
        self.stages = {int(start): int(teacher) for start, teacher in stages.items()}
        if 0 not in self.stages or min(self.stages) < 0:
            raise ArgumentError(f"stages={self.stages} should start with the student's epoch 0.")

    @override
    def check(self, epochs: Sequence[int]) -> None:
        missing = sorted(set(self.stages.values()) - set(epochs))
        if missing:
            raise ArgumentError(
                f"stages={self.stages} names the epochs {missing}, but the teachers are of {sorted(epochs)}. Name "
                f"these, or choose others with choice=, as in choice={sorted(set(self.stages.values()))}."
            )
        several = sorted({epoch for epoch in self.stages.values() if list(epochs).count(epoch) > 1})
        if several:
            raise ArgumentError(
                f"stages={self.stages} names the epochs {several}, of which there are several teachers. A route needs "
                "the teachers of one harvest."
            )

    @override
    def teachers(self, epochs: Sequence[int], step: int, epoch: int, part: float) -> list[int]:
        start = max(start for start in self.stages if start <= epoch)
        return [list(epochs).index(self.stages[start])]


def _check_several(schedule: TeacherSchedule, epochs: Sequence[int]) -> None:
    if len(epochs) < 2:
        raise ArgumentError(
            f"schedule={type(schedule).__name__} goes from one teacher to another, and there is only one (a soup of "
            "snapshots is one network). Name several epochs with choice=, choose some with MISelector(num_teachers=3), "
            "or take AllTeachers, which has the same from_epoch and until_epoch."
        )
