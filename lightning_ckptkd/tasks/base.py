"""What a task is: how outputs and targets lie, what is lost and measured on them, and what they tell of the label.

Whatever the shape of a network's output, losses, metrics and estimators see *rows*: one for each thing that is
predicted (a sample, a label of it, a pixel, a token), with K scores for the K classes or K numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.information.label import head_gains, label_entropy
from lightning_ckptkd.losses import KDLoss, LogitLoss


@dataclass(frozen=True)
class Rows:
    """Outputs and targets of a batch as losses and metrics see them.

    Attributes:
        student: Shape (R, K).
        teachers: Shape (M, R, K); None where no teacher ran.
        targets: Shape (R,): class indices; or (R, K), shares of the classes or numbers.
    """

    student: Tensor
    teachers: Tensor | None
    targets: Tensor


class Task(ABC):
    """A task of which outputs are scores of classes; one whose outputs are something else overrides more.

    A task of your own implements :meth:`flatten`, :meth:`flatten_targets` and :meth:`check`, and goes to
    ``MISelector(task=...)`` and ``DistillationModule(task=...)``, by class path from a config.

    Args:
        ignore_index: Targets of this value are left out of the hard loss, of metrics and of I(Y;F).
        class_weights: What each class counts in the hard loss, K numbers; None: all the same.
        label_smoothing: Of the hard loss, in [0, 1).

    Raises:
        ArgumentError: If an argument can't be used.
    """

    name: ClassVar[str]

    def __init__(
        self, ignore_index: int = -100, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ArgumentError(f"label_smoothing should be in [0, 1), got {label_smoothing}.")
        if class_weights is not None and not all(0 <= weight < float("inf") for weight in class_weights):
            raise ArgumentError(f"class_weights should be finite and 0 or more, got {list(class_weights)}.")
        self.ignore_index = ignore_index
        self.class_weights = None if class_weights is None else torch.tensor(list(class_weights), dtype=torch.float32)
        self.label_smoothing = label_smoothing

    @abstractmethod
    def flatten(self, output: Tensor, lead: int = 0) -> Tensor:
        """A network's output as rows.

        Args:
            output: Shape (N, ...); or (M, N, ...) with ``lead=1``.
            lead: Number of dimensions before N, which stay.

        Returns:
            Shape (P, K) or (M, P, K), P a number of rows that depends on the shape alone.
        """

    @abstractmethod
    def flatten_targets(self, targets: Tensor) -> Tensor:
        """Targets (N, ...) as rows, shape (P,): class indices, or ``ignore_index``."""

    @abstractmethod
    def check(self, output: Tensor, targets: Tensor, model: str) -> None:
        """Check the shapes of an output and its targets against each other; no value is looked at.

        Args:
            output: Shape (N, ...).
            targets: Shape (N, ...).
            model: Whose output it is, for messages.

        Raises:
            ArgumentError: If they are not the task's.
        """

    def check_targets(self, targets: Tensor, num_classes: int) -> None:
        """Check the values of targets; on a GPU this waits for it.

        Args:
            targets: Shape (P,), as :meth:`flatten_targets` gives them.
            num_classes: K.

        Raises:
            ArgumentError: If one is neither a class nor ``ignore_index``, or all are ``ignore_index``.
        """
        used = targets[targets != self.ignore_index]
        if len(targets) and not len(used):
            raise ArgumentError(
                f"ignore_index={self.ignore_index} is the target of all {len(targets)} samples, so that there is "
                "nothing to learn or to measure. Give data with other targets, or another ignore_index."
            )
        if len(used) and (int(used.min()) < 0 or int(used.max()) >= num_classes):
            raise ArgumentError(
                f"Labels run from {int(used.min())} to {int(used.max())}, but the teacher has {num_classes} classes "
                f"(0 to {num_classes - 1}). Give the data that it was trained on, a network with as many classes, or "
                "the label that means none as ignore_index."
            )

    def kept(self, targets: Tensor) -> Tensor | None:
        """Which rows teachers teach, indices into targets (P,); None for all of them.

        A sample without a label has logits that mean something, so that all rows of plain classification are kept.
        """
        return None

    def samples(self, targets: Tensor) -> Tensor | None:
        """The sample of each row, shape (P,), of targets (N, ...); None where each sample is one row."""
        return None

    def rows(self, student: Tensor, teachers: Tensor | None, targets: Tensor) -> Rows:
        """Lay out a batch.

        Args:
            student: Shape (N, ...).
            teachers: Shape (M, N, ...), or None.
            targets: Shape (N, ...).
        """
        flat = self.flatten_targets(targets)
        student = self.flatten(student)
        teachers = None if teachers is None else self.flatten(teachers, 1)
        kept = self.kept(flat)
        if kept is not None:
            student, flat = student[kept], flat[kept]
            teachers = None if teachers is None else teachers[:, kept]
        return Rows(student, teachers, flat)

    def hard_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The targets' own loss, shape (): the mean cross-entropy in nats.

        Args:
            logits: Shape (R, K).
            targets: Shape (R,), or (R, K) shares of the classes.
        """
        weights = None if self.class_weights is None else self.class_weights.to(logits)
        return F.cross_entropy(
            logits, targets, weights, ignore_index=self.ignore_index, label_smoothing=self.label_smoothing
        )

    def kd_loss(self, temperature: float) -> LogitLoss:
        """The distillation loss where the user gives none."""
        return KDLoss(temperature)

    def metrics(self, num_classes: int) -> dict[str, Metric]:
        """New metrics by name; each takes rows (R, K) and targets (R,), the first is the one to show."""
        return {"acc": MulticlassAccuracy(average="micro", ignore_index=self.ignore_index)}

    def agreement(self, teachers: Tensor) -> Tensor | None:
        """Targets (R,) by which the metric of a student tells how often it agrees with its teachers' mean (R, K)."""
        return teachers.argmax(1)

    def label_gains(self, logits: Tensor, targets: Tensor, folds: Tensor) -> Tensor:
        """What each row adds to I(Y;F) by the network's own head.

        Args:
            logits: Shape (R, K).
            targets: Shape (R,), without ``ignore_index``.
            folds: Fold of each row, shape (R,); rows of one sample are in one.

        Returns:
            Nats, shape (R,), float64. Its mean is I(Y;F).
        """
        return head_gains(logits, targets, folds)

    def label_entropy(self, targets: Tensor) -> float:
        """H(Y) of rows (R,) of targets in nats: the most that I(Y;F) could be; NaN where it has no bound."""
        return label_entropy(targets)

    def costs(self, logits: Tensor, targets: Tensor) -> Tensor:
        """-log q(y|f) of each row by the network's own head as it is, without a fitted temperature.

        Args:
            logits: Shape (R, K).
            targets: Shape (R,), without ``ignore_index``.

        Returns:
            Nats, shape (R,), float64.
        """
        return F.cross_entropy(logits.double(), targets, reduction="none")

    def hits(self, logits: Tensor, targets: Tensor) -> Tensor | None:
        """Which rows are predicted correctly, shape (R,), bool; None where a prediction is not right or wrong.

        Args:
            logits: Shape (R, K).
            targets: Shape (R,); where it is ``ignore_index``, the answer is False.
        """
        return logits.argmax(1) == targets

    def describe(self) -> dict[str, Any]:
        """Name and options, for the record."""
        weights = None if self.class_weights is None else self.class_weights.tolist()
        return {
            "name": self.name,
            "ignore_index": self.ignore_index,
            "class_weights": weights,
            "label_smoothing": self.label_smoothing,
        }
