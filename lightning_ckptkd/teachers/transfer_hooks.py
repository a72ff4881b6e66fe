"""Which batch hooks run while a student is trained: its own, and a word on those of the teachers that do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_ckptkd.tasks.transfer import overridden_hooks


def lend_hooks(module: Any, student: nn.Module) -> None:
    """Let a module run the batch hooks of its student, those that it does not override itself."""
    own = overridden_hooks(module)
    for hook, owner in overridden_hooks(student).items():
        if hook not in own:
            setattr(module, hook, getattr(owner, hook))


def tell_of_other_hooks(module: Any, datamodule: Any, teachers: Sequence[nn.Module]) -> None:
    """Warn where a teacher was trained with batch hooks that the student's training does not run.

    A hook of the DataModule, or of a subclass of DistillationModule, was written for both and says what they share.

    Args:
        module: Trains the student.
        datamodule: Its data; None where there is no DataModule. Where it has a hook, Lightning runs no module's.
        teachers: The modules that were trained.
    """
    run = overridden_hooks(module, datamodule)
    lent = [hook for hook, owner in run.items() if owner is module and hook in vars(module)]  # the student's
    for teacher in {type(teacher): teacher for teacher in teachers}.values():
        left_out = [
            hook
            for hook, owner in overridden_hooks(teacher).items()
            if hook not in run or (hook in lent and _function(module, hook) is not _function(owner, hook))
        ]
        if left_out:
            rank_zero_warn(
                f"{type(teacher).__name__} changes batches on their way to the device ({', '.join(left_out)}), and the "
                "student's training does not run that, so that the teachers see other inputs than they were trained "
                "on, unless the student's data are made so. Do it in the hooks of the DataModule or of a subclass "
                "of DistillationModule, which teachers and student share."
            )


def _function(owner: Any, hook: str) -> Any:
    method = getattr(owner, hook)
    return getattr(method, "__func__", method)
