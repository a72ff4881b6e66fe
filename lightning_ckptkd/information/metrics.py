"""torchmetrics over the estimators that need one pass: they take batches, and reduce over ranks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from lightning_ckptkd.information.folds import NUM_FOLDS
from lightning_ckptkd.information.gaussian import Moments, gaussian_information
from lightning_ckptkd.information.label import TEMPERATURES, tempered_costs
from lightning_ckptkd.shapes import Float, Int, Num


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
    moments: Tensor  # of each fold: count, mean and centred products of x and f side by side

    def __init__(self, input_dimensions: int, feature_dimensions: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sizes = input_dimensions, feature_dimensions
        width = input_dimensions + feature_dimensions
        state = torch.zeros(NUM_FOLDS, 1 + width + width**2, dtype=torch.float64)
        self.add_state("moments", state, dist_reduce_fx=_merged)

    @override
    def update(self, x: Num[Tensor, "N Dx"], f: Num[Tensor, "N Df"]) -> None:
        """Add a batch.

        Args:
            x: Inputs, shape (N, Dx).
            f: Features, shape (N, Df).
        """
        folds = _next_folds(int(self.moments[:, 0].sum()), len(x), x.device)
        both = torch.cat([x.double(), f.double()], 1)
        added = torch.stack([_moments_of(both[folds == fold]) for fold in range(NUM_FOLDS)])
        self.moments = _merged(torch.stack([self.moments, added]))

    @override
    def compute(self) -> Float[Tensor, ""]:
        """I(X;F) in nats, shape ().

        Raises:
            ValueError: If there are too few samples.
        """
        counts, means, products = _parts(self.moments)
        means = means - (means * counts).sum(0) / counts.sum()  # where all data lie says nothing
        dx, folds = self._sizes[0], []
        for count, mean, product in zip(counts.squeeze(1), means, products, strict=True):
            sums, squares = mean * count, product + torch.outer(mean, mean) * count
            blocks = squares[:dx, :dx], squares[:dx, dx:], squares[dx:, dx:]
            folds.append(Moments(count, sums[:dx], sums[dx:], *blocks))
        return torch.tensor(gaussian_information(folds), dtype=torch.float64)


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
    def update(self, logits: Float[Tensor, "N K"], labels: Int[Tensor, " N"]) -> None:
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
    def compute(self) -> Float[Tensor, ""]:
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
    def update(self, probabilities: Float[Tensor, "N K"], labels: Int[Tensor, " N"]) -> None:
        """Add a batch.

        Args:
            probabilities: Rows that sum to 1, shape (N, K).
            labels: Class indices below K, shape (N,).
        """
        probabilities = probabilities.double()
        self.entropy += torch.special.entr(probabilities).sum()
        self.sums.index_add_(0, labels, probabilities)

    @override
    def compute(self) -> Float[Tensor, ""]:
        """I(X;Z|Y) in nats, shape ()."""
        counts = self.sums.sum(1, keepdim=True)
        means = self.sums / counts.clamp_min(1e-300)
        of_classes: Tensor = (torch.special.entr(means) * counts).sum()
        return (of_classes - self.entropy) / counts.sum()


def _next_folds(seen: int, count: int, device: torch.device) -> Tensor:
    """The folds of the next samples, after some that were seen."""
    return (seen + torch.arange(count, device=device)) % NUM_FOLDS


def _moments_of(values: Tensor) -> Tensor:
    """Count, mean (D,) and centred products (D * D,) of samples (N, D), in one vector."""
    mean = values.sum(0) / max(len(values), 1)
    centred = values - mean
    return torch.cat([mean.new_tensor([len(values)]), mean, (centred.T @ centred).flatten()])


def _parts(moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Counts (F, 1), means (F, D) and centred products (F, D, D)."""
    width = math.isqrt(moments.shape[1])  # 1 + D + D * D lies between D squared and the next square
    counts, means, products = torch.split(moments, [1, width, width**2], dim=1)
    return counts, means, products.view(-1, width, width)


def _merged(parts: Tensor) -> Tensor:
    """The moments (F, ...) of samples that several, (P, F, ...), are of (Chan, Golub and LeVeque 1979).

    Products of what is far from 0 would be large numbers with small differences.
    """
    counts, means, products = _parts(parts[0])
    for part in parts[1:]:
        count, mean, product = _parts(part)
        both, distance = counts + count, mean - means
        share = count / both.clamp_min(1)
        between = distance[:, :, None] * distance[:, None, :]
        products = products + product + between * (counts * share)[:, :, None]
        counts, means = both, means + distance * share
    return torch.cat([counts, means, products.flatten(1)], 1)
