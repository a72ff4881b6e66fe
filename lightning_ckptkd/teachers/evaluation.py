"""What is logged of a student, and of its teachers, on validation and test data."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_ckptkd.tasks.base import Task
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.rows import Rows
from lightning_ckptkd.teachers.objective import Objective
from lightning_ckptkd.teachers.panel import TeacherPanel


class Evaluation:
    """Logs ``{stage}_loss``, the task's metrics and ``{stage}_agreement``; the teachers' own metric once a run.

    Args:
        panel: The teachers; without them only the student's metrics are logged.
        objective: Says the task and the loss.
    """

    def __init__(self, panel: TeacherPanel, objective: Objective) -> None:
        self._panel, self._objective = panel, objective
        self._metrics: list[str] = []  # names of the task's, once it is known
        self._measured: set[str] = set()  # stages in which the teachers' metric is known

    def start(self) -> None:
        """A run starts: what the teachers reach is told again."""
        self._measured.clear()

    def end(self, stage: str) -> None:
        """A stage's data have been seen to their end: what the teachers reach on them is told."""
        self._measured.add(stage)

    def log(self, module: LightningModule, batch: Batch, stage: str, number: int) -> None:
        """Log a batch.

        Args:
            module: Gives the student's output, logs, and owns the metrics.
            batch: N samples.
            stage: ``val`` or ``test``.
            number: Of the dataloader.

        Raises:
            ArgumentError: As for any batch.
            TeacherError: Likewise.
        """
        student: Tensor = module(batch)
        places = list(range(len(self._panel)))
        teachers = self._panel.logits(batch, places) if places else None
        rows = self._objective.rows(student, teachers, batch, type(module.student).__name__)
        self._objective.check_values(rows)
        if not len(rows.targets):
            return
        if rows.teachers is not None:
            loss = self._objective.loss(rows, places)
            module.log(f"{stage}_loss", loss, prog_bar=True, batch_size=len(rows.targets), sync_dist=True)
        task = self._objective.task
        assert task is not None, "rows() has found it"
        units = task.num_units(student)
        self._metrics = self._metrics or list(task.metrics(rows.student.shape[-1], units))
        for name, kind, logits, targets in self._pairs(rows, task, stage):
            key = f"{stage}_{name}_{number}"
            if key not in module._modules:
                module.add_module(key, task.metrics(logits.shape[-1], units)[kind].to(module.device))
            metric: Any = module.get_submodule(key)
            metric(logits, targets)
            shown = name == self._metrics[0]
            module.log(f"{stage}_{name}", metric, prog_bar=shown, on_step=False, on_epoch=True, metric_attribute=key)

    def _pairs(self, rows: Rows, task: Task, stage: str) -> list[tuple[str, str, Tensor, Tensor]]:
        """Name, kind of metric, and what it compares."""
        first = self._metrics[0]
        pairs = [(name, name, rows.student, rows.targets) for name in self._metrics]
        if rows.teachers is not None:
            consensus = rows.teachers.mean(0)
            agreement = task.agreement(consensus)
            if agreement is not None:
                pairs.append(("agreement", first, rows.student, agreement))
            if stage not in self._measured:
                pairs.append((f"teacher_{first}", first, consensus, rows.targets))
        return pairs
