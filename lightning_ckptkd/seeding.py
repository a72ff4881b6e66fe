"""Seeding what random transforms and networks draw from."""

from __future__ import annotations

import random

import numpy
import torch


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch, and nothing else: no environment variable is left behind."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
