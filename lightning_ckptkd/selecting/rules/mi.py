"""MI: what a snapshot's features tell of the input and of the label (Wang et al., NeurIPS 2022)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from typing_extensions import override

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError, near_names
from lightning_ckptkd.information.inputs import component_bytes
from lightning_ckptkd.information.likelihoods import LIKELIHOODS
from lightning_ckptkd.information.ranking import DEFAULT_TIES, NORMALISATIONS, ScoreRule
from lightning_ckptkd.losses.arguments import check_temperature
from lightning_ckptkd.rank_zero import rank_zero_info, rank_zero_warn
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.rows import ProbeRows
from lightning_ckptkd.selecting.rules.base import (
    DEFAULT_NUMBER,
    JointScorer,
    Needs,
    Racer,
    ScoringRule,
    check_ties,
    code_of,
)
from lightning_ckptkd.selecting.rules.input_vectors import InputView, input_vectors
from lightning_ckptkd.selecting.rules.mi_racer import MIRacer
from lightning_ckptkd.selecting.rules.mi_scorer import LABEL, Estimators, MIScorer
from lightning_ckptkd.selecting.rules.words import Column, HeldOut, Words
from lightning_ckptkd.tasks.base import Task
from lightning_ckptkd.tasks.batch import describe

FEATURES = ("layer", "logits", "probabilities")
INPUT_ESTIMATORS = ("gaussian", "convolutional", "contrastive")
LABEL_ESTIMATORS = ("head", "logistic", "convolutional")
_BOUNDED = {(name, likelihood) for name in ("gaussian", "contrastive") for likelihood in LIKELIHOODS}
_BOUNDED |= {("convolutional", "bce")}
_JOINT = "ensemble='greedy' (or num_teachers='auto')"
_AFTER_SCORING = (
    "input_weight",
    "label_weight",
    "normalisation",
    "label_floor",
)  # no score of a snapshot depends on them
_SHARES = {"max": "share of the largest", "minmax": "share of the range", "entropy": "share of the entropy"}


class MI(ScoringRule):
    """The weighted sum of I(X;F) and I(Y;F), each normalised over the snapshots; F is a feature of the snapshot.

    Both are *decodable* information, in nats: they depend on the estimator, which is the same for each snapshot. I(Y;F)
    is a lower bound. For I(X;F) stands the gain of a decoder over a model of X alone: by the ``gaussian`` and
    ``convolutional`` decoders it may exceed the information where X is not what that model takes it for, by an amount
    that is the same for each snapshot; the ``contrastive`` estimate is a lower bound.

    X is the inputs as numbers: floating-point tensors, pixels, and of token ids how often each is in a sample, masked
    positions left out. Where inputs have no vectors of one length (ragged numbers, graphs), I(X;F) is left out, which
    one line tells.

    Args:
        feature: What F is: the output of a ``layer``, the ``logits``, or the ``probabilities`` at ``temperature``,
            which is what a student sees.
        layer: Name of the module whose output is F, within what was harvested. None is the input of the last
            ``nn.Linear`` that runs (and the last feature map for the convolutional networks).
        temperature: The student's T, for ``feature="probabilities"``.
        input_estimator: For I(X;F): ``gaussian``, a linear-Gaussian decoder in closed form; ``convolutional``, the
            paper's decoder; or ``contrastive``, the Gaussian decoder held against the inputs of other samples
            (InfoNCE), which is a lower bound, of the logarithm of a fifth of the probe's samples at most.
        label_estimator: For I(Y;F): ``head``, the teacher's own last layer with a fitted temperature (what a student
            of its logits sees), ``logistic``, a multinomial logistic probe of the features, or ``convolutional``, the
            paper's small classifier.
        given_label: Whether to take I(X;F|Y), what F tells of X beyond the label, for I(X;F).
        input_weight: Weight of the normalised I(X;F).
        label_weight: Weight of the normalised I(Y;F).
        normalisation: ``entropy`` divides each term by the most that it could be, ``max`` by its largest value,
            ``minmax`` maps it to [0, 1].
        label_floor: Share of the largest I(Y;F), in [0, 1], below which a snapshot's I(X;F) does not count.
        likelihood: Of the convolutional decoder: the paper's ``bce``, ``continuous_bernoulli`` or ``gaussian``.
        decoder_steps: Training steps of a convolutional network, at most.
        input_view: What X is instead, but for the convolutional decoder: a function of a :class:`.Batch` of N samples,
            on the CPU, that gives numbers (N, D); by class path from a config.
        ties: Which of snapshots with scores within one standard error of their difference comes first: the ``later``,
            the ``earlier``, or that with the higher ``score``.

    Raises:
        ArgumentError: If an option can't be used.
    """

    short_name: ClassVar[str] = "mi"
    num_teachers: ClassVar[int | str] = DEFAULT_NUMBER  # or AUTO
    soup_term: ClassVar[str | None] = LABEL

    def __init__(
        self,
        feature: str = "layer",
        layer: str | None = None,
        temperature: float = 5.0,
        input_estimator: str = "gaussian",
        label_estimator: str = "head",
        given_label: bool = False,
        input_weight: float = 1.0,
        label_weight: float = 1.0,
        normalisation: str = "entropy",
        label_floor: float = 0.95,
        likelihood: str = "bce",
        decoder_steps: int = 300,
        input_view: InputView | None = None,
        ties: str = DEFAULT_TIES,
    ) -> None:
        check_types(MI.__init__, locals())
        self.feature, self.layer, self.temperature = feature, layer, temperature
        self.input_estimator, self.label_estimator, self.given_label = input_estimator, label_estimator, given_label
        self.input_weight, self.label_weight = input_weight, label_weight
        self.normalisation, self.label_floor = normalisation, label_floor
        self.likelihood, self.decoder_steps = likelihood, decoder_steps
        self.input_view, self.ties = input_view, ties
        check_ties(ties)
        self._check_options()

    @property
    @override
    def joint(self) -> bool:
        return self.input_estimator == "gaussian"

    @property
    @override
    def words(self) -> Words:
        return Words(
            columns=(
                Column("input_information", "I(X;F) nats", "input_error"),
                Column("label_information", "I(Y;F) nats", "label_error"),
            ),
            lines=(("input_term", "I(X;F), normalised"), ("label_term", "I(Y;F), normalised")),
            axis=_SHARES[self.normalisation],
        )

    @override
    def needs(self, *, joint: bool = False) -> Needs:
        of_head = self.label_estimator == "head"
        return Needs(
            logits=of_head or self.feature != "layer" or joint,
            vectors=self.feature == "layer",
            feature_map="convolutional" in (self.input_estimator, self.label_estimator),
            layer=self.layer,
            what="label_estimator='head'" if of_head else _JOINT if joint else f"feature={self.feature!r}",
            remedy="use rule=MI(label_estimator='logistic') with feature='layer'",
        )

    @override
    def held_out(self, task: Task) -> HeldOut | None:
        return HeldOut(LABEL)

    @override
    def describe(self) -> dict[str, object]:
        described = super().describe()
        return described if self.input_view is None else {**described, "input_view": _name_of(self.input_view)}

    @override
    def key(self) -> dict[str, object]:
        key = {name: value for name, value in super().key().items() if name not in _AFTER_SCORING}
        return key if self.input_view is None else {**key, "view_code": code_of(self.input_view)}

    @override
    def check(self, probe: Probe) -> None:
        inputs = probe.inputs
        if self.input_estimator == "convolutional" and (inputs is None or inputs.dim() != 4):
            form = describe(probe.batches[0].inputs) if inputs is None else f"the shape {tuple(inputs.shape)}"
            raise ArgumentError(
                f"input_estimator='convolutional' needs images (N, C, H, W), but the inputs have {form}. "
                "Use 'gaussian'."
            )
        if self.input_weight > 0 or self.input_view is not None:
            found = input_vectors(probe, self.input_view)
            if found.values is None and self.label_weight == 0:
                raise ArgumentError(f"label_weight=0, and {found.told}")
            if found.values is None:
                rank_zero_warn(found.told)
            elif found.told:
                rank_zero_info(found.told)

    @override
    def memory(self, probe: Probe, num_samples: int) -> tuple[int, str]:
        found = input_vectors(probe, self.input_view).values
        if found is None:
            return 0, ""
        dim = found.shape[1]
        beside = 2 * num_samples * dim * found.element_size() + component_bytes(num_samples, dim)
        return beside, f"I(X;F) of {dim:,} numbers each"

    @override
    def check_rows(self, rows: ProbeRows, *, joint: bool = False) -> None:
        for argument, needs_labels in (
            ("given_label=True", self.given_label),
            (f"label_estimator={self.label_estimator!r}", self.label_estimator != "head"),
            (_JOINT, joint),
        ):
            if needs_labels:
                rows.labels(argument)
        if joint and input_vectors(rows.probe, self.input_view).values is None:
            raise ArgumentError(
                f"{_JOINT} needs I(X;F), and the inputs can't be had as numbers (N, D). Give "
                "rule=MI(input_view=...), a function of a batch that gives them, or leave that option out."
            )
        if self.feature != "layer" and rows.samples is not None:
            raise ArgumentError(
                f"feature={self.feature!r} is for one row of logits a sample, and the task {rows.task.name!r} has "
                "several here, or none for some. Use feature='layer'."
            )

    @override
    def prepare(self, rows: ProbeRows, device: torch.device | str) -> JointScorer:
        estimators = Estimators(
            self.feature,
            self.temperature,
            self.input_estimator,
            self.label_estimator,
            self.given_label,
            self.likelihood,
            self.decoder_steps,
            self.input_view,
        )
        weighting = ScoreRule(self.input_weight, self.label_weight, self.normalisation, self.label_floor)
        return MIScorer(rows, estimators, weighting, device)

    @override
    def race(self, rows: ProbeRows, device: torch.device | str) -> Racer | None:
        plain = self.input_estimator == "gaussian" and self.label_estimator == "head" and not self.given_label
        if not plain or self.normalisation != "entropy" or rows.task.label_entropy(rows.targets, rows.units) is None:
            return None
        scorer = self.prepare(rows, device)
        assert isinstance(scorer, MIScorer)
        return MIRacer(scorer)

    def _check_options(self) -> None:
        for name, known in (
            ("feature", FEATURES),
            ("input_estimator", INPUT_ESTIMATORS),
            ("label_estimator", LABEL_ESTIMATORS),
            ("normalisation", NORMALISATIONS),
            ("likelihood", LIKELIHOODS),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ArgumentError(f"{name}={value!r} is unknown. Near names: {near_names(str(value), known)}.")
        if self.decoder_steps < 1:
            raise ArgumentError(f"decoder_steps should be 1 or more, got {self.decoder_steps}.")
        check_temperature(self.temperature)
        if not 0 <= self.label_floor <= 1:
            raise ArgumentError(f"label_floor should be in [0, 1], got {self.label_floor}.")
        if self.normalisation == "entropy" and (self.input_estimator, self.likelihood) not in _BOUNDED:
            raise ArgumentError(
                f"normalisation='entropy' needs an entropy of the input, which likelihood={self.likelihood!r} does not "
                "give. Use likelihood='bce' or input_estimator='gaussian', or another normalisation."
            )
        if self.given_label and self.input_estimator != "gaussian":
            raise ArgumentError(
                f"given_label=True is for input_estimator='gaussian', got {self.input_estimator!r}. Leave one out."
            )
        weights = self.input_weight, self.label_weight
        if not all(map(math.isfinite, weights)) or min(weights) < 0 or max(weights) == 0:
            raise ArgumentError(
                f"input_weight and label_weight should be 0 or more and not both 0, got {weights[0]} and {weights[1]}."
            )


def _name_of(view: InputView) -> str:
    kind = view if hasattr(view, "__qualname__") else type(view)
    return f"{kind.__module__}.{kind.__qualname__}"
