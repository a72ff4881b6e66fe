"""Both information terms of one snapshot, by the estimators that the user chose."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.information.convolutional import convolutional_information, unit_range
from lightning_ckptkd.information.features import Features
from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.information.gaussian import Moments, gaussian_information
from lightning_ckptkd.information.inputs import pool_inputs, principal_components
from lightning_ckptkd.information.label import head_information, label_entropy, logistic_information
from lightning_ckptkd.information.probe import Probe

INPUT_ESTIMATORS = ("gaussian", "convolutional")
LABEL_ESTIMATORS = ("head", "logistic")
_NUM_FOLDS = 5
_MAX_COMPONENTS = 64
_SAMPLES_PER_COMPONENT = 20


@dataclass(frozen=True)
class Information:
    """The two terms of one snapshot.

    Attributes:
        input_information: I(X;F) in nats.
        label_information: I(Y;F) in nats.
    """

    input_information: float
    label_information: float


class Scorer:
    """Estimators with everything that is the same for each snapshot prepared once.

    Args:
        probe: The probe samples.
        input_estimator: ``gaussian`` or ``convolutional``.
        label_estimator: ``logistic`` or ``head``.
        decoder_steps: Training steps of the convolutional decoder.
        seed: Seed of the folds and the decoder.
        device: Where the convolutional decoder is trained.

    Raises:
        ArgumentError: If the convolutional decoder is asked for and X is no batch of images.
    """

    def __init__(
        self,
        probe: Probe,
        *,
        input_estimator: str,
        label_estimator: str,
        decoder_steps: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._labels = probe.labels
        self._folds = assign_folds(len(probe), _NUM_FOLDS, seed)
        self._label_estimator = label_estimator
        self._decoder_steps = decoder_steps
        self._seed = seed
        self._device = device
        self._images: Tensor | None = None
        self._components: Tensor | None = None
        if input_estimator == "gaussian":
            count = min(_MAX_COMPONENTS, max(1, len(probe) // _SAMPLES_PER_COMPONENT))
            self._components = principal_components(pool_inputs(probe.inputs), count)
        else:
            if probe.inputs.dim() != 4:
                raise ArgumentError(
                    f"input_estimator='convolutional' needs images (N, C, H, W), but the inputs have the shape "
                    f"{tuple(probe.inputs.shape)}. Use 'gaussian'."
                )
            self._images = unit_range(probe.inputs.float())

    def score(self, features: Features) -> Information:
        """Estimate both terms; for the head the features must have logits, for a decoder a feature map."""
        return Information(self._input_information(features), self._label_information(features))

    def _input_information(self, features: Features) -> float:
        if self._components is not None:
            folds = [self._folds == fold for fold in range(_NUM_FOLDS)]
            return gaussian_information([Moments.of(self._components[fold], features.pooled[fold]) for fold in folds])
        assert self._images is not None and features.spatial is not None
        return convolutional_information(
            self._images,
            features.spatial,
            self._folds,
            steps=self._decoder_steps,
            seed=self._seed,
            device=self._device,
        )

    def _label_information(self, features: Features) -> float:
        if self._label_estimator == "logistic":
            return logistic_information(features.pooled, self._labels, self._folds).nats
        assert features.logits is not None
        return head_information(features.logits, self._labels).nats


def describe_probe(probe: Probe) -> dict[str, float | int]:
    """Samples, classes and the label entropy in nats, for the record."""
    return {
        "size": len(probe),
        "classes": len(torch.unique(probe.labels)),
        "label_entropy": label_entropy(probe.labels),
    }
