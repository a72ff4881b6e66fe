r"""How well a decoder's output describes an image: costs -log q(x|f) in nats.

``bce`` is the paper's binary cross-entropy. On pixels that are not just 0 or 1 it is no density: it lacks the constant
log C(lambda) that makes it integrate to one, which depends on the output, so that it blurs and its scale is off
(Loaiza-Ganem and Cunningham 2019). ``continuous_bernoulli`` has the constant, ``gaussian`` is a normal density with
a variance for each channel. Both are densities on images, and their costs can be below zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_ckptkd.shapes import Float

LIKELIHOODS = ("bce", "continuous_bernoulli", "gaussian")
_EDGE = 1e-4  # a mean image of pure black or white would make any other pixel impossible
_SMALL = 1e-2


def image_costs(
    outputs: Float[Tensor, "N C H W"],
    images: Float[Tensor, "N C H W"],
    likelihood: str,
    log_variance: Float[Tensor, "C 1 1"],
) -> Float[Tensor, " N"]:
    """-log q(x|f) of each image in nats, shape (N,).

    Args:
        outputs: The decoder's, shape (N, C, H, W): natural parameters, or means for ``gaussian``.
        images: Shape (N, C, H, W); in [0, 1] except for ``gaussian``.
        likelihood: One of ``LIKELIHOODS``.
        log_variance: For ``gaussian``, shape (C, 1, 1).
    """
    if likelihood == "gaussian":
        costs = ((images - outputs).square() / log_variance.exp() + log_variance + math.log(math.tau)) / 2
    elif likelihood == "continuous_bernoulli":
        costs = _log_normaliser(outputs) - outputs * images
    else:
        costs = F.binary_cross_entropy_with_logits(outputs, images, reduction="none")
    return costs.flatten(1).sum(1)


def output_of_mean(
    images: Float[Tensor, "N C H W"], likelihood: str
) -> tuple[Float[Tensor, "1 C H W"], Float[Tensor, "C 1 1"]]:
    """The best output that sees no features, shape (1, C, H, W), and its log-variance, shape (C, 1, 1).

    Args:
        images: Shape (N, C, H, W).
        likelihood: One of ``LIKELIHOODS``.
    """
    mean = images.mean(0, keepdim=True)
    log_variance = (images - mean).square().mean((0, 2, 3)).clamp_min(1e-12).log()[:, None, None]
    if likelihood == "gaussian":
        return mean, log_variance
    mean = mean.clamp(_EDGE, 1 - _EDGE)
    return (mean.logit() if likelihood == "bce" else _natural_parameter(mean)), log_variance


def _log_normaliser(natural: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Logarithm of the integral of exp(natural * x) over [0, 1]."""
    half = natural.abs() / 2
    safe = half.clamp_min(_SMALL)
    ratio = torch.where(
        half < _SMALL, half.square() / 6, safe + torch.log(-torch.expm1(-2 * safe)) - torch.log(2 * safe)
    )
    return natural / 2 + ratio


def _natural_parameter(mean: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Of the continuous Bernoulli with that mean, by bisection."""
    low, high = torch.full_like(mean, -1 / _EDGE), torch.full_like(mean, 1 / _EDGE)
    for _ in range(60):
        middle = (low + high) / 2
        safe = torch.where(middle.abs() < 1e-3, 1e-3, middle)
        found = torch.where(middle.abs() < 1e-3, 0.5 + middle / 12, -1 / torch.expm1(-safe) - 1 / safe)
        low, high = torch.where(found < mean, middle, low), torch.where(found < mean, high, middle)
    return (low + high) / 2
