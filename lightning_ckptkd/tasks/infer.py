"""Which task it is, where the user does not say: told from one output and its targets."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_ckptkd.errors import ArgumentError, near_names
from lightning_ckptkd.rank_zero import rank_zero_info
from lightning_ckptkd.shapes import Shaped
from lightning_ckptkd.tasks.base import Task
from lightning_ckptkd.tasks.batch import tensors_in
from lightning_ckptkd.tasks.binary import Binary
from lightning_ckptkd.tasks.causal_lm import CausalLM
from lightning_ckptkd.tasks.dense import Dense, Tokens
from lightning_ckptkd.tasks.multiclass import Multiclass, are_shares
from lightning_ckptkd.tasks.multilabel import Multilabel
from lightning_ckptkd.tasks.reading import STILL_WORKS
from lightning_ckptkd.tasks.regression import Regression
from lightning_ckptkd.tasks.rows import without_ones
from lightning_ckptkd.tasks.soft import SoftMulticlass

AUTO = "auto"
TASKS: dict[str, Callable[..., Task]] = {
    kind.name: kind for kind in (Multiclass, SoftMulticlass, Binary, Multilabel, Dense, Tokens, CausalLM, Regression)
}
_DEFAULT_IGNORE = -100


def make_task(task: Task | str, ignore_index: int = _DEFAULT_IGNORE) -> Task | None:
    """The task that an option names; None where it is to be told from the data.

    Args:
        task: A task, a name of :data:`TASKS`, or ``auto``.
        ignore_index: Of a task that is named; one that is given has its own.

    Raises:
        ArgumentError: If the name is unknown (lists near names), or ignore_index is given twice, or to a task that
            has none.
    """
    if isinstance(task, Task):
        if ignore_index not in (_DEFAULT_IGNORE, task.ignore_index):
            raise ArgumentError(
                f"ignore_index={ignore_index}, but task={task.name} has {task.ignore_index}. Give it to the task "
                f"alone, as {type(task).__name__}(ignore_index={ignore_index})."
                if task.ignore_index is not None
                else _no_ignore_index(task.name, ignore_index)
            )
        return task
    if task == AUTO:
        return None
    if task not in TASKS:
        raise ArgumentError(f"task={task!r} is unknown. Near names: {near_names(task, (AUTO, *TASKS))}.")
    return _make(task, ignore_index)


def infer_task(
    output: Shaped[Tensor, "N ..."],
    targets: Shaped[Tensor, "N ..."],
    ignore_index: int = _DEFAULT_IGNORE,
    inputs: Any = None,
    model: str = "the network",
) -> Task:
    """The task that an output (N, ...) and its targets (N, ...) are of; on a GPU this waits for it.

    Where two fit, the usual one is taken, and one log line says which and how to change it.

    Args:
        output: Of the whole batch.
        targets: Likewise.
        ignore_index: Of the task.
        inputs: What the network was called with; only for language models, whose targets are the ids among them.
        model: Whose output it is, for messages.

    Raises:
        ArgumentError: If none fits; says what was seen and what works without a task.
    """
    found = _readings(output, targets, ignore_index, inputs)
    if not found:
        if not targets.is_floating_point() and targets.dim() and targets.shape in ((len(targets),), (len(targets), 1)):
            Multiclass(ignore_index=ignore_index).check(output, targets, model)  # what class indices go with
        raise ArgumentError(
            f"No task fits an output of {model}, of shape {tuple(output.shape)}, and {targets.dtype} targets of shape "
            f"{tuple(targets.shape)}. Say with logits_key and target_key where both are, or with task= what they are: "
            f"{', '.join(TASKS)}, or a Task of your own. {STILL_WORKS}"
        )
    name, *others = found
    if others:
        rank_zero_info(
            f"Outputs of shape {tuple(output.shape)} and {targets.dtype} targets of shape {tuple(targets.shape)} are "
            f"read as task='{name}'; if they are {' or '.join(others)}, give task='{others[0]}'."
        )
    return _make(name, ignore_index)


def _readings(output: Tensor, targets: Tensor, ignore_index: int, inputs: Any) -> list[str]:
    """Names of the tasks that fit, the usual one first."""
    count = len(output) if output.dim() else 0
    if not output.is_floating_point() or not targets.dim() or len(targets) != count:
        return []
    numbers = targets.is_floating_point()
    same = without_ones(output) == without_ones(targets)
    yes_or_no = _is_yes_or_no(targets, ignore_index)
    regression = [Regression.name] if same and numbers else []
    if output.dim() == 1 or output.shape == (count, 1):
        if not same:
            return []
        if yes_or_no:
            return [Binary.name, *regression]
        return regression  # integers may as well be the labels of a network that lost its classes
    if output.dim() == 2:
        if targets.shape == output.shape:
            soft = [SoftMulticlass.name] if bool(are_shares(targets).all()) else []
            labels = [Multilabel.name] if yes_or_no else []
            return [*soft, *labels, *regression]
        return [Multiclass.name] if targets.shape in ((count,), (count, 1)) and not numbers else []
    if numbers:
        return regression
    tokens = output.dim() == 3 and targets.shape == output.shape[:2]
    places = (count, *output.shape[2:])
    dense = targets.shape in (places, (count, 1, *places[1:])) and output.shape[1] > 1
    if tokens and output.shape[2] > 1:
        named = [CausalLM.name] if _are_inputs(targets, ignore_index, inputs) else [Tokens.name]
        return [*named, *([Dense.name] if dense else [])]
    return [Dense.name] if dense else []


def _is_yes_or_no(targets: Tensor, ignore_index: int) -> bool:
    return bool(((targets == 0) | (targets == 1) | (targets == ignore_index)).all())


def _are_inputs(targets: Tensor, ignore_index: int, inputs: Any) -> bool:
    """Whether the targets are token ids that the network was given."""
    valid = targets != ignore_index
    same = [
        part
        for part in tensors_in(inputs)
        if part.shape == targets.shape and not part.is_floating_point() and bool(((part == targets) | ~valid).all())
    ]
    return bool(same) and bool(valid.any()) and targets.shape[1] > 1


def _make(name: str, ignore_index: int) -> Task:
    kind = TASKS[name]
    if "ignore_index" in inspect.signature(kind).parameters:
        return kind(ignore_index=ignore_index)
    if ignore_index != _DEFAULT_IGNORE:
        raise ArgumentError(_no_ignore_index(name, ignore_index))
    return kind()


def _no_ignore_index(name: str, ignore_index: int) -> str:
    return (
        f"ignore_index={ignore_index} is not defined for task={name}, whose targets are no class indices. Leave it "
        "out, and samples without a target out of the data."
    )
