"""Where a step's time goes: the teachers, and everything else (the student's passes, its update, the loop around)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.distillation.peer_loops import LightningTraining, Stopwatch, Training
from lightning_ckptkd.teachers import TeacherEnsemble


def step_parts(training: Training, device: torch.device) -> dict[str, float]:
    """Seconds of a step and of its teachers, each the mean over one epoch.

    Args:
        training: Its first epoch is behind it. One of Lightning's has a DistillationModule, others name their teachers.
        device: A GPU is waited for before and after the teachers, which makes the step longer.
    """
    watch = Stopwatch(device, each_step=True)
    with _watched_teachers(training, device) as spent:
        training.run_epoch(watch)
    return {"step": sum(watch.steps) / len(watch.steps), "teachers": sum(spent) / len(watch.steps)}


@contextmanager
def _watched_teachers(training: Training, device: torch.device) -> Iterator[list[float]]:
    spent: list[float] = []
    starts: list[float] = []

    def start() -> None:
        starts.append(_now(device))

    def stop() -> None:
        spent.append(_now(device) - starts.pop())

    call = TeacherEnsemble.__call__

    def timed(ensemble: TeacherEnsemble, *args: Any, **kwargs: Any) -> Any:
        start()
        try:
            return call(ensemble, *args, **kwargs)
        finally:
            stop()

    with ExitStack() as stack:
        if isinstance(training, LightningTraining):
            stack.enter_context(patch.object(TeacherEnsemble, "__call__", timed))
        else:
            for teacher in training.teachers:
                stack.callback(teacher.register_forward_pre_hook(lambda *_: start()).remove)
                stack.callback(teacher.register_forward_hook(lambda *_: stop()).remove)
        yield spent


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
