"""Rules with one number, a mean over the probe set: the way that a rule of your own goes in ten lines."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_ckptkd.information.racing import View
from lightning_ckptkd.information.ranking import DEFAULT_TIES
from lightning_ckptkd.selecting.features import Features
from lightning_ckptkd.selecting.rows import ProbeRows
from lightning_ckptkd.selecting.rules.base import Racer, Ranked, Scorer, ScoringRule, check_ties
from lightning_ckptkd.selecting.score import Score, Term, replicates_of, values_of
from lightning_ckptkd.snapshots import Candidate

SCORE = "score"  # the name of the only term


class MeanRule(ScoringRule):
    """A rule with one number, larger is better, that is a mean over the probe set.

    A soup is judged by it too, unless ``soup_term = None`` says that it does not tell of labels.
    ``by_sample = True`` says that what a sample adds does not depend on which others there are: snapshots can leave a
    race then, after a part of the samples.

    Args:
        ties: Which of snapshots with scores within one standard error of their difference comes first: the ``later``,
            the ``earlier``, or that with the higher ``score``.
    """

    soup_term: ClassVar[str | None] = SCORE
    by_sample: ClassVar[bool] = False

    def __init__(self, ties: str = DEFAULT_TIES) -> None:
        check_ties(ties)
        self.ties = ties

    @abstractmethod
    def measure(self, features: Features, rows: ProbeRows) -> Term:
        """The score of one snapshot; ``rows.term`` gives a mean over rows its error over samples."""

    @override
    def prepare(self, rows: ProbeRows, device: torch.device | str) -> Scorer:
        return MeanScorer(self, rows)

    @override
    def race(self, rows: ProbeRows, device: torch.device | str) -> Racer | None:
        return MeanScorer(self, rows) if self.by_sample else None


class RowRule(MeanRule):
    """A rule whose score is the mean of a number for each row of logits: larger is better.

    Its standard error over probe samples comes by itself.
    """

    @abstractmethod
    def values(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What each row adds.

        Args:
            logits: Shape (R, K), float32. A row is a sample or, where a sample has several targets, one of these.
            targets: Class indices, shape (R,); for some tasks shape (R, K).

        Returns:
            Shape (R,).
        """

    @override
    def measure(self, features: Features, rows: ProbeRows) -> Term:
        assert features.logits is not None
        return rows.term(self.values(features.logits, rows.targets))


class MeanScorer:
    """The scorer of a rule with one number."""

    def __init__(self, rule: MeanRule, rows: ProbeRows) -> None:
        self._rule, self._rows = rule, rows

    def score(self, features: Features) -> dict[str, Term]:
        """The mean."""
        return {SCORE: self._rule.measure(features, self._rows)}

    def rank(self, scores: Sequence[Score]) -> Ranked:
        """The means are the scores."""
        terms = [score.terms[SCORE] for score in scores]
        candidates = [
            replace(score.candidate, score=term.value, score_error=term.error)
            for score, term in zip(scores, terms, strict=True)
        ]
        return Ranked(candidates, replicates_of(terms))

    def views(self, scores: Sequence[Score], sure: float) -> list[View]:
        """The scores are sure but for the samples."""
        terms = [score.terms[SCORE] for score in scores]
        return [View.of(values_of(terms), replicates_of(terms))]

    def known(self, score: Score) -> Candidate:
        """The mean over the part."""
        term = score.terms[SCORE]
        return replace(score.candidate, score=term.value, score_error=term.error)
