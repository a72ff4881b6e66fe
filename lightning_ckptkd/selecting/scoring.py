"""Both information terms of one snapshot, by the estimators that the user chose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.information.convolutional import (
    convolutional_input_gains,
    convolutional_label_gains,
    unit_range,
)
from lightning_ckptkd.information.folds import NUM_FOLDS, assign_folds
from lightning_ckptkd.information.gaussian import gaussian_ceiling, gaussian_gains
from lightning_ckptkd.information.inputs import pool_inputs, principal_components, within_classes
from lightning_ckptkd.information.label import head_gains, label_entropy
from lightning_ckptkd.information.likelihoods import image_costs, output_of_mean
from lightning_ckptkd.information.logistic import logistic_gains
from lightning_ckptkd.information.uncertainty import NUM_GROUPS, jackknife_error, leave_one_out
from lightning_ckptkd.selecting.features import Features
from lightning_ckptkd.selecting.probe import Probe

INPUT_ESTIMATORS = ("gaussian", "convolutional")
LABEL_ESTIMATORS = ("head", "logistic", "convolutional")
_MAX_COMPONENTS = 64
_SAMPLES_PER_COMPONENT = 20


@dataclass(frozen=True)
class Estimators:
    """How both terms are estimated; :class:`MISelector` explains each."""

    input_estimator: str = "gaussian"
    label_estimator: str = "head"
    given_label: bool = False
    likelihood: str = "bce"
    decoder_steps: int = 300
    seed: int = 0


@dataclass(frozen=True)
class Term:
    """An estimate with what its standard error takes.

    Attributes:
        nats: The estimate.
        replicates: The estimate without each group of probe samples in turn; nats.
    """

    nats: float
    replicates: tuple[float, ...]

    @classmethod
    def of(cls, gains: Tensor, seed: int, num_groups: int) -> Term:
        """The mean of what each sample adds, shape (N,)."""
        return cls(float(gains.mean()), tuple(leave_one_out(gains, seed, num_groups).tolist()))

    @property
    def error(self) -> float:
        """Standard error over probe samples in nats."""
        return float(jackknife_error(torch.tensor(self.replicates, dtype=torch.float64)))


class Scorer:
    """Estimators with everything that is the same for each snapshot prepared once.

    Args:
        probe: The probe samples.
        estimators: How to estimate.
        device: Where networks are trained.

    Attributes:
        x: The inputs that the linear-Gaussian decoder decodes, shape (N, Dx), float64.
        folds: Fold of each sample, shape (N,).
        input_entropy: The most that I(X;F) could be by this estimator, in nats; NaN where it has no bound.

    Raises:
        ArgumentError: If a convolutional network is asked for and X is no batch of images.
    """

    def __init__(self, probe: Probe, estimators: Estimators, device: torch.device | str = "cpu") -> None:
        self._labels = probe.labels
        self._estimators = estimators
        self._device = device
        self.folds = assign_folds(len(probe), NUM_FOLDS, estimators.seed)
        self._num_groups = num_groups(len(probe))
        count = min(_MAX_COMPONENTS, max(1, len(probe) // _SAMPLES_PER_COMPONENT))
        self.x = principal_components(pool_inputs(probe.inputs), count)
        if estimators.given_label:
            self.x = within_classes(self.x, self._labels)
        self.input_entropy = gaussian_ceiling(self.x)
        self._images: Tensor | None = None
        if estimators.input_estimator == "convolutional":
            if probe.inputs.dim() != 4:
                raise ArgumentError(
                    f"input_estimator='convolutional' needs images (N, C, H, W), but the inputs have the shape "
                    f"{tuple(probe.inputs.shape)}. Use 'gaussian'."
                )
            self._images = unit_range(probe.inputs.float())
            output, log_variance = output_of_mean(self._images, "bce")
            alone = image_costs(output.expand_as(self._images), self._images, "bce", log_variance)
            self.input_entropy = float(alone.mean()) if estimators.likelihood == "bce" else float("nan")

    def score_input(self, features: Features) -> Term:
        """I(X;F), or I(X;F|Y); for the convolutional decoder the features must have a feature map."""
        estimators = self._estimators
        if self._images is None:
            f = within_classes(features.pooled, self._labels) if estimators.given_label else features.pooled
            gains = gaussian_gains(self.x, f, self.folds)
        else:
            assert features.spatial is not None
            gains = convolutional_input_gains(
                self._images,
                features.spatial,
                self.folds,
                likelihood=estimators.likelihood,
                steps=estimators.decoder_steps,
                seed=estimators.seed,
                device=self._device,
            )
        return Term.of(gains, estimators.seed, self._num_groups)

    def score_label(self, features: Features) -> Term:
        """I(Y;F); for the head the features must have logits, for the convolutional classifier a feature map."""
        estimators = self._estimators
        if estimators.label_estimator == "logistic":
            gains = logistic_gains(features.pooled, self._labels, self.folds)
        elif estimators.label_estimator == "convolutional":
            assert features.spatial is not None
            gains = convolutional_label_gains(
                self._labels,
                features.spatial,
                self.folds,
                steps=estimators.decoder_steps,
                seed=estimators.seed,
                device=self._device,
            )
        else:
            assert features.logits is not None
            gains = head_gains(features.logits, self._labels, self.folds)
        return Term.of(gains, estimators.seed, self._num_groups)


def num_groups(num_samples: int) -> int:
    """How many groups of samples a jackknife leaves out in turn: as many for terms that one fold scores as for others.

    Args:
        num_samples: Number of probe samples N.
    """
    return min(NUM_GROUPS, num_samples // NUM_FOLDS)


def describe_probe(probe: Probe) -> dict[str, float | int]:
    """Samples, classes and the label entropy in nats, for the record."""
    return {
        "size": len(probe),
        "classes": len(torch.unique(probe.labels)),
        "label_entropy": label_entropy(probe.labels),
    }
