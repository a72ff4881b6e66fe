"""MI on a part of the probe samples: what the score on all of them may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from lightning_ckptkd.information.racing import View, surely_below
from lightning_ckptkd.selecting.features import Features
from lightning_ckptkd.selecting.rules.base import Ranked
from lightning_ckptkd.selecting.rules.mi_scorer import LABEL, MIScorer
from lightning_ckptkd.selecting.score import Score, Term, replicates_of, values_of
from lightning_ckptkd.snapshots import Candidate


class MIRacer:
    """Scores by both terms where two things are not known yet.

    Whether I(X;F) of a snapshot counts (``label_floor``): it does for one that may be above the floor and is held
    against others, and does not for one that may be below it where others are held against it.

    How much a difference in I(X;F) is worth. A part of the samples has fewer principal components of X, for which
    the decoder has fewer samples, so that shares of the entropy are larger and farther apart than on all. They are
    taken as they are in one view, and left out in the other: what is true on all samples is between.

    Args:
        scorer: Of the part.
    """

    def __init__(self, scorer: MIScorer) -> None:
        self._scorer = scorer
        scorer.tell_nothing()  # of a part: the same is told of all samples

    def score(self, features: Features) -> Mapping[str, Term]:
        """Both terms on the part."""
        return self._scorer.score(features)

    def rank(self, scores: Sequence[Score]) -> Ranked:
        """As on all samples."""
        return self._scorer.rank(scores)

    def views(self, scores: Sequence[Score], sure: float) -> list[View]:
        """With I(X;F) as it is on the part, and without."""
        inputs, labels, weighting = self._scorer.both_terms(scores)
        x, y = values_of(inputs), values_of(labels)
        x_replicates, y_replicates = replicates_of(inputs), replicates_of(labels)
        below, above = surely_below(y, y_replicates, weighting.label_floor, sure)
        if weighting.label_floor == 0:
            below, above = torch.zeros_like(below), torch.ones_like(above)
        views = []
        for weighed in (weighting, replace(weighting, input_weight=0.0)):
            low, high = above, ~below
            views.append(
                View(
                    weighed.scores(x, y, low),
                    weighed.scores(x_replicates, y_replicates, low),
                    weighed.scores(x, y, high),
                    weighed.scores(x_replicates, y_replicates, high),
                )
            )
        return views

    def known(self, score: Score) -> Candidate:
        """I(Y;F) on the part; I(X;F) on it is on another scale."""
        term = score.terms[LABEL]
        label_term = self._scorer.rank([score]).candidates[0].label_term
        return replace(score.candidate, label_information=term.value, label_error=term.error, label_term=label_term)
