"""Rules with one number, a mean over the probe set: the way that a rule of your own goes in ten lines."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_ckptkd.information.ranking import DEFAULT_TIES
from lightning_ckptkd.selecting.features import Features
from lightning_ckptkd.selecting.rows import ProbeRows
from lightning_ckptkd.selecting.rules.base import Ranked, Scorer, ScoringRule, check_ties
from lightning_ckptkd.selecting.score import Score, Term, replicates_of

SCORE = "score"  # the name of the only term


class MeanRule(ScoringRule):
    """A rule with one number, larger is better, that is a mean over the probe set.

    A soup is judged by it too, unless ``soup_term = None`` says that it does not tell of labels.

    Args:
        ties: Which of snapshots with scores within one standard error of their difference comes first: the ``later``,
            the ``earlier``, or that with the higher ``score``.
    """

    soup_term: ClassVar[str | None] = SCORE

    def __init__(self, ties: str = DEFAULT_TIES) -> None:
        check_ties(ties)
        self.ties = ties

    @abstractmethod
    def measure(self, features: Features, rows: ProbeRows) -> Term:
        """The score of one snapshot; ``rows.term`` gives a mean over rows its error over samples."""

    @override
    def prepare(self, rows: ProbeRows, device: torch.device | str) -> Scorer:
        return _MeanScorer(self, rows)


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


class _MeanScorer:
    def __init__(self, rule: MeanRule, rows: ProbeRows) -> None:
        self._rule, self._rows = rule, rows

    def score(self, features: Features) -> dict[str, Term]:
        return {SCORE: self._rule.measure(features, self._rows)}

    def rank(self, scores: Sequence[Score]) -> Ranked:
        terms = [score.terms[SCORE] for score in scores]
        candidates = [
            replace(score.candidate, score=term.value, score_error=term.error)
            for score, term in zip(scores, terms, strict=True)
        ]
        return Ranked(candidates, replicates_of(terms))
