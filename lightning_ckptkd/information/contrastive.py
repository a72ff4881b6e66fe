r"""I(X;F) by telling a sample's input from others': a lower bound whatever the distribution of X is (InfoNCE).

For any critic c(x, f) and K inputs x_j, of which the i-th is the one that f came of,

    I(X;F) >= E[ log c(x_i, f) - log 1/K sum_j c(x_j, f) ]   nats,

at most log K (van den Oord et al. 2018; Poole et al. 2019). The best critic is p(x|f) / p(x). Here it is
q(x|f) / q(x)^b of the linear-Gaussian decoder and the Gaussian model of X (see :mod:`.gaussian`), with the b that suits
other folds best: 1 where X is normal, less where it is not. Whatever the critic is, the sum over j makes it a bound.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_ckptkd.information.gaussian import GaussianDecoder, Moments, fit_decoders
from lightning_ckptkd.information.robust import pull_in, winsorise
from lightning_ckptkd.shapes import Float, Int, Num

_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)


def contrastive_gains(x: Num[Tensor, "N Dx"], f: Num[Tensor, "N Df"], folds: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """What each sample adds to the bound of I(X;F), contrasted with the samples of its fold.

    The critic of a fold is fitted to the other folds. Values far outside of all others are pulled in before (see
    :mod:`.robust`).

    Args:
        x: Inputs, shape (N, Dx).
        f: Features, shape (N, Df).
        folds: Fold of each sample, shape (N,), from 0.

    Returns:
        Nats, shape (N,), float64; the mean is the bound, which may be below 0.

    Raises:
        ValueError: As :func:`.fit_decoders`.
    """
    members = [folds == fold for fold in range(int(folds.max()) + 1)]
    x, f = (part - part.mean(0) for part in (pull_in(x), winsorise(f)))
    decoders = fit_decoders([Moments.of(x[member], f[member]) for member in members])
    gains = torch.empty(len(x), dtype=torch.float64, device=x.device)
    tried = [
        torch.stack([_gains(*_log_densities(decoder, x[member], f[member]), power) for power in _POWERS])
        for member, decoder in zip(members, decoders, strict=True)
    ]
    for fold, member in enumerate(members):
        others = torch.cat([own for place, own in enumerate(tried) if place != fold], 1)
        gains[member] = tried[fold][int(others.mean(1).argmax())]
    return gains


def contrastive_ceiling(folds: Int[Tensor, " N"]) -> float:
    """The most that the mean of :func:`contrastive_gains` can be, in nats.

    Args:
        folds: Fold of each sample, shape (N,).
    """
    counts = torch.bincount(folds).double()
    return float(torch.special.xlogy(counts, counts).sum() / counts.sum())


def _gains(given_f: Float[Tensor, "N N"], alone: Float[Tensor, " N"], power: float) -> Float[Tensor, " N"]:
    """The bound's part of each sample, shape (N,), of log q(x_j|f_i), shape (N, N) by i and j, and log q(x_j), (N,)."""
    critic = given_f - power * alone
    return critic.diagonal() - critic.logsumexp(1) + math.log(len(critic))


def _log_densities(
    decoder: GaussianDecoder, x: Float[Tensor, "N Dx"], f: Float[Tensor, "N Df"]
) -> tuple[Float[Tensor, "N N"], Float[Tensor, " N"]]:
    """Both densities, logarithms of them but for a constant: of each x given each f, and of each x alone."""
    x = x - decoder.mean_x
    predicted = (f - decoder.mean_f) @ decoder.slope
    shown, guessed = _whitened(x, decoder.given_f), _whitened(predicted, decoder.given_f)
    given_f = -torch.cdist(guessed, shown, compute_mode="donot_use_mm_for_euclid_dist").square() / 2
    return given_f, -_whitened(x, decoder.alone).square().sum(1) / 2


def _whitened(x: Tensor, covariance: Tensor) -> Tensor:
    factor = torch.linalg.cholesky(covariance)
    whitened: Tensor = torch.linalg.solve_triangular(factor, x.T, upper=False).T
    return whitened
