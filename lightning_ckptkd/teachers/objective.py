"""What a student is trained for: its task's own loss on the targets, and beside it that of its teachers' logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ckptkd.errors import ArgumentError, TeacherError
from lightning_ckptkd.losses import DKDLoss, LogitLoss
from lightning_ckptkd.losses.arguments import check_temperature
from lightning_ckptkd.losses.scale import AUTO, FITTED
from lightning_ckptkd.tasks.base import Task
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.infer import infer_task, make_task
from lightning_ckptkd.tasks.rows import Rows
from lightning_ckptkd.teachers.mixing import Pairs, check_cached_mix
from lightning_ckptkd.teachers.panel import TeacherPanel

# not "-> Tensor": jsonargparse would refuse functions whose return value is not annotated
KDFunction = Callable[[Tensor, Tensor, Tensor], Any]
"""A loss, one number, of the student's rows of logits (R, K), the teachers' (M, R, K) and the targets' (R,)."""


class Objective:
    """alpha times the hard loss and (1 - alpha) times the distillation loss, both on the rows of a task.

    Args:
        panel: The teachers.
        alpha: Weight of the hard loss, in [0, 1].
        temperature: T > 0, of the task's own distillation loss.
        kd_loss: Another one; None: the task's own.
        task: The task, its name, or ``auto``.
        ignore_index: Of a task that is named or found.

    Attributes:
        task: None until it is known.

    Raises:
        ArgumentError: If an argument can't be used.
    """

    def __init__(
        self,
        panel: TeacherPanel,
        alpha: float,
        temperature: float,
        kd_loss: nn.Module | KDFunction | None,
        task: Task | str,
        ignore_index: int,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ArgumentError(f"alpha should be in [0, 1], got {alpha}.")
        if kd_loss is None:
            check_temperature(temperature)
        elif panel.is_weighted and not isinstance(kd_loss, LogitLoss):
            raise ArgumentError(
                "teacher_weights need a loss that takes them: one of lightning_ckptkd.losses. Leave them out, or weigh "
                "the teachers in the function that kd_loss gives."
            )
        self.task = make_task(task, ignore_index)
        if self.task is not None:
            self.task.check_kd_loss(kd_loss)
        scale = AUTO if kd_loss is None else kd_loss.scale if isinstance(kd_loss, LogitLoss) else None
        panel.scale = scale if isinstance(scale, str) and scale in (FITTED, AUTO) else None
        self._panel, self._alpha, self._temperature, self._kd_loss = panel, alpha, temperature, kd_loss
        self._ignore_index = ignore_index
        self._values_checked = False

    def start_epoch(self) -> None:
        """Look at the values of the next batch, on a GPU too."""
        self._values_checked = False

    def step(
        self,
        student: Tensor,
        teachers: Tensor | None,
        batch: Batch,
        places: Sequence[int],
        student_name: str,
        *,
        cached: bool = False,
        pairs: Pairs | None = None,
    ) -> tuple[Tensor, int]:
        """The loss of a training step, shape (), and the number of rows that it is the mean of.

        Args:
            student: As in :meth:`rows`.
            teachers: Likewise.
            batch: Likewise.
            places: Of the teachers.
            student_name: For messages.
            cached: Whether the teachers' logits were read, of the samples before they were mixed; they were checked.
            pairs: What was mixed; the loss is then the average over both partners' targets.

        Raises:
            ArgumentError: As :meth:`rows` and :meth:`check_values` do.
            TeacherError: Likewise.
        """
        rows = self.rows(student, teachers, batch, student_name)
        self.check_values(rows, None if cached else teachers, places)
        loss = self.loss(rows, places)
        if pairs is not None:
            if teachers is not None and cached:
                check_cached_mix(self._kd_loss)  # a task of the user's may have brought one
                teachers = teachers[:, pairs.permutation]
            partner = replace(batch, targets=batch.targets[pairs.permutation])
            partners = self.rows(student, teachers, partner, student_name)
            loss = pairs.average(loss, self.loss(partners, places))
        return loss, len(rows.targets)

    def rows(self, student: Tensor, teachers: Tensor | None, batch: Batch, student_name: str) -> Rows:
        """Outputs of a batch as rows, their shapes checked against each other and the targets.

        At the first batch this finds the task, where nobody named it.

        Args:
            student: Shape (N, ...).
            teachers: Shape (M, N, ...); None where none ran.
            batch: With targets (N, ...).
            student_name: For messages.

        Raises:
            ArgumentError: If an output and the targets are not the task's, or the task not that of the selection.
            TeacherError: If student and teachers have different shapes.
        """
        targets, name = batch.targets, f"the student ({student_name})"
        if self.task is None:
            with _student_option():
                self.task = self._find_task(student, teachers, batch, name)
            self.task.check_kd_loss(self._kd_loss)
            self.check_selected()
        task = self.task
        with _student_option():
            task.check(student, targets, name)
        if teachers is not None and teachers.shape[1:] != student.shape:
            task.check(teachers[0], targets, "a teacher")
            own, theirs = task.flatten(student).shape, task.flatten(teachers, 1).shape[1:]
            if own[-1] != theirs[-1]:
                raise TeacherError(
                    f"The student has {own[-1]} classes and the teachers ({self._panel.describe()}) have {theirs[-1]}. "
                    "Give the student the teachers' number."
                )
            if own != theirs:
                raise TeacherError(
                    f"The student's output has the shape {tuple(student.shape)} and those of the teachers "
                    f"({self._panel.describe()}) have {tuple(teachers.shape[1:])}. Give a student whose output has "
                    "theirs."
                )
        return task.rows(student, teachers, targets)

    def check_selected(self) -> None:
        """Check that the student reads its targets as the selection did that chose its teachers, where both are known.

        Raises:
            ArgumentError: If it does not; names both tasks.
        """
        if self.task is None:
            return
        own = self.task.name
        for folder, name in self._panel.tasks.items():
            if name not in (own, *self.task.reads_too):
                raise ArgumentError(
                    f"task: the student reads its targets as {own!r}, but the teachers of {folder} were selected by "
                    f"{name!r}. Give DistillationModule(task={name!r}), or select again with task={own!r}."
                )

    def check_values(self, rows: Rows, live: Tensor | None = None, places: Sequence[int] = ()) -> None:
        """Check the values of targets and of logits; on a GPU of the first batch of an epoch only, since it waits.

        Args:
            rows: Of a batch.
            live: Logits of teachers who ran on it, shape (M, N, ...).
            places: Theirs.

        Raises:
            ArgumentError: If a target can't be the task's, or a loss needs one that is not there.
            TeacherError: If a logit is NaN or infinite.
        """
        if self._values_checked and rows.targets.device.type != "cpu":
            return
        self._check_targets(rows)
        if live is not None:
            self._panel.check_finite(live, places)
        self._values_checked = True

    def loss(self, rows: Rows, places: Sequence[int]) -> Tensor:
        """The loss of a batch, shape (); zero, with a gradient of zero, where it has no rows.

        Args:
            rows: Of the batch; without teachers the targets teach alone.
            places: The teachers'.
        """
        if not len(rows.targets):
            return rows.student.sum()
        if self._alpha == 1 or not rows.is_taught:
            return self._hard_loss(rows)
        assert self.task is not None, "rows() comes first"
        if self._kd_loss is None:
            self._kd_loss = self.task.kd_loss(self._temperature)
        weights = self._panel.weights(places, rows.student.device)
        scales = self._panel.scales(places, rows.student.device)
        fitted = () if scales is None else (scales,)  # a task of the user's own need not know of them
        loss: Tensor = (1 - self._alpha) * self.task.distilled(self._kd_loss, rows, weights, *fitted)
        return loss + self._alpha * self._hard_loss(rows) if self._alpha > 0 else loss

    def _hard_loss(self, rows: Rows) -> Tensor:
        assert self.task is not None, "rows() comes first"
        return self.task.taught(rows)

    def _ignored(self, rows: Rows) -> Tensor:
        assert self.task is not None, "rows() comes first"
        index: int | None = self.task.ignore_index
        return torch.zeros_like(rows.targets, dtype=torch.bool) if index is None else rows.targets == index

    def _find_task(self, student: Tensor, teachers: Tensor | None, batch: Batch, name: str) -> Task:
        """The task of the teachers' output, who were trained for it, or of the student's where theirs is of none."""
        if teachers is not None:
            with suppress(ArgumentError):
                return infer_task(teachers[0], batch.targets, self._ignore_index, batch.inputs)
        return infer_task(student, batch.targets, self._ignore_index, batch.inputs, name)

    def _check_targets(self, rows: Rows) -> None:
        assert self.task is not None, "rows() comes first"
        self.task.check_targets(rows.targets, rows.num_classes, partial=True)
        if rows.is_taught and isinstance(self._kd_loss, DKDLoss) and rows.targets.is_floating_point():
            raise ArgumentError(
                "kd_loss=DKDLoss splits the classes by the one that is right, and a batch has shares of several. Give "
                "KDLoss, DISTLoss or MSELoss, or targets that are class indices."
            )
        ignored = self._ignored(rows)
        if rows.is_taught and isinstance(self._kd_loss, DKDLoss) and bool(ignored.any()):
            raise ArgumentError(
                f"kd_loss=DKDLoss needs a label for each sample, but {int(ignored.sum())} of {len(rows.targets)} in a "
                f"batch are ignore_index={self.task.ignore_index}. Give KDLoss, or leave these samples out of the data."
            )


@contextmanager
def _student_option() -> Iterator[None]:
    """Errors about a student's output name its option: a task knows only the teachers' by name."""
    try:
        yield
    except ArgumentError as error:
        raise ArgumentError(str(error).replace(" logits_key", " student_logits_key")) from None
