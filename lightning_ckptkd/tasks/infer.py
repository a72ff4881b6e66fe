"""Which task it is, where the user does not say: told from one output and its targets."""

from __future__ import annotations

from torch import Tensor

from lightning_ckptkd.errors import ArgumentError, near_names
from lightning_ckptkd.tasks.base import Task
from lightning_ckptkd.tasks.multiclass import Multiclass

AUTO = "auto"
TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (Multiclass,)}


def make_task(task: Task | str, ignore_index: int = -100) -> Task | None:
    """The task that an option names; None where it is to be told from the data.

    Args:
        task: A task, a name of :data:`TASKS`, or ``auto``.
        ignore_index: Of a task that is named; one that is given has its own.

    Raises:
        ArgumentError: If the name is unknown; lists near names.
    """
    if isinstance(task, Task):
        return task
    if task == AUTO:
        return None
    if task not in TASKS:
        raise ArgumentError(f"task={task!r} is unknown. Near names: {near_names(task, (AUTO, *TASKS))}.")
    return TASKS[task](ignore_index=ignore_index)


def infer_task(output: Tensor, targets: Tensor, ignore_index: int = -100) -> Task:
    """The task that an output (N, ...) and its targets (N, ...) are of.

    Raises:
        ArgumentError: If none fits.
    """
    return Multiclass(ignore_index=ignore_index)
