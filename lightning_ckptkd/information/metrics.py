"""torchmetrics over the estimators that need one pass: they take batches, and reduce over ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from lightning_ckptkd.information.folds import NUM_FOLDS
from lightning_ckptkd.information.gaussian import Moments, gaussian_information
from lightning_ckptkd.information.label import TEMPERATURES, tempered_costs


class GaussianInformation(Metric):
    """I(X;F) in nats by a linear-Gaussian decoder, as :func:`.gaussian.gaussian_information`.

    Sums over samples keep none of them, so that outlying ones count in full here; see :mod:`.robust` for what does not.
    Samples go into five folds in turn as they come, so the order decides the folds: shuffle sorted data.

    Args:
        input_dimensions: Dx of the inputs.
        feature_dimensions: Df of the features.
        **kwargs: torchmetrics' own.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    def __init__(self, input_dimensions: int, feature_dimensions: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        shapes = {
            "count": (),
            "x": (input_dimensions,),
            "f": (feature_dimensions,),
            "xx": (input_dimensions, input_dimensions),
            "xf": (input_dimensions, feature_dimensions),
            "ff": (feature_dimensions, feature_dimensions),
        }
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(NUM_FOLDS, *shape, dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def update(self, x: Tensor, f: Tensor) -> None:
        """Add a batch.

        Args:
            x: Inputs, shape (N, Dx).
            f: Features, shape (N, Df).
        """
        folds = _next_folds(int(self._state("count").sum()), len(x), x.device)
        for fold in range(NUM_FOLDS):
            moments = Moments.of(x[folds == fold], f[folds == fold])
            for name in ("count", "x", "f", "xx", "xf", "ff"):
                self._state(name)[fold] += getattr(moments, name)

    @override
    def compute(self) -> Tensor:
        """I(X;F) in nats, shape ().

        Raises:
            ValueError: If there are too few samples.
        """
        names = ("count", "x", "f", "xx", "xf", "ff")
        folds = [Moments(*(self._state(name)[fold] for name in names)) for fold in range(NUM_FOLDS)]
        return torch.tensor(gaussian_information(folds), dtype=torch.float64)

    def _state(self, name: str) -> Tensor:
        state: Tensor = getattr(self, name)
        return state


class HeadInformation(Metric):
    """I(Y;F) in nats by the teacher's own head with a fitted temperature, as :func:`.label.head_gains`.

    Args:
        num_classes: Number of classes K.
        **kwargs: torchmetrics' own.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    costs: Tensor
    labels: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        costs = torch.zeros(NUM_FOLDS, len(TEMPERATURES), dtype=torch.float64)
        self.add_state("costs", costs, dist_reduce_fx="sum")
        self.add_state("labels", torch.zeros(NUM_FOLDS, num_classes, dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            logits: Shape (N, K).
            labels: Class indices below K, shape (N,).
        """
        folds = _next_folds(int(self.labels.sum()), len(labels), labels.device)
        self.costs.index_add_(0, folds, tempered_costs(logits, labels))
        ones = torch.ones(len(labels), dtype=torch.float64, device=labels.device)
        self.labels.index_put_((folds, labels), ones, accumulate=True)

    @override
    def compute(self) -> Tensor:
        """I(Y;F) in nats, shape ()."""
        best = (self.costs.sum(0) - self.costs).argmin(1)  # the temperature that suits the other folds
        cost = self.costs.gather(1, best[:, None]).sum() / self.labels.sum()
        entropy: Tensor = torch.special.entr(self.labels.sum(0) / self.labels.sum()).sum()
        return entropy - cost


class ConditionalInformation(Metric):
    """I(X;Z|Y) in nats of predictions Z, as :func:`.cmi.cmi_parts` (MCMI, arXiv 2401.08732).

    Args:
        num_classes: Number of classes K.
        **kwargs: torchmetrics' own.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    entropy: Tensor
    sums: Tensor

    def __init__(self, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("entropy", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(num_classes, num_classes, dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            probabilities: Rows that sum to 1, shape (N, K).
            labels: Class indices below K, shape (N,).
        """
        probabilities = probabilities.double()
        self.entropy += torch.special.entr(probabilities).sum()
        self.sums.index_add_(0, labels, probabilities)

    @override
    def compute(self) -> Tensor:
        """I(X;Z|Y) in nats, shape ()."""
        counts = self.sums.sum(1, keepdim=True)
        means = self.sums / counts.clamp_min(1e-300)
        of_classes: Tensor = (torch.special.entr(means) * counts).sum()
        return (of_classes - self.entropy) / counts.sum()


def _next_folds(seen: int, count: int, device: torch.device) -> Tensor:
    """The folds of the next samples, after some that were seen."""
    return (seen + torch.arange(count, device=device)) % NUM_FOLDS
