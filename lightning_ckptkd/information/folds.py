"""Seeded folds: which probe samples fit an estimator and which score it."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_ckptkd.shapes import Int

NUM_FOLDS = 5  # of all estimators that are cross-fitted


def assign_folds(num_samples: int, num_folds: int, seed: int) -> Int[Tensor, "{num_samples}"]:
    """Put each sample into one of the folds, at random and in equal shares.

    Args:
        num_samples: Number of samples N.
        num_folds: Number of folds.
        seed: The same seed gives the same folds.

    Returns:
        Fold of each sample, shape (N,), int64.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.arange(num_samples)[torch.randperm(num_samples, generator=generator)] % num_folds
