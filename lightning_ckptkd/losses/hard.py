"""The targets' own losses, which are 0 where no row has a target (torch's mean of nothing is NaN)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses.arguments import at_least_float32
from lightning_ckptkd.shapes import Float, Int

_NO_INDEX = -100  # torch's, where nothing is ignored


def as_weights(argument: str, weights: Sequence[float] | None) -> Float[Tensor, " _"] | None:
    """Weights of a hard loss, float32; None where there are none.

    Raises:
        ArgumentError: If one is negative or not finite.
    """
    if weights is None:
        return None
    if not all(0 <= weight < float("inf") for weight in weights):
        raise ArgumentError(f"{argument} should be finite and 0 or more, got {list(weights)}.")
    return torch.tensor(list(weights), dtype=torch.float32)


def cross_entropy(
    logits: Float[Tensor, "R K *places"],
    targets: Int[Tensor, "R *places"] | Float[Tensor, "R K"],
    weights: Float[Tensor, " K"] | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """The mean cross-entropy in nats, as torch's, in float32 at least.

    Args:
        logits: Shape (R, K); or planes of places, shape (N, K, L).
        targets: Class indices, shape (R,) or (N, L); or shares of the classes, shape (R, K).
        weights: Of the classes, shape (K,). The mean is over the weights of the targets, over rows for shares.
        ignore_index: Rows with this index are left out.
        label_smoothing: In [0, 1).

    Returns:
        Shape ().
    """
    logits = at_least_float32(logits)
    weights = None if weights is None else weights.to(logits)
    if targets.is_floating_point():
        targets = targets.to(logits)
        total = F.cross_entropy(logits, targets, weights, reduction="sum", label_smoothing=label_smoothing)
        return total / max(1, len(targets))
    ignored = _NO_INDEX if ignore_index is None else ignore_index
    total = F.cross_entropy(
        logits, targets, weights, ignore_index=ignored, reduction="sum", label_smoothing=label_smoothing
    )
    counted = targets != ignored
    if weights is None:
        return total / counted.sum().clamp_min(1)
    share: Tensor = (weights[targets.where(counted, 0)] * counted).sum()
    return total / share.clamp_min(torch.finfo(weights.dtype).tiny)


def binary_cross_entropy(
    logits: Float[Tensor, " R"],
    targets: Int[Tensor, " R"],
    pos_weights: Float[Tensor, " U"] | None = None,
    ignore_index: int | None = None,
) -> Float[Tensor, ""]:
    """The mean binary cross-entropy in nats, as torch's BCEWithLogitsLoss, in float32 at least.

    Args:
        logits: Shape (R,).
        targets: 0 and 1, integers, shape (R,).
        pos_weights: Of positive rows, shape (U,) with R a multiple of U: rows have them in turn.
        ignore_index: Rows with this target are left out.

    Returns:
        Shape ().
    """
    logits = at_least_float32(logits)
    counted = targets == targets if ignore_index is None else targets != ignore_index
    if pos_weights is not None:
        pos_weights = pos_weights.to(logits).repeat(len(logits) // len(pos_weights))
    truth = targets.where(counted, 0).to(logits)
    total = F.binary_cross_entropy_with_logits(
        logits, truth, counted.to(logits), reduction="sum", pos_weight=pos_weights
    )
    return total / counted.sum().clamp_min(1)
