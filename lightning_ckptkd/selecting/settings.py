"""What decides a choice besides the snapshots and the probe set."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_ckptkd.errors import ArgumentError, near_names
from lightning_ckptkd.information.likelihoods import LIKELIHOODS
from lightning_ckptkd.information.ranking import ENSEMBLES, NORMALISATIONS, POSITION_RULES
from lightning_ckptkd.losses.arguments import check_temperature
from lightning_ckptkd.selecting.scoring import INPUT_ESTIMATORS, LABEL_ESTIMATORS, Estimators

RULES = ("mi", "mcmi", "accuracy", *POSITION_RULES)
FEATURES = ("layer", "logits", "probabilities")
_BOUNDED = {("gaussian", likelihood) for likelihood in LIKELIHOODS} | {("convolutional", "bce")}


@dataclass(frozen=True)
class SelectionSettings:
    """Everything that decides a choice besides the snapshots and the probe set; :class:`MISelector` explains each."""

    rule: str = "mi"
    num_teachers: int | None = None
    ensemble: str = "top"
    feature: str = "layer"
    layer: str | None = None
    temperature: float = 5.0
    input_estimator: str = "gaussian"
    label_estimator: str = "head"
    given_label: bool = False
    input_weight: float = 1.0
    label_weight: float = 1.0
    normalisation: str = "entropy"
    label_floor: float = 0.95
    likelihood: str = "bce"
    decoder_steps: int = 300
    logits_key: str | int | None = None
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("rule", RULES),
            ("ensemble", ENSEMBLES),
            ("feature", FEATURES),
            ("input_estimator", INPUT_ESTIMATORS),
            ("label_estimator", LABEL_ESTIMATORS),
            ("normalisation", NORMALISATIONS),
            ("likelihood", LIKELIHOODS),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ArgumentError(f"{name}={value!r} is unknown. Near names: {near_names(str(value), known)}.")
        for name in ("decoder_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} should be 1 or more, got {getattr(self, name)}.")
        if self.num_teachers is not None and self.num_teachers < 1:
            raise ArgumentError(f"num_teachers should be 1 or more, got {self.num_teachers}.")
        check_temperature(self.temperature)
        if not 0 <= self.label_floor <= 1:
            raise ArgumentError(f"label_floor should be in [0, 1], got {self.label_floor}.")
        if self.normalisation == "entropy" and (self.input_estimator, self.likelihood) not in _BOUNDED:
            raise ArgumentError(
                f"normalisation='entropy' needs an entropy of the input, which likelihood={self.likelihood!r} does not "
                "give. Use likelihood='bce' or input_estimator='gaussian', or another normalisation."
            )
        if self.ensemble == "greedy" and (self.rule != "mi" or self.input_estimator != "gaussian"):
            raise ArgumentError(
                f"ensemble='greedy' needs rule='mi' with input_estimator='gaussian', got {self.rule!r} with "
                f"{self.input_estimator!r}. Use ensemble='top' or 'spaced' for these."
            )
        if self.given_label and self.input_estimator != "gaussian":
            raise ArgumentError(
                f"given_label=True is for input_estimator='gaussian', got {self.input_estimator!r}. Leave one out."
            )
        weights = self.input_weight, self.label_weight
        if min(weights) < 0 or max(weights) == 0:
            raise ArgumentError(
                f"input_weight and label_weight should be 0 or more and not both 0, got {weights[0]} and {weights[1]}."
            )

    @property
    def estimators(self) -> Estimators:
        """How both terms are estimated."""
        return Estimators(
            self.input_estimator,
            self.label_estimator,
            self.given_label,
            self.likelihood,
            self.decoder_steps,
            self.seed,
        )

    @property
    def needs_logits(self) -> bool:
        """Whether the snapshots must give logits, rather than features alone."""
        if self.rule == "mi":
            return self.label_estimator == "head" or self.feature != "layer" or self.ensemble == "greedy"
        return self.rule in ("accuracy", "mcmi")

    @property
    def needs_layer(self) -> bool:
        """Whether the output of a layer is needed, rather than the logits alone."""
        return self.rule == "mi" and self.feature == "layer"

    @property
    def needs_spatial(self) -> bool:
        """Whether a feature map is needed, rather than vectors alone."""
        return self.rule == "mi" and "convolutional" in (self.input_estimator, self.label_estimator)

    @property
    def needs_probe(self) -> bool:
        """Whether the rule looks at what the snapshots do rather than at their place in training."""
        return self.rule not in POSITION_RULES
