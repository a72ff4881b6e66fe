"""What decides a choice besides the snapshots and the probe set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError, near_names
from lightning_ckptkd.information.ranking import ENSEMBLES
from lightning_ckptkd.selecting.rules import MI, PositionRule, Rule, ScoringRule
from lightning_ckptkd.tasks.base import Task
from lightning_ckptkd.tasks.infer import AUTO, make_task


@dataclass(frozen=True)
class SelectionSettings:
    """Everything that decides a choice besides the snapshots and the probe set; :class:`MISelector` explains each."""

    rule: Rule = field(default_factory=MI)
    num_teachers: int | None = None
    ensemble: str = "top"
    logits_key: str | int | None = None
    task: Task | str = AUTO
    ignore_index: int = -100
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(SelectionSettings, vars(self))
        if not isinstance(self.rule, (PositionRule, ScoringRule)):
            raise ArgumentError(f"rule={self.rule.name!r} should be a ScoringRule or a PositionRule.")
        if self.ensemble not in ENSEMBLES:
            raise ArgumentError(
                f"ensemble={self.ensemble!r} is unknown. Near names: {near_names(str(self.ensemble), ENSEMBLES)}."
            )
        if self.batch_size < 1:
            raise ArgumentError(f"batch_size should be 1 or more, got {self.batch_size}.")
        if self.num_teachers is not None and self.num_teachers < 1:
            raise ArgumentError(f"num_teachers should be 1 or more, got {self.num_teachers}.")
        if self.joint and (self.scoring is None or not self.scoring.joint):
            raise ArgumentError(
                f"ensemble='greedy' needs rule='mi' with input_estimator='gaussian', or another rule that can tell "
                f"what a set tells jointly, got {self.rule.name!r}. Use ensemble='top' or 'spaced' for it."
            )
        self.rule.options()  # a rule of the user's own may not say them
        make_task(self.task, self.ignore_index)

    @property
    def scoring(self) -> ScoringRule | None:
        """The rule, where it runs the snapshots; None where it goes by position."""
        return self.rule if isinstance(self.rule, ScoringRule) else None

    @property
    def joint(self) -> bool:
        """Whether a set is chosen by what its members tell together."""
        return self.ensemble == "greedy"

    def named_task(self) -> Task | None:
        """The task that the user named; None where it is told from the data."""
        return make_task(self.task, self.ignore_index)

    def reading(self) -> list[Any]:
        """How snapshots are run and read, in JSON's types: each score depends on it."""
        task = self.named_task()
        return [
            self.logits_key,
            self.task if task is None else task.describe(),
            self.ignore_index,
            self.batch_size,
            self.seed,
        ]

    def describe(self, task: Task | None) -> dict[str, Any]:
        """For the record, with the task that was taken; None where the snapshots were not run."""
        return {
            "rule": self.rule.describe(),
            "num_teachers": self.num_teachers,
            "ensemble": self.ensemble,
            "logits_key": self.logits_key,
            "task": None if task is None else task.describe(),
            "batch_size": self.batch_size,
            "seed": self.seed,
        }
