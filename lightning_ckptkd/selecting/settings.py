"""What decides a choice besides the snapshots and the probe set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError, near_names
from lightning_ckptkd.information.ranking import ENSEMBLES
from lightning_ckptkd.selecting.rules import AUTO as BY_DATA
from lightning_ckptkd.selecting.rules import MI, PositionRule, Rule, ScoringRule
from lightning_ckptkd.selecting.rules.base import check_ties
from lightning_ckptkd.selecting.soup import NAME as SOUP
from lightning_ckptkd.selecting.soup import Soup
from lightning_ckptkd.tasks.base import Task
from lightning_ckptkd.tasks.infer import AUTO, make_task


@dataclass(frozen=True)
class SelectionSettings:
    """Everything that decides a choice besides the snapshots and the probe set; :class:`MISelector` explains each."""

    rule: Rule = field(default_factory=MI)
    num_teachers: int | str | None = None
    ensemble: str | Soup | None = None
    logits_key: str | int | None = None
    task: Task | str = AUTO
    ignore_index: int = -100
    batch_size: int = 256
    seed: int = 0
    race: bool | None = False

    def __post_init__(self) -> None:
        check_types(SelectionSettings, vars(self))
        if not isinstance(self.rule, (PositionRule, ScoringRule)):
            raise ArgumentError(f"rule={self.rule.name!r} should be a ScoringRule or a PositionRule.")
        if self.soup is None and self.ensemble not in (None, *ENSEMBLES):
            near = near_names(str(self.ensemble), (*ENSEMBLES, SOUP))
            raise ArgumentError(f"ensemble={self.ensemble!r} is unknown. Near names: {near}.")
        if self.soup is not None and (self.scoring is None or self.scoring.soup_term is None):
            raise ArgumentError(
                f"ensemble='soup' needs a rule that measures what a network tells of held-out labels, and "
                f"rule={self.rule.name!r} does not. Use rule='mi', 'loss' or 'accuracy', or ensemble='top'."
            )
        if self.batch_size < 1:
            raise ArgumentError(f"batch_size should be 1 or more, got {self.batch_size}.")
        if isinstance(self.num_teachers, str) and self.num_teachers != BY_DATA:
            raise ArgumentError(f"num_teachers should be a number, {BY_DATA!r} or None, got {self.num_teachers!r}.")
        if isinstance(self.num_teachers, int) and self.num_teachers < 1:
            raise ArgumentError(f"num_teachers should be 1 or more, got {self.num_teachers}.")
        if self.joint and (self.scoring is None or not self.scoring.joint):
            asks, instead = ("ensemble='greedy'", "ensemble='top' or 'spaced'")
            if self.ensemble != "greedy":
                asks, instead = (f"num_teachers={BY_DATA!r}", "a number, or leave num_teachers out,")
            raise ArgumentError(
                f"{asks} needs rule='mi' with input_estimator='gaussian', or another rule that can tell "
                f"what a set tells jointly, got {self.rule.name!r}. Use {instead} for it."
            )
        if self.num_teachers == BY_DATA and self.ensemble == "spaced":
            raise ArgumentError(
                f"num_teachers={BY_DATA!r} takes as many of the best as tell something, and ensemble='spaced' keeps a "
                "distance that depends on their number. Use ensemble='top', or give a number."
            )
        if self.scoring is not None:
            check_ties(self.scoring.ties)
        self.rule.options()  # a rule of the user's own may not say them
        make_task(self.task, self.ignore_index)

    @property
    def scoring(self) -> ScoringRule | None:
        """The rule, where it runs the snapshots; None where it goes by position."""
        return self.rule if isinstance(self.rule, ScoringRule) else None

    @property
    def soup(self) -> Soup | None:
        """How a soup is made, where one is asked for or is the default."""
        if self.ensemble is not None:
            return Soup.of(self.ensemble)
        measures = self.scoring is not None and self.scoring.soup_term is not None
        return Soup() if measures and self.num_teachers is None and not self.race else None

    @property
    def ensemble_or_default(self) -> str | Soup:
        """How a set is chosen: without ``ensemble`` by a soup, or ``top`` where a set or a race is asked for."""
        return self.ensemble or self.soup or "top"

    @property
    def joint(self) -> bool:
        """Whether what several snapshots tell together decides which are chosen, or how many."""
        return self.ensemble == "greedy" or self.num_teachers == BY_DATA

    @property
    def least(self) -> int:
        """How many snapshots there must be."""
        return self.num_teachers if isinstance(self.num_teachers, int) else 1

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
        ensemble = self.ensemble_or_default
        return {
            "rule": self.rule.describe(),
            "num_teachers": self.num_teachers,
            "ensemble": ensemble.describe() if isinstance(ensemble, Soup) else ensemble,
            "logits_key": self.logits_key,
            "task": None if task is None else task.describe(),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "race": self.race,
        }
