"""Both information terms of each snapshot, by the estimators that were chosen, and what their sum makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lightning_ckptkd.information.contrastive import contrastive_ceiling, contrastive_gains
from lightning_ckptkd.information.convolutional import (
    convolutional_input_gains,
    convolutional_label_gains,
    unit_range,
)
from lightning_ckptkd.information.gaussian import gaussian_ceiling, gaussian_gains
from lightning_ckptkd.information.inputs import principal_components, within_classes
from lightning_ckptkd.information.joint import JointInformation, count_best, grow_set, reduce_features
from lightning_ckptkd.information.likelihoods import image_costs, output_of_mean
from lightning_ckptkd.information.logistic import logistic_gains
from lightning_ckptkd.information.ranking import ScoreRule
from lightning_ckptkd.information.robust import deciding_units, outlying_samples, pull_in, winsorise, within_fence
from lightning_ckptkd.information.uncertainty import jackknife_error
from lightning_ckptkd.rank_zero import rank_zero_info
from lightning_ckptkd.selecting.features import Features
from lightning_ckptkd.selecting.rows import ProbeRows
from lightning_ckptkd.selecting.rules.base import Ranked
from lightning_ckptkd.selecting.rules.input_vectors import InputView, input_vectors
from lightning_ckptkd.selecting.score import Score, Term, replicates_of, values_of
from lightning_ckptkd.snapshots import Candidate, JointChoice

_MAX_COMPONENTS = 64
_SAMPLES_PER_COMPONENT = 20
_NAMED = 10  # units or samples in a message
_MOST_IN_POOL = 40  # snapshots that a joint choice is made among
INPUT, LABEL = "input_information", "label_information"
_FEW_UNITS = 0.02  # of F, of which a line in the log tells; of more a warning


@dataclass(frozen=True)
class Estimators:
    """How both terms are estimated, and of what; :class:`.mi.MI` explains each."""

    feature: str
    temperature: float
    input_estimator: str
    label_estimator: str
    given_label: bool
    likelihood: str
    decoder_steps: int
    input_view: InputView | None = None


class MIScorer:
    """Estimators with everything that is the same for each snapshot prepared once.

    Args:
        rows: The probe set.
        estimators: How to estimate.
        weighting: How the terms are weighed; what they could be at most comes from the probe set.
        device: Where networks are trained.

    Attributes:
        x: The inputs that the linear-Gaussian decoder decodes, shape (N, Dx), float64; None where X is no such vectors,
            so that I(X;F) is left out.
        input_entropy: The most that I(X;F) could be by this estimator, in nats; NaN where it has no bound.
    """

    def __init__(
        self, rows: ProbeRows, estimators: Estimators, weighting: ScoreRule, device: torch.device | str = "cpu"
    ) -> None:
        self._rows, self._estimators, self._device = rows, estimators, device
        self.x: Tensor | None = None
        self.input_entropy = 0.0
        self._images: Tensor | None = None
        self._told: set[str] = set()
        found = input_vectors(rows.probe, estimators.input_view).values
        if found is not None:
            count = min(_MAX_COMPONENTS, max(1, len(rows) // _SAMPLES_PER_COMPONENT))
            self.x = principal_components(pull_in(found), count)
            if estimators.given_label:
                self.x = within_classes(self.x, self._labels)
            contrastive = estimators.input_estimator == "contrastive"
            self.input_entropy = contrastive_ceiling(rows.folds) if contrastive else gaussian_ceiling(self.x)
        inputs = rows.probe.inputs
        if inputs is not None and estimators.input_estimator == "convolutional":
            inputs = inputs.float()
            self._images = unit_range(within_fence(inputs.flatten(1)).view(inputs.shape))
            output, log_variance = output_of_mean(self._images, "bce")
            alone = image_costs(output.expand_as(self._images), self._images, "bce", log_variance)
            self.input_entropy = float(alone.mean()) if estimators.likelihood == "bce" else float("nan")
        weighting = weighting if self.x is not None else replace(weighting, input_weight=0.0)
        self._label_entropy = rows.task.label_entropy(rows.targets, rows.units)
        self._unbound = replace(weighting, input_entropy=self.input_entropy)

    def score(self, features: Features) -> dict[str, Term]:
        """I(X;F), or I(X;F|Y), where X can be decoded; and I(Y;F)."""
        pooled = self._within_fences(self._chosen(features))
        terms = {} if self.x is None else {INPUT: self._rows.sample_term(self._input_gains(features, pooled))}
        return {**terms, LABEL: self._score_label(features, pooled)}

    def held_out(self, features: Features) -> Term:
        """I(Y;F) alone."""
        return self._score_label(features, self._chosen(features))

    def rank(self, scores: Sequence[Score]) -> Ranked:
        """Terms normalised, their weighted sum, and its error."""
        labels, inputs = [score.terms[LABEL] for score in scores], self._input_terms(scores)
        x, y = values_of(inputs), values_of(labels)
        weighting = self._weighting(scores)
        counts = weighting.above_floor(y)
        replicates = weighting.scores(replicates_of(inputs), replicates_of(labels), counts)
        errors = jackknife_error(replicates).tolist()
        terms = [term.tolist() for term in (*weighting.terms(x, y), weighting.scores(x, y))]
        candidates = [
            replace(
                score.candidate,
                **_estimates(score.terms),
                input_term=input_term if INPUT in score.terms else None,
                label_term=label_term,
                score=value,
                score_error=error,
            )
            for score, input_term, label_term, value, error in zip(scores, *terms, errors, strict=True)
        ]
        return Ranked(candidates, replicates)

    def both_terms(self, scores: Sequence[Score]) -> tuple[list[Term], list[Term], ScoreRule]:
        """I(X;F) and I(Y;F) of each, and how they are weighed."""
        return self._input_terms(scores), [score.terms[LABEL] for score in scores], self._weighting(scores)

    def tell_nothing(self) -> None:
        """Leave out what is told of single units and samples."""
        self._told |= {"units", "samples"}

    def pool(self, best: Sequence[Candidate], least: int) -> Sequence[Candidate]:
        """Those whose I(X;F) counts, if they are enough."""
        floor = self._unbound.label_floor * max(candidate.label_information or 0.0 for candidate in best)
        above = [candidate for candidate in best if (candidate.label_information or 0.0) >= floor][:_MOST_IN_POOL]
        return above if len(above) >= least else best[:_MOST_IN_POOL]

    def member(self, features: Features) -> tuple[Tensor, Tensor | None]:
        """Reduced features (N, D) and logits (N, K) of one snapshot."""
        return reduce_features(self._decoded(winsorise(self._chosen(features)))), features.logits

    def grow(
        self,
        scores: Sequence[Score],
        files: Sequence[str],
        members: Sequence[tuple[Tensor, Tensor | None]],
        count: int | str | None,
    ) -> list[JointChoice]:
        """A set by I(X; F1..Fk) and I(Y;F) of the mean logits."""
        assert self.x is not None
        logits = [logits for _, logits in members if logits is not None]
        joint = JointInformation(
            self.x,
            [feature for feature, _ in members],
            logits if len(logits) == len(members) else None,
            self._labels,
            self._rows.folds,
        )
        x, y = values_of(self._input_terms(scores)), values_of([score.terms[LABEL] for score in scores])
        weights = self._weighting(scores).weights_of_nats(x, y)
        if isinstance(count, str):
            steps = count_best(joint, weights, self._rows.seed)
        else:
            steps = grow_set(joint, 0, count, weights, self._rows.seed)
        return [
            JointChoice(files[step.member], step.input_information, step.label_information, step.gain, step.gain_error)
            for step in steps
        ]

    def _weighting(self, scores: Sequence[Score]) -> ScoreRule:
        """How terms are weighed; where I(Y;F) has no bound, the most that a snapshot has of it stands in for that."""
        bound = self._label_entropy
        if bound is None:
            bound = max(score.terms[LABEL].value for score in scores)
        return replace(self._unbound, label_entropy=bound)

    @cached_property
    def _labels(self) -> Tensor:
        """The class of each sample."""
        return self._rows.labels("rule='mi'")

    def _chosen(self, features: Features) -> Tensor:
        """F, shape (N, D)."""
        estimators = self._estimators
        if estimators.feature == "layer":
            assert features.pooled is not None
            return features.pooled
        assert features.logits is not None
        logits = features.logits
        return logits if estimators.feature == "logits" else (logits.double() / estimators.temperature).softmax(1)

    def _within_fences(self, pooled: Tensor) -> Tensor:
        """F without what is far outside of all others; the first snapshot with such units or samples is told."""
        units, samples = deciding_units(pooled, self._rows.folds), outlying_samples(pooled)
        if bool(units.any()) and "units" not in self._told:
            self._told.add("units")
            words = (
                f"Units {_listed(units)} (from 0) of the {len(units)} of F are almost always the same in a snapshot, "
                "and so far from that for single probe samples that these would decide I(X;F): what they do there was "
                "cut off. A larger probe_size shows more of it, MI(layer=...) takes another layer."
            )
            if float(units.double().mean()) > _FEW_UNITS:
                warnings.warn(words, stacklevel=2)
            else:
                rank_zero_info(words)
        if bool(samples.any()) and "samples" not in self._told:
            self._told.add("samples")
            rank_zero_info(
                f"Samples {_listed(samples)} (from 0) of the probe set as drawn have features far outside of all "
                "others' in a snapshot; they were pulled in, so that they do not decide."
            )
        return winsorise(pooled)

    def _decoded(self, pooled: Tensor) -> Tensor:
        """What X is decoded from."""
        return within_classes(pooled, self._labels) if self._estimators.given_label else pooled

    def _input_gains(self, features: Features, pooled: Tensor) -> Tensor:
        estimators, folds = self._estimators, self._rows.folds
        if self._images is None:
            assert self.x is not None
            gains = contrastive_gains if estimators.input_estimator == "contrastive" else gaussian_gains
            return gains(self.x, self._decoded(pooled), folds)
        assert features.spatial is not None
        return convolutional_input_gains(
            self._images,
            features.spatial,
            folds,
            likelihood=estimators.likelihood,
            steps=estimators.decoder_steps,
            seed=self._rows.seed,
            device=self._device,
        )

    def _score_label(self, features: Features, pooled: Tensor) -> Term:
        estimators, rows = self._estimators, self._rows
        if estimators.label_estimator == "logistic":
            return rows.sample_term(logistic_gains(pooled, self._labels, rows.folds))
        if estimators.label_estimator == "convolutional":
            assert features.spatial is not None
            steps, seed = estimators.decoder_steps, rows.seed
            return rows.sample_term(
                convolutional_label_gains(
                    self._labels, features.spatial, rows.folds, steps=steps, seed=seed, device=self._device
                )
            )
        assert features.logits is not None
        return rows.term(rows.task.label_gains(features.logits, rows.targets, rows.row_folds, rows.units))

    def _input_terms(self, scores: Sequence[Score]) -> list[Term]:
        """I(X;F) of each; nothing where it was left out."""
        groups = len(scores[0].terms[LABEL].replicates)
        return [score.terms.get(INPUT, Term(0.0, (0.0,) * groups)) for score in scores]


def _listed(which: Tensor) -> str:
    places = which.nonzero().squeeze(1).tolist()
    return ", ".join(map(str, places[:_NAMED])) + ("…" if len(places) > _NAMED else "")


def _estimates(terms: Mapping[str, Term]) -> dict[str, float]:
    """What the record says of both terms."""
    found = {name: term.value for name, term in terms.items()}
    errors = {name.replace("information", "error"): term.error for name, term in terms.items()}
    return {**found, **errors}
