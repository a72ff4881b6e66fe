"""A short proxy distillation: which of a few snapshots the user's own student learns most from."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.snapshots.weights import check_made
from lightning_ckptkd.tasks.alone import detach
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.calling import call
from lightning_ckptkd.tasks.outputs import get_output
from lightning_ckptkd.tasks.rows import without_ones
from lightning_ckptkd.trainer.optimizers import OptimizerCallable


@dataclass(frozen=True)
class StudentProxy:
    """What :class:`MISelector` needs to count the student in: the budget of a short distillation.

    The paper names it as its limit that mutual information ignores the student. With a proxy, the best snapshots by
    the selector's rule each teach a copy of ``student`` for ``steps`` steps, and are ranked by how much their student
    then tells of the labels of the probe set, in nats.

    The comparison is a paired one: all copies have the same weights at first, the same samples in the same order with
    the same augmentation, and the same random numbers of their own (dropout). So each batch is read, decoded and moved
    once, and all candidates step on it before the next one. Students whose layers give few numbers, 49,152 a batch on
    average, step as one network with stacked weights, where the optimiser is one of torch's that step weight by weight
    and the first step shows the same loss, gradient and buffers up to rounding: 1e-4 of the largest. All others step
    one after another, with the very results of one candidate alone. So scores of stacked students depend, in their
    last digits, on how many step together: on the number of ranks, say. Batch hooks that look at the module's weights
    see those of the first candidate.

    In memory are the weights of the candidates and, four times, those of their students, up to 2 GiB at once; where
    that is too little for all, the batches are read again for the next few. An interrupted proxy goes on with the
    candidates that did not share their steps with the one that was interrupted.

    Attributes:
        student: The network to be distilled later; it returns logits. Its weights are not touched.
        steps: Training steps of each student. The learning rate falls to zero over them, linearly.
        candidates: How many snapshots are tried, the best by the selector's rule first.
        batch_size: Samples a step, where the training data can be drawn by index; else the dataloader decides.
        alpha: Weight of the labels' cross-entropy, in [0, 1], as :class:`DistillationModule` has it.
        temperature: T > 0, likewise.
        optimizer: Makes the optimiser, likewise.
        logits_key: Where the logits are, if the student returns a tuple, mapping or object.

    Raises:
        ArgumentError: If a number can't be used.
    """

    student: nn.Module
    steps: int = 200
    candidates: int = 5
    batch_size: int = 128
    alpha: float = 0.5
    temperature: float = 5.0
    optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    logits_key: str | int | None = None

    def __post_init__(self) -> None:
        check_types(StudentProxy, vars(self))
        for name, least in (("steps", 1), ("candidates", 2), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ArgumentError(
                    f"student_proxy: {name} should be {least} or more, got {getattr(self, name)}. Leave student_proxy "
                    "out to select without a student."
                )
        if not 0 <= self.alpha <= 1:
            raise ArgumentError(f"student_proxy: alpha should be in [0, 1], got {self.alpha}.")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ArgumentError(f"student_proxy: temperature should be above 0, got {self.temperature}.")

    def describe(self) -> dict[str, Any]:
        """Student and budget, for the record."""
        parameters = sum(parameter.numel() for parameter in self.student.parameters())
        budget = {name: getattr(self, name) for name in ("steps", "candidates", "batch_size", "alpha", "temperature")}
        return {"student": type(self.student).__name__, "parameters": parameters, **budget}

    def logits(self, student: nn.Module, batch: Batch) -> Tensor:
        """What a copy of the student makes of a batch on its device, shape (N, ...)."""
        return get_output(call(student, batch), self.logits_key, type(student).__name__, "student_proxy.logits_key")

    def check_logits(self, student: Tensor, teacher: Tensor) -> None:
        """Check that student and teacher agree on the classes.

        Raises:
            ArgumentError: If not.
        """
        one = student.dim() <= 2 and teacher.dim() <= 2 and without_ones(student) == without_ones(teacher)
        if student.shape != teacher.shape and not one:  # (N,) and (N, 1) hold the same
            wanted = f"{teacher.shape[1]} classes" if teacher.dim() == 2 else "the teacher's outputs"
            raise ArgumentError(
                f"student_proxy: the student gives logits of shape {tuple(student.shape)} and the teacher "
                f"{tuple(teacher.shape)}. Give a student with {wanted}."
            )

    def copy_student(self) -> nn.Module:
        """A student to train, which runs alone.

        Raises:
            ArgumentError: If the student can't be copied.
        """
        check_made(self.student, "student_proxy.student")
        try:
            student = copy.deepcopy(self.student)
        except (
            RuntimeError,
            TypeError,
            AttributeError,
            NotImplementedError,
            pickle.PicklingError,
            copy.Error,
        ) as error:
            raise ArgumentError(
                f"student_proxy: {type(self.student).__name__} can't be copied: {error}. Give a new instance of it "
                "without what can't be copied, or its network alone."
            ) from error
        detach(student)
        return student

    def check_student(self, batch: Batch, teacher: Tensor) -> None:
        """Try a copy of the student on a few samples that the teacher's output (N, ...) is of.

        Raises:
            ArgumentError: If the student's is of another shape.
        """
        student = self.copy_student().cpu().eval()
        with torch.no_grad():
            self.check_logits(self.logits(student, batch), teacher)
