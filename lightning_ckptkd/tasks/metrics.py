"""torchmetrics over rows: a batch may have none of them, and scores are logits whatever their range."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex, MultilabelF1Score
from torchmetrics.regression import MeanSquaredError
from torchmetrics.text import Perplexity
from typing_extensions import override

from lightning_ckptkd.losses.hard import cross_entropy
from lightning_ckptkd.shapes import Float, Int, Num


class RowAccuracy(MulticlassAccuracy):
    """The share of rows (R, K) whose largest score is that of the target: of an index (R,), or of shares (R, K)."""

    def __init__(self, ignore_index: int | None = None) -> None:
        super().__init__(average="micro", ignore_index=ignore_index)

    @override
    def update(self, preds: Float[Tensor, "R K"], target: Int[Tensor, " R"] | Float[Tensor, "R K"]) -> None:
        if len(preds):
            super().update(preds, target.argmax(1) if target.dim() == 2 else target)


class RowJaccard(MulticlassJaccardIndex):
    """The mean over classes of intersection over union of rows (R, K), classes that neither side has left out."""

    def __init__(self, num_classes: int, ignore_index: int | None = None) -> None:
        super().__init__(num_classes, average="macro", ignore_index=ignore_index)

    @override
    def update(self, preds: Float[Tensor, "R K"], target: Int[Tensor, " R"]) -> None:
        if len(preds):
            super().update(preds, target)


class RowF1(MultilabelF1Score):
    """Of all rows of a batch, (N * K, 2); torchmetrics would take logits for probabilities where all are in [0, 1]."""

    def __init__(self, num_labels: int, ignore_index: int | None = None) -> None:
        super().__init__(num_labels, average="macro", ignore_index=ignore_index)

    @override
    def update(self, preds: Float[Tensor, "R 2"], target: Int[Tensor, " R"]) -> None:
        super().update(preds.argmax(1).reshape(-1, self.num_labels), target.reshape(-1, self.num_labels))


class RowPerplexity(Perplexity):
    """The exponential of the mean cross-entropy of rows (R, K).

    By log-softmax, since torchmetrics' probabilities are 0 for tokens that are very unlikely.
    """

    @override
    def update(self, preds: Float[Tensor, "R K"], target: Int[Tensor, " R"]) -> None:
        count = (target == target if self.ignore_index is None else target != self.ignore_index).sum()
        self.total_log_probs += cross_entropy(preds, target, ignore_index=self.ignore_index) * count
        self.count += count


class RowRMSE(MeanSquaredError):  # noqa: N818 -- no exception
    """The root of the mean squared error over rows (R, D) and numbers alike."""

    def __init__(self) -> None:
        super().__init__(squared=False)

    @override
    def update(self, preds: Float[Tensor, "R D"], target: Num[Tensor, "R D"]) -> None:
        if len(preds):
            super().update(preds.reshape(-1), target.reshape(-1))


class RowR2(Metric):
    """R2 of rows (R, D), the mean over D as scikit-learn's; NaN for less than two samples.

    torchmetrics' own raises on one sample, takes small errors for none (it compares them with 1e-4), and loses its
    digits where the mean of the targets is far from 0. Here means are updated instead of sums.
    """

    full_state_update = True
    is_differentiable = False
    higher_is_better = True
    moments: Tensor  # count, mean, squared deviations and squared errors; ranks stacked once they are synchronised

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.add_state("moments", torch.zeros(4, num_outputs), dist_reduce_fx=None)

    @override
    def update(self, preds: Float[Tensor, "R D"], target: Num[Tensor, "R D"]) -> None:
        preds, target = preds.to(self.moments), target.to(self.moments)
        if len(target):
            mean = target.mean(0)
            count = torch.full_like(mean, len(target))
            new = [count, mean, (target - mean).square().sum(0), (target - preds).square().sum(0)]
            self.moments = _merge(self.moments, torch.stack(new))

    @override
    def compute(self) -> Float[Tensor, ""]:
        total, *others = self.moments.reshape(-1, 4, self.moments.shape[-1])
        for moments in others:
            total = _merge(total, moments)
        count, _, deviations, errors = total
        score = torch.where(deviations > 0, 1 - errors / deviations, (errors == 0).to(errors))
        return torch.where(count >= 2, score, float("nan")).mean()


def _merge(first: Tensor, second: Tensor) -> Tensor:
    """The moments (4, D) of two sets of samples together (Chan, Golub and LeVeque 1979)."""
    count = first[0] + second[0]
    share = second[0] / count.clamp_min(1)
    distance = second[1] - first[1]
    deviations = first[2] + second[2] + distance.square() * first[0] * share
    return torch.stack([count, first[1] + distance * share, deviations, first[3] + second[3]])
