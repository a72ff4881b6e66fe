r"""I(X;F) by a linear-Gaussian decoder, in closed form from one pass over the samples.

The decoder is q(x|f) = N(A f + b, S). For any decoder, I(X;F) = H(X) - H(X|F) >= H(X) + E[log q(x|f)] (Barber and
Agakov 2003; equation 2 of the paper's own estimators). Here H(X) is modelled alike, by q(x) = N(m, S_x), so the
score is the held-out gain in log-likelihood

    I = E[log q(x|f)] - E[log q(x)]   nats,

which is exact where X and F are jointly Gaussian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

_RIDGES = (100.0, 10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
_NOISE_FLOOR = 1e-6  # share of X's mean variance added to both covariances: bounds I where F determines X


@dataclass(frozen=True)
class Moments:
    """Sums over samples of x, f and their products, in float64; adding two merges their samples.

    Attributes:
        count: Number of samples, shape ().
        x: Sum of x, shape (Dx,).
        f: Sum of f, shape (Df,).
        xx: Sum of x x^T, shape (Dx, Dx).
        xf: Sum of x f^T, shape (Dx, Df).
        ff: Sum of f f^T, shape (Df, Df).
    """

    count: Tensor
    x: Tensor
    f: Tensor
    xx: Tensor
    xf: Tensor
    ff: Tensor

    @classmethod
    def of(cls, x: Tensor, f: Tensor) -> Moments:
        """The moments of a batch.

        Args:
            x: Inputs, shape (N, Dx).
            f: Features, shape (N, Df).
        """
        x, f = x.double(), f.double()
        count = torch.tensor(float(len(x)), dtype=torch.float64, device=x.device)
        return cls(count, x.sum(0), f.sum(0), x.T @ x, x.T @ f, f.T @ f)

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))

    def centred(self, mean_x: Tensor, mean_f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean products (xx, xf, ff) of the samples' differences to given means."""
        x, f = self.x / self.count, self.f / self.count
        return (
            self.xx / self.count - torch.outer(x, mean_x) - torch.outer(mean_x, x) + torch.outer(mean_x, mean_x),
            self.xf / self.count - torch.outer(x, mean_f) - torch.outer(mean_x, f) + torch.outer(mean_x, mean_f),
            self.ff / self.count - torch.outer(f, mean_f) - torch.outer(mean_f, f) + torch.outer(mean_f, mean_f),
        )


def gaussian_information(folds: Sequence[Moments]) -> float:
    """I(X;F) in nats, cross-fitted over folds.

    Each fold in turn scores, the next one gives the ridge and both covariances, and the others give the
    regression. The covariances of the decoder and of X alone are estimated from the same samples, so the cost of
    estimating them cancels; what remains is a lower bound in expectation.

    Args:
        folds: Moments of three or more disjoint sets of samples, each with at least twice as many samples as X
            has dimensions.

    Returns:
        The mean over folds, in nats. It can be slightly negative where F tells nothing.

    Raises:
        ValueError: If there are fewer than three folds or a fold is too small.
    """
    if len(folds) < 3:
        raise ValueError(f"folds: three or more are needed (fit, tune, score), got {len(folds)}.")
    smallest, dimensions = min(float(fold.count) for fold in folds), folds[0].x.numel()
    if smallest < 2 * dimensions:
        raise ValueError(
            f"folds: each needs at least twice as many samples as X has dimensions ({dimensions}), got {smallest:.0f}."
        )
    scores = []
    for index in range(len(folds)):
        score, tune = folds[index], folds[(index + 1) % len(folds)]
        rest = [fold for fold in folds if fold is not score and fold is not tune]
        scores.append(_held_out_gain(sum(rest[1:], start=rest[0]), tune, score))
    return float(torch.stack(scores).mean())


def _held_out_gain(fit: Moments, tune: Moments, score: Moments) -> Tensor:
    mean_x, mean_f = fit.x / fit.count, fit.f / fit.count
    xx, xf, ff = fit.centred(mean_x, mean_f)
    deviation = ff.diagonal().clamp_min(0).sqrt()
    constant = deviation <= 1e-9 * deviation.max()
    scale = torch.where(constant, 0.0, 1 / torch.where(constant, 1.0, deviation))
    correlation, cross = scale[:, None] * ff * scale, scale[:, None] * xf.T
    identity = torch.eye(len(ff), dtype=ff.dtype, device=ff.device)
    floor = _NOISE_FLOOR * xx.diagonal().mean() * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
    tune_xx, tune_xf, tune_ff = tune.centred(mean_x, mean_f)

    best: tuple[Tensor, Tensor, Tensor] | None = None
    for ridge in _RIDGES:
        slope = scale[:, None] * torch.cholesky_solve(cross, torch.linalg.cholesky(correlation + ridge * identity))
        covariance = _residual(tune_xx, tune_xf, tune_ff, slope) + floor
        volume = torch.linalg.slogdet(covariance).logabsdet
        if best is not None and volume >= best[0]:  # the volume has one minimum along the path of ridges
            break
        best = volume, slope, covariance
    assert best is not None
    _, slope, covariance = best

    score_xx, score_xf, score_ff = score.centred(mean_x, mean_f)
    given_f = _gaussian_cost(covariance, _residual(score_xx, score_xf, score_ff, slope) + floor)
    alone = _gaussian_cost(tune_xx + floor, score_xx + floor)
    return alone - given_f


def _residual(xx: Tensor, xf: Tensor, ff: Tensor, slope: Tensor) -> Tensor:
    """Second moment of x - slope^T f."""
    cross = xf @ slope
    residual = xx - cross - cross.T + slope.T @ ff @ slope
    return (residual + residual.T) / 2


def _gaussian_cost(covariance: Tensor, second_moment: Tensor) -> Tensor:
    """Mean negative log-density in nats, less the constant, of samples with that second moment."""
    factor = torch.linalg.cholesky(covariance)
    log_determinant = 2 * factor.diagonal().log().sum()
    whitened: Tensor = torch.cholesky_solve(second_moment, factor)
    cost: Tensor = (log_determinant + whitened.diagonal().sum()) / 2
    return cost
