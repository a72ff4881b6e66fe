"""Several proxy students that are trained side by side, each on the logits of one teacher."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_ckptkd.selecting.network_stack import (
    REFUSALS,
    NetworkStack,
    are_close,
    gives_little,
    in_turn,
    stack,
    state_of,
)
from lightning_ckptkd.selecting.proxy_teachers import ProxyTeachers
from lightning_ckptkd.selecting.student_proxy import StudentProxy
from lightning_ckptkd.tasks.base import Task
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.trainer.seeding import RandomState

# each weight of these has a step of its own, so that stacked ones have the steps that they would have alone
_BY_WEIGHT = ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adadelta")
_TOLERANCE = 1e-4  # of the largest gradient: float32's rounding in sums of another order, many times over

Logits = Callable[[int], Tensor]


class ProxyLoss:
    """The loss of a proxy student: of the labels, and of its teacher's logits.

    Args:
        proxy: The weights of the loss.
        task: Gives the loss itself.
    """

    def __init__(self, proxy: StudentProxy, task: Task) -> None:
        self._proxy, self._task = proxy, task
        self._soft_loss = task.kd_loss(proxy.temperature)

    def __call__(self, output: Tensor, target: Tensor, batch: Batch) -> Tensor:
        """The loss of a batch, shape ().

        Args:
            output: The student's, shape (N, ...).
            target: The teacher's, shape (N, ...).
            batch: On their device.

        Raises:
            ArgumentError: If student and teacher have different numbers of classes.
        """
        proxy, task = self._proxy, self._task
        proxy.check_logits(output, target)
        rows = task.rows(output, target.unsqueeze(0), batch.targets)
        loss = proxy.alpha * task.hard_loss(rows.student, rows.targets)
        soft: Tensor = self._soft_loss(rows.student, rows.teachers, rows.targets)
        return loss + (1 - proxy.alpha) * soft


class Students(Protocol):
    """Students in training."""

    def step(self, batch: Batch, logits: Logits) -> None:
        """One step of each.

        Args:
            batch: On their device.
            logits: Gives the output of the teacher in a place.
        """

    def take(self, place: int) -> nn.Module:
        """A student as it is now."""


class StudentsInTurn:
    """Students that step one after another, each with the same random numbers.

    Args:
        students: Are trained in place.
        proxy: The budget.
        loss: Of each.
        device: Where they are.
    """

    def __init__(
        self, students: Sequence[nn.Module], proxy: StudentProxy, loss: ProxyLoss, device: torch.device | str
    ) -> None:
        self._students, self._proxy, self._loss, self._device = students, proxy, loss, device
        self._optimizers = [proxy.optimizer(student.train().parameters()) for student in students]
        self._schedules = [falling(optimizer, proxy.steps) for optimizer in self._optimizers]

    def step(self, batch: Batch, logits: Logits) -> None:
        """See :class:`Students`."""

        def one(place: int) -> None:
            target = logits(place)
            loss = self._loss(self._proxy.logits(self._students[place], batch), target, batch)
            self._optimizers[place].zero_grad()
            torch.autograd.backward(loss)
            self._optimizers[place].step()
            self._schedules[place].step()

        in_turn(len(self._students), self._device, one)

    def take(self, place: int) -> nn.Module:
        """See :class:`Students`."""
        return self._students[place]


class StackedStudents:
    """Students that step as one: their weights are stacked, and so are the optimiser's.

    Args:
        student: The architecture, with the weights and the mode that all begin with.
        optimizer: Of its parameters; it has made no step, and takes the stacked ones in their place.
        count: How many.
        proxy: The budget.
        loss: Of each.
        device: Where it is.
    """

    def __init__(
        self,
        student: nn.Module,
        optimizer: torch.optim.Optimizer,
        count: int,
        proxy: StudentProxy,
        loss: ProxyLoss,
        device: torch.device | str,
    ) -> None:
        weights = stack([state_of(student)] * count)
        for name, parameter in student.named_parameters():
            weights[name].requires_grad_(parameter.requires_grad)
        self._places = {id(parameter): weights[name] for name, parameter in student.named_parameters()}
        for group in optimizer.param_groups:
            group["params"] = [self._places[id(parameter)] for parameter in group["params"]]
        self._student, self._stack, self._count = student, NetworkStack(student, weights), count
        self._proxy, self._loss, self._device = proxy, loss, device
        self._optimizer, self._schedule = optimizer, falling(optimizer, proxy.steps)

    def losses(self, batch: Batch, targets: Sequence[Tensor]) -> list[Tensor]:
        """The loss of each, shape (), of the teachers' outputs (N, ...)."""
        outputs = self._stack.run(lambda student: self._proxy.logits(student, batch))
        return [self._loss(output, target, batch) for output, target in zip(outputs, targets, strict=True)]

    def gradients(self, place: int) -> list[Tensor]:
        """Those of one student's parameters, where there are some."""
        return [weight.grad[place] for weight in self._places.values() if weight.grad is not None]

    def step(self, batch: Batch, logits: Logits) -> None:
        """See :class:`Students`."""
        losses = self.losses(batch, in_turn(self._count, self._device, logits))
        self._optimizer.zero_grad()
        torch.autograd.backward(losses)
        self._optimizer.step()
        self._schedule.step()

    def take(self, place: int) -> nn.Module:
        """See :class:`Students`."""
        student = copy.deepcopy(self._student)
        with torch.no_grad():
            for name, value in state_of(student).items():
                value.copy_(self._stack.weights[name][place])
        return student


def falling(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate falls to zero, linearly."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)


def distil_together(
    teachers: ProxyTeachers,
    batches: Iterable[Batch],
    proxy: StudentProxy,
    task: Task,
    device: torch.device | str,
) -> Iterator[nn.Module]:
    """Train a student for each teacher, for ``proxy.steps`` steps, on the same batches.

    All students have the same weights at first, and draw the same random numbers. They step one after another, as one
    alone would; or as one, where their layers give few numbers, the optimiser steps weight by weight, and the first
    loss and its gradient are then the same up to rounding.

    Args:
        teachers: One for each student; their module is lent out for the time.
        batches: On the device; at least as many as there are steps.
        proxy: The budget and the weights of the loss.
        task: Gives the loss itself.
        device: Where the students are trained.

    Yields:
        The trained students, in training mode.

    Raises:
        ArgumentError: If student and teacher have different numbers of classes, or the student can't be copied.
    """
    loss = ProxyLoss(proxy, task)
    students: Students | None = None
    with teachers.lent():
        teachers.lend(0)
        for _, batch in zip(range(proxy.steps), batches, strict=False):
            if students is None:
                students = _begin(teachers, batch, proxy, loss, device)
            students.step(batch, partial(teachers.logits, batch))
            teachers.lend(0)  # what prepares the next batch may look at the module
    assert students is not None, "there is a batch for each step"
    for place in range(len(teachers)):
        yield students.take(place)


def _begin(
    teachers: ProxyTeachers, batch: Batch, proxy: StudentProxy, loss: ProxyLoss, device: torch.device | str
) -> Students:
    """Decide on the first batch how students step; random numbers stay as they are."""
    count = len(teachers)
    if count > 1:
        state = RandomState.of(device)
        stacked = _stacked(teachers, batch, proxy, loss, device)
        state.restore()
        if stacked is not None:
            return stacked
    return StudentsInTurn([proxy.copy_student().to(device) for _ in range(count)], proxy, loss, device)


def _stacked(
    teachers: ProxyTeachers, batch: Batch, proxy: StudentProxy, loss: ProxyLoss, device: torch.device | str
) -> StackedStudents | None:
    """Stacked students, where they do what students alone do."""
    state, count = RandomState.of(device), len(teachers)
    one = proxy.copy_student().to(device).train()
    optimizer = proxy.optimizer(one.parameters())
    if not _steps_by_weight(optimizer):
        return None
    target = teachers.logits(batch, count - 1)
    losses: list[Tensor] = []
    state.restore()
    if not gives_little(one, lambda: losses.append(loss(proxy.logits(one, batch), target, batch))):
        return None
    torch.autograd.backward(losses[0])
    state.restore()
    targets = in_turn(count, device, partial(teachers.logits, batch))
    tried, students = (_make_stack(count, proxy, loss, device) for _ in range(2))
    state.restore()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = tried.losses(batch, targets)
            torch.autograd.backward(found)
            last = tried.take(count - 1)  # fails where a network keeps an output, which is all students' here
    except REFUSALS:
        return None
    alone = [parameter.grad for parameter in one.parameters() if parameter.grad is not None]
    same = are_close([found[-1]], losses, _TOLERANCE) and are_close(tried.gradients(count - 1), alone, _TOLERANCE)
    return students if same and _has_buffers_of(last, one) else None


def _has_buffers_of(student: nn.Module, other: nn.Module) -> bool:
    """Whether buffers are the same up to rounding: a stack loses what is assigned to one, as in ``self.m = x``."""
    pairs = zip(student.buffers(), other.buffers(), strict=True)
    return all(torch.equal(mine, theirs) or are_close([mine], [theirs], _TOLERANCE) for mine, theirs in pairs)


def _make_stack(count: int, proxy: StudentProxy, loss: ProxyLoss, device: torch.device | str) -> StackedStudents:
    student = proxy.copy_student().to(device).train()
    return StackedStudents(student, proxy.optimizer(student.parameters()), count, proxy, loss, device)


def _steps_by_weight(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimiser is one of torch's own that steps weight by weight, as torch made it."""
    kind = type(optimizer)
    hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks or "step" in vars(optimizer)
    return kind is getattr(torch.optim, kind.__name__, None) and kind.__name__ in _BY_WEIGHT and not hooked
