"""Rules by what a snapshot itself makes of held-out samples: the share that it gets right, and its loss."""

from __future__ import annotations

from typing import ClassVar

from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.selecting.features import Features
from lightning_ckptkd.selecting.rows import ProbeRows
from lightning_ckptkd.selecting.rules.mean import SCORE, MeanRule
from lightning_ckptkd.selecting.rules.words import HeldOut, Words
from lightning_ckptkd.selecting.score import Term
from lightning_ckptkd.tasks.base import Task


class Accuracy(MeanRule):
    """The share of the probe set that a snapshot gets right, of all rows that have a target."""

    short_name: ClassVar[str] = "accuracy"
    by_sample: ClassVar[bool] = True

    @property
    @override
    def words(self) -> Words:
        return Words(score="share right")

    @override
    def held_out(self, task: Task) -> HeldOut | None:
        return HeldOut(SCORE, "points of accuracy", 100.0)

    @override
    def measure(self, features: Features, rows: ProbeRows) -> Term:
        if features.hits is None:
            raise ArgumentError(
                f"rule={self.name!r} counts what is right, and predictions of the task {rows.task.name!r} are not "
                "right or wrong. Use rule='loss'."
            )
        return rows.share(features.hits)


class Loss(MeanRule):
    """H(Y) less the held-out cross-entropy of a snapshot as it is, in nats; of regression, less the squared error.

    No temperature is fitted, unlike for :class:`MI`'s label term, so that over-confidence counts: a snapshot that has
    memorised wrong labels is confident where it is wrong. H(Y) is the same for all snapshots, and makes zero what the
    labels' frequencies alone tell.
    """

    short_name: ClassVar[str] = "loss"
    by_sample: ClassVar[bool] = True

    @property
    @override
    def words(self) -> Words:
        return Words(score="H(Y) - CE nats")

    @override
    def held_out(self, task: Task) -> HeldOut | None:
        return HeldOut(SCORE) if task.classes else HeldOut(SCORE, "of squared error")

    @override
    def measure(self, features: Features, rows: ProbeRows) -> Term:
        assert features.logits is not None
        costs = rows.task.costs(features.logits, rows.targets)
        surprises = rows.task.label_surprises(rows.targets, rows.units)
        return rows.term(-costs if surprises is None else surprises - costs)
