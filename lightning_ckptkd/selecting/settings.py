"""What decides a choice besides the snapshots and the probe set."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.information.ranking import NORMALISATIONS, POSITION_RULES
from lightning_ckptkd.information.scoring import INPUT_ESTIMATORS, LABEL_ESTIMATORS
from lightning_ckptkd.snapshots.weights import near_names

RULES = ("mi", "accuracy", *POSITION_RULES)


@dataclass(frozen=True)
class SelectionSettings:
    """Everything that decides a choice besides the snapshots and the probe set; :class:`MISelector` explains each."""

    rule: str = "mi"
    num_teachers: int | None = None
    layer: str | None = None
    input_estimator: str = "gaussian"
    label_estimator: str = "head"
    input_weight: float = 1.0
    label_weight: float = 1.0
    normalisation: str = "max"
    decoder_steps: int = 300
    logits_key: str | int | None = None
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("rule", RULES),
            ("input_estimator", INPUT_ESTIMATORS),
            ("label_estimator", LABEL_ESTIMATORS),
            ("normalisation", NORMALISATIONS),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ArgumentError(f"{name}={value!r} is unknown. Near names: {near_names(str(value), known)}.")
        for name in ("decoder_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} should be 1 or more, got {getattr(self, name)}.")
        if self.num_teachers is not None and self.num_teachers < 1:
            raise ArgumentError(f"num_teachers should be 1 or more, got {self.num_teachers}.")
        weights = self.input_weight, self.label_weight
        if min(weights) < 0 or max(weights) == 0:
            raise ArgumentError(
                f"input_weight and label_weight should be 0 or more and not both 0, got {weights[0]} and {weights[1]}."
            )

    @property
    def needs_logits(self) -> bool:
        """Whether the snapshots must give logits, rather than features alone."""
        return self.rule == "accuracy" or (self.rule == "mi" and self.label_estimator == "head")

    @property
    def needs_spatial(self) -> bool:
        """Whether a feature map is needed, rather than vectors alone."""
        return self.rule == "mi" and self.input_estimator == "convolutional"

    @property
    def needs_probe(self) -> bool:
        """Whether the rule looks at what the snapshots do rather than at their place in training."""
        return self.rule not in POSITION_RULES
