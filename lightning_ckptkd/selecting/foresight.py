"""What shows when a training starts, and not only at its end: that a selection could not be made then."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.selecting.batch_hooks import HookedBatches
from lightning_ckptkd.selecting.looking import check_model
from lightning_ckptkd.selecting.memory import check_memory
from lightning_ckptkd.selecting.probe import check_length, first_samples, known_length, known_targets
from lightning_ckptkd.selecting.rules import ScoringRule
from lightning_ckptkd.selecting.settings import SelectionSettings
from lightning_ckptkd.selecting.student_proxy import StudentProxy
from lightning_ckptkd.snapshots.cadence import Cadence
from lightning_ckptkd.tasks.reading import BatchReader

_TRIED_SAMPLES = 8  # of each of two batches


def check_probe(
    loader: Iterable[Any],
    size: int,
    settings: SelectionSettings,
    rule: ScoringRule,
    module: nn.Module,
    reader: BatchReader,
    transfer: HookedBatches,
    proxy: StudentProxy | None = None,
    *,
    whole: bool,
) -> None:
    """Try what will be scored on two small batches, and look at all labels where they lie open.

    Args:
        loader: Gives the probe set.
        size: Number of its samples.
        settings: What will be asked of the module.
        rule: Theirs.
        module: What will be harvested; it is handed back as it came.
        reader: Unpacks batches.
        transfer: What is done to them before.
        proxy: A student that will be asked for logits too.
        whole: Whether ``module`` is all that is trained, rather than a part of it.

    Raises:
        ArgumentError: If there are too few samples or more than the memory holds, a batch can't be unpacked, or module,
            outputs or targets are not as the settings need them.
    """
    length = known_length(loader, size)
    if length is not None:
        check_length(length)
    samples = first_samples(loader, size, settings.seed, _TRIED_SAMPLES, reader, transfer)
    if samples is None:
        return
    check_memory(samples, size if length is None else length, rule, at_most=length is None)
    reading = check_model(settings, rule, module, samples, proxy, whole=whole)
    if reading.num_classes is None or transfer.hooks:  # which may change targets
        return
    targets = known_targets(loader, size, settings.seed, reader)
    if targets is not None:
        reading.task.check_targets(reading.task.flatten_targets(targets), reading.num_classes)


def check_number(
    wanted: int, cadence: Cadence, keep_last: int | None, max_epochs: int | None, max_steps: int | None
) -> None:
    """Check that a training gives as many snapshots as are to be chosen, where that can be reckoned.

    Args:
        wanted: How many.
        cadence: When one is taken.
        keep_last: How many are kept; None: all.
        max_epochs: Of the training; None for no limit.
        max_steps: Of the training; None for no limit, or where steps tell nothing.

    Raises:
        ArgumentError: If it gives fewer, however long it goes on.
    """
    numbers = cadence.count(max_epochs, max_steps, wanted), keep_last
    most = min((number for number in numbers if number is not None), default=wanted)
    if most < wanted:
        raise ArgumentError(
            f"num_teachers={wanted}, but this training gives {most} snapshot{'s' * (most != 1)} at most: {cadence}, "
            f"max_epochs={max_epochs}, max_steps={max_steps}, keep_last={keep_last}. Ask for fewer teachers, harvest "
            "more often, or train longer."
        )
