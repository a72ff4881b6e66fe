"""What a task is: how outputs and targets lie, what is lost and measured on them, and what they tell of the label.

Whatever the shape of a network's output, losses, metrics and estimators see *rows*: one for each thing that is
predicted (a sample, a label of it, a pixel, a token), with K scores for the K classes or K numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.information.label import head_gains, label_entropy, label_surprises
from lightning_ckptkd.losses import KDLoss, LogitLoss
from lightning_ckptkd.losses.hard import as_weights, cross_entropy
from lightning_ckptkd.shapes import Bool, Float, Int, Num, Shaped
from lightning_ckptkd.tasks.rows import Labelled, Rows

if TYPE_CHECKING:
    from torchmetrics import Metric


class Task(ABC):
    """A task of which outputs are scores of classes; one whose outputs are something else overrides more.

    A task of your own implements :meth:`flatten`, :meth:`flatten_targets` and :meth:`check`, and goes to
    ``MISelector(task=...)`` and ``DistillationModule(task=...)``, by class path from a config.

    I(Y;F) is the sum over units of the mean over a unit's rows. A unit is what a row is about: most tasks have one for
    all rows (``units`` gives None), multilabel has one for each label. So whoever estimates it takes the rows that
    :meth:`labelled` names (or, with :meth:`Labelled.take`, a draw of them), asks :meth:`label_gains` with the folds of
    their samples, and :func:`.information.label.gains_by_sample` for one value a sample, whose mean is the term.

    Args:
        ignore_index: Targets of this value are left out of the hard loss, of metrics and of I(Y;F).
        class_weights: What each class counts in the hard loss, K numbers; None: all the same.
        label_smoothing: Of the hard loss, in [0, 1).

    Attributes:
        classes: Whether rows are scores of classes, so that they have a softmax, an argmax and an accuracy.
        reads_too: Names of tasks that read the same targets in the same way, so that teachers selected by one of them
            may teach here.
        expects_each_class: Whether data that lack a class deserve a word; a vocabulary is never seen whole.

    Raises:
        ArgumentError: If an argument can't be used.
    """

    name: ClassVar[str]
    classes: ClassVar[bool] = True
    reads_too: ClassVar[tuple[str, ...]] = ()
    expects_each_class: ClassVar[bool] = True
    ignore_index: int | None

    def __init__(
        self,
        ignore_index: int | None = -100,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        check_types(Task.__init__, locals())
        if not 0 <= label_smoothing < 1:
            raise ArgumentError(f"label_smoothing should be in [0, 1), got {label_smoothing}.")
        self.ignore_index = ignore_index
        self.class_weights = as_weights("class_weights", class_weights)
        self.label_smoothing = label_smoothing

    @abstractmethod
    def flatten(self, output: Float[Tensor, "..."], lead: int = 0) -> Float[Tensor, "*lead P K"]:
        """A network's output as rows, one sample after another.

        Args:
            output: Shape (N, ...); or (M, N, ...) with ``lead=1``.
            lead: Number of dimensions before N, which stay.

        Returns:
            Shape (P, K) or (M, P, K), P a number of rows that depends on the shape alone.
        """

    @abstractmethod
    def flatten_targets(self, targets: Shaped[Tensor, "N ..."]) -> Shaped[Tensor, "P ..."]:
        """Targets (N, ...) as rows, shape (P,): class indices, or ``ignore_index``."""

    @abstractmethod
    def check(self, output: Shaped[Tensor, "N ..."], targets: Shaped[Tensor, "N ..."], model: str) -> None:
        """Check the shapes of an output and its targets against each other; no value is looked at.

        Args:
            output: Shape (N, ...).
            targets: Shape (N, ...).
            model: Whose output it is, for messages.

        Raises:
            ArgumentError: If they are not the task's.
        """

    def check_targets(self, targets: Shaped[Tensor, "P ..."], num_classes: int, *, partial: bool = False) -> None:
        """Check the values of targets; on a GPU this waits for it.

        Args:
            targets: Shape (P,), as :meth:`flatten_targets` gives them.
            num_classes: K, of rows.
            partial: Whether these are a batch of more, of which no target need be used.

        Raises:
            ArgumentError: If one is neither a class nor ``ignore_index``, or all are ``ignore_index``.
        """
        used = targets if self.ignore_index is None else targets[targets != self.ignore_index]
        if len(targets) and not len(used) and not partial:
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

    def check_scores(self, num_classes: int, model: str) -> None:
        """Check that a softmax over so many scores means something, and that there is a weight for each.

        Raises:
            ArgumentError: If not.
        """
        if num_classes < 2:
            raise ArgumentError(
                f"task={self.name} needs one score a class, but {model} gives {num_classes}, of which the softmax is "
                "always 1. Use task='binary' for targets of 0 and 1, task='regression' for numbers."
            )
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            raise ArgumentError(
                f"class_weights are {len(self.class_weights)}, but {model} gives {num_classes} scores. Give one weight "
                "for each class."
            )

    def kept(self, targets: Shaped[Tensor, "P ..."]) -> Int[Tensor, " R"] | None:
        """Which rows teachers teach, indices into targets (P,); None for all of them.

        A sample without a label has logits that mean something, so that all rows of plain classification are kept.
        """
        return None

    def samples(self, targets: Shaped[Tensor, "N ..."]) -> Int[Tensor, " P"] | None:
        """The sample of each row, shape (P,), of targets (N, ...); None where each sample is one row."""
        return None

    def units(self, targets: Shaped[Tensor, "N ..."]) -> Int[Tensor, " P"] | None:
        """The unit of each row, shape (P,), of targets (N, ...); None where all rows are of one."""
        return None

    def num_units(self, output: Shaped[Tensor, "N ..."]) -> int:
        """Number of units that an output (N, ...) tells of."""
        return 1

    def labelled(self, targets: Shaped[Tensor, "N ..."]) -> Labelled:
        """The rows of targets (N, ...) that have one; on a GPU this waits for it."""
        flat, samples, units = self.flatten_targets(targets), self.samples(targets), self.units(targets)
        places = torch.arange(len(flat), device=flat.device)
        found = Labelled(places, flat, places if samples is None else samples, units)
        if self.ignore_index is None or flat.is_floating_point():  # shares and numbers have no such value
            return found
        return found.take((flat != self.ignore_index).nonzero().squeeze(1))

    def rows(
        self,
        student: Float[Tensor, "N ..."],
        teachers: Float[Tensor, "M N ..."] | None,
        targets: Shaped[Tensor, "N ..."],
    ) -> Rows:
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
            teachers = None if teachers is None else teachers.index_select(1, kept)
        return Rows(student, teachers, flat)

    def hard_loss(self, logits: Float[Tensor, "R K"], targets: Shaped[Tensor, "R ..."]) -> Float[Tensor, ""]:
        """The targets' own loss, shape (): the mean cross-entropy in nats; 0 where no row has a target.

        Computed in float32 at least.

        Args:
            logits: Shape (R, K).
            targets: Shape (R,), or (R, K) shares of the classes.
        """
        return cross_entropy(logits, targets, self.class_weights, self.ignore_index, self.label_smoothing)

    def taught(self, rows: Rows) -> Float[Tensor, ""]:
        """:meth:`hard_loss` of a batch's rows."""
        return self.hard_loss(rows.student, rows.targets)

    def distilled(
        self,
        kd_loss: Callable[..., Tensor],
        rows: Rows,
        weights: Num[Tensor, " M"] | None = None,
        scales: Num[Tensor, " M"] | None = None,
    ) -> Float[Tensor, ""]:
        """A distillation loss of a batch's rows, with teachers.

        Args:
            kd_loss: Of the student's rows (R, K), the teachers' (M, R, K) and the targets' (R,).
            rows: Of the batch.
            weights: Of the teachers, shape (M,), for a loss that takes them.
            scales: What each teacher's logits are multiplied by, shape (M,), likewise.
        """
        counts = () if weights is None and scales is None else (weights,)
        return kd_loss(rows.student, rows.teachers, rows.targets, *counts, *(() if scales is None else (scales,)))

    def kd_loss(self, temperature: float) -> LogitLoss:
        """The distillation loss where the user gives none."""
        return KDLoss(temperature)

    def check_kd_loss(self, kd_loss: object) -> None:  # noqa: B027 -- classes take all losses
        """Check that a distillation loss of this package means something for the task.

        Raises:
            ArgumentError: If it does not.
        """

    def metrics(self, num_classes: int, num_units: int | None = None) -> dict[str, Metric]:
        """New metrics by name; each takes rows (R, K) and targets as :meth:`rows` gives them.

        The first is the one to show, and takes what :meth:`agreement` gives for targets, too.

        Args:
            num_classes: K, of rows.
            num_units: What :meth:`num_units` gives; metrics that need it are left out without.
        """
        from lightning_ckptkd.tasks.metrics import RowAccuracy  # with torchmetrics, which is slow to import

        return {"acc": RowAccuracy(self.ignore_index)}

    def agreement(self, teachers: Float[Tensor, "R K"]) -> Int[Tensor, " R"] | None:
        """Targets (R,) by which the metric of a student tells how often it agrees with its teachers' mean (R, K)."""
        return teachers.argmax(1)

    def label_gains(
        self,
        logits: Float[Tensor, "R K"],
        targets: Shaped[Tensor, "R ..."],
        folds: Int[Tensor, " R"],
        units: Int[Tensor, " R"] | None = None,
    ) -> Float[Tensor, " R"]:
        """What each row adds to its unit's I(Y;F) by the network's own head.

        Args:
            logits: Shape (R, K).
            targets: Shape (R,), without ``ignore_index``.
            folds: Fold of each row, shape (R,); rows of one sample are in one.
            units: Unit of each row, shape (R,); None: one for all.

        Returns:
            Nats, shape (R,), float64. The mean over the rows of a unit is that unit's I(Y;F), at most its H(Y).
        """
        if units is None:
            return self.unit_gains(logits, targets, folds)
        gains = torch.empty(len(targets), dtype=torch.float64, device=logits.device)
        for unit in range(int(units.max()) + 1):
            rows = units == unit
            if bool(rows.any()):
                gains[rows] = self.unit_gains(logits[rows], targets[rows], folds[rows])
        return gains

    def unit_gains(
        self, logits: Float[Tensor, "R K"], targets: Shaped[Tensor, "R ..."], folds: Int[Tensor, " R"]
    ) -> Float[Tensor, " R"]:
        """:meth:`label_gains` of the rows of one unit."""
        return head_gains(logits, targets, folds)

    def label_entropy(self, targets: Shaped[Tensor, "R ..."], units: Int[Tensor, " R"] | None = None) -> float | None:
        """The most that I(Y;F) can be: H(Y) in nats, summed over units; None where there is no such bound.

        Args:
            targets: Shape (R,), without ``ignore_index``.
            units: Unit of each row, shape (R,); None: one for all.
        """
        if units is None:
            return label_entropy(targets)
        rows = [units == unit for unit in range(int(units.max()) + 1)]
        return math.fsum(label_entropy(targets[own]) for own in rows if bool(own.any()))

    def label_surprises(
        self, targets: Shaped[Tensor, "R ..."], units: Int[Tensor, " R"] | None = None
    ) -> Float[Tensor, " R"] | None:
        """-log p(y) of each row under the frequencies of its unit, in nats; None where Y has no such bound.

        The sum over units of the mean over a unit's rows is :meth:`label_entropy`.

        Args:
            targets: Shape (R,), without ``ignore_index``.
            units: Unit of each row, shape (R,); None: one for all.

        Returns:
            Shape (R,), float64.
        """
        if units is None:
            return label_surprises(targets)
        surprises = torch.empty(len(targets), dtype=torch.float64, device=targets.device)
        for unit in range(int(units.max()) + 1):
            rows = units == unit
            if bool(rows.any()):
                surprises[rows] = label_surprises(targets[rows])
        return surprises

    def costs(self, logits: Float[Tensor, "R K"], targets: Shaped[Tensor, "R ..."]) -> Float[Tensor, " R"]:
        """-log q(y|f) of each row by the network's own head as it is, without a fitted temperature.

        Args:
            logits: Shape (R, K).
            targets: Shape (R,), without ``ignore_index``.

        Returns:
            Nats, shape (R,), float64.
        """
        return F.cross_entropy(logits.double(), targets if targets.dim() == 1 else targets.double(), reduction="none")

    def hits(self, logits: Float[Tensor, "R K"], targets: Shaped[Tensor, "R ..."]) -> Bool[Tensor, " R"] | None:
        """Which rows are predicted correctly, shape (R,), bool; None where a prediction is not right or wrong.

        Args:
            logits: Shape (R, K).
            targets: Shape (R,), where ``ignore_index`` is never hit; or (R, K), of which the largest counts.
        """
        return logits.argmax(1) == (targets if targets.dim() == 1 else targets.argmax(1))

    def describe(self) -> dict[str, Any]:
        """Name and options, for the record."""
        weights = None if self.class_weights is None else self.class_weights.tolist()
        return {
            "name": self.name,
            "ignore_index": self.ignore_index,
            "class_weights": weights,
            "label_smoothing": self.label_smoothing,
        }
