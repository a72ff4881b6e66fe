r"""What F tells of X by a linear-Gaussian decoder, in closed form from one pass over the samples.

The decoder is q(x|f) = N(A f + b, S). For any decoder, I(X;F) = H(X) - H(X|F) >= H(X) + E[log q(x|f)] (Barber and
Agakov 2003; equation 2 of the paper's own estimators). H(X) is not known, and in its place stands the cost of a model
of X alone, q(x) = N(m, S_x). So the score is the held-out gain in model log-likelihood over that of X alone,

    G = E[log q(x|f)] - E[log q(x)] = I(X;F) - E[KL(p(x|f) || q(x|f))] + KL(p(x) || q(x))   nats,

which is I(X;F) where X and F are jointly Gaussian, and at most I(X;F) where X is. Where X is not Gaussian the last term
may make it larger: one bit with little noise gives more than 2 nats, and can tell 0.69. That term is the same for each
snapshot, so that differences between snapshots are not touched. :mod:`.contrastive` is a bound in any case.

Samples are in folds. Each fold is scored by a decoder to which it has not contributed: slopes from the other folds,
covariances from what those folds' own decoders leave over of them. So the cost of estimating a slope counts against
the features, and the cost of estimating a covariance is the same with and without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lightning_ckptkd.information.robust import pull_in, winsorise
from lightning_ckptkd.shapes import Float, Int, Num

_RIDGES = (100.0, 10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6)
_NOISE_FLOOR = 1e-6  # share of X's mean variance
_STILL = 0.1  # of a unit's deviation over all samples: with less over those that fit, its slope would be a guess


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

    count: Float[Tensor, ""]
    x: Float[Tensor, " Dx"]
    f: Float[Tensor, " Df"]
    xx: Float[Tensor, "Dx Dx"]
    xf: Float[Tensor, "Dx Df"]
    ff: Float[Tensor, "Df Df"]

    @classmethod
    def of(cls, x: Num[Tensor, "N Dx"], f: Num[Tensor, "N Df"]) -> Moments:
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

    def __sub__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, item.name) - getattr(other, item.name) for item in fields(self)))

    def centred_x(self, mean_x: Float[Tensor, " Dx"]) -> Float[Tensor, "Dx Dx"]:
        """Mean product x x^T of the samples' differences to a given mean (Dx,); shape (Dx, Dx)."""
        x = self.x / self.count
        return self.xx / self.count - torch.outer(x, mean_x) - torch.outer(mean_x, x) + torch.outer(mean_x, mean_x)


@dataclass(frozen=True)
class GaussianDecoder:
    """q(x|f) = N(mean_x + slope^T (f - mean_f), given_f), and q(x) = N(mean_x, alone) beside it.

    Attributes:
        mean_x: Shape (Dx,).
        mean_f: Shape (Df,).
        slope: Shape (Df, Dx).
        given_f: Covariance of what the decoder leaves over, shape (Dx, Dx).
        alone: Covariance of x, shape (Dx, Dx).
        floor: Variance of the noise with which X is seen, in both covariances; shape ().
    """

    mean_x: Float[Tensor, " Dx"]
    mean_f: Float[Tensor, " Df"]
    slope: Float[Tensor, "Df Dx"]
    given_f: Float[Tensor, "Dx Dx"]
    alone: Float[Tensor, "Dx Dx"]
    floor: Float[Tensor, ""]

    def gains(self, x: Num[Tensor, "N Dx"], f: Num[Tensor, "N Df"]) -> Float[Tensor, " N"]:
        """The gain log q(x|f) - log q(x) of each sample in nats, shape (N,), of x (N, Dx) and f (N, Df)."""
        x = x.double() - self.mean_x
        residual = x - (f.double() - self.mean_f) @ self.slope
        return log_density_gains(residual, x, self.given_f, self.alone, self.floor)

    def mean_gain(self, samples: Moments) -> float:
        """The mean of :meth:`gains` in nats, from moments alone."""
        left, alone = _residual(samples, self.mean_x, self.mean_f, self.slope), samples.centred_x(self.mean_x)
        return float(_mean_cost(alone, self.alone, self.floor) - _mean_cost(left, self.given_f, self.floor))


def log_density_gains(
    residual: Float[Tensor, "N Dx"],
    x: Float[Tensor, "N Dx"],
    given_f: Float[Tensor, "Dx Dx"],
    alone: Float[Tensor, "Dx Dx"],
    floor: Float[Tensor, ""],
) -> Float[Tensor, " N"]:
    """The gain log N(residual; 0, given_f) - log N(x; 0, alone) of each sample in nats, shape (N,).

    Args:
        residual: Shape (N, Dx).
        x: Centred, shape (N, Dx).
        given_f: Shape (Dx, Dx).
        alone: Shape (Dx, Dx).
        floor: Variance of the noise with which X is seen, shape ().
    """
    return _costs(x, alone, floor) - _costs(residual, given_f, floor)


def fit_decoders(folds: Sequence[Moments]) -> list[GaussianDecoder]:
    """A decoder for each fold, from the other folds alone.

    The ridge of the regression is one for all of them: that with the smallest volume of what is left over.

    Args:
        folds: Moments of three or more disjoint sets of samples. All but one of them together have at least twice
            as many samples as X has dimensions.

    Raises:
        ValueError: If there are fewer than three folds or too few samples.
    """
    if len(folds) < 3:
        raise ValueError(f"folds: three or more are needed, got {len(folds)}.")
    total = sum(folds[1:], start=folds[0])
    smallest, dimensions = min(float(total.count - fold.count) for fold in folds), len(total.x)
    if smallest < 2 * dimensions:
        raise ValueError(
            f"folds: all but one need at least twice as many samples as X has dimensions ({dimensions}), got "
            f"{smallest:.0f}."
        )
    usual = _deviation(total)
    regressions = [_Regression(total, fold, usual) for fold in folds]
    floor = noise_floor(total)
    best: tuple[float, list[Tensor], list[Tensor]] | None = None
    for ridge in _RIDGES:
        slopes = [regression.slope(ridge) for regression in regressions]
        left = [
            fold.count * regression.residual(slope)
            for regression, fold, slope in zip(regressions, folds, slopes, strict=True)
        ]
        volume = float(torch.linalg.slogdet(add_noise(torch.stack(left).sum(0) / total.count, floor)).logabsdet)
        if best is not None and volume >= best[0]:  # the volume has one minimum along the path of ridges
            break
        best = volume, slopes, left
    assert best is not None
    _, slopes, left = best
    sum_left = torch.stack(left).sum(0)
    alone = [fold.count * regression.second_moment() for regression, fold in zip(regressions, folds, strict=True)]
    sum_alone = torch.stack(alone).sum(0)
    return [
        GaussianDecoder(
            regression.mean_x,
            regression.mean_f,
            slope,
            add_noise((sum_left - own_left) / (total.count - fold.count), floor),
            add_noise((sum_alone - own_alone) / (total.count - fold.count), floor),
            floor,
        )
        for regression, slope, fold, own_left, own_alone in zip(regressions, slopes, folds, left, alone, strict=True)
    ]


def gaussian_information(folds: Sequence[Moments]) -> float:
    """The gain in model log-likelihood in nats, cross-fitted over folds; I(X;F) where X and F are jointly Gaussian.

    Args:
        folds: As :func:`fit_decoders` takes them.

    Returns:
        The mean over samples. It can be slightly negative where F tells nothing.

    Raises:
        ValueError: As :func:`fit_decoders`.
    """
    total = sum(float(fold.count) for fold in folds)
    decoders = fit_decoders(folds)
    return (
        sum(float(fold.count) * decoder.mean_gain(fold) for fold, decoder in zip(folds, decoders, strict=True)) / total
    )


def gaussian_gains(x: Num[Tensor, "N Dx"], f: Num[Tensor, "N Df"], folds: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """What each sample adds to the gain: log q(x|f) - log q(x) in nats, whose mean is :func:`gaussian_information`.

    Values of X and F far outside of all others are pulled in before (see :mod:`.robust`), so that no sample decides.

    Args:
        x: Inputs, shape (N, Dx).
        f: Features, shape (N, Df).
        folds: Fold of each sample, shape (N,), from 0.

    Returns:
        Shape (N,), float64.

    Raises:
        ValueError: As :func:`fit_decoders`.
    """
    members = [folds == fold for fold in range(int(folds.max()) + 1)]
    # features of a network that hardly began to learn differ in their last digits, which sums of squares would lose
    x, f = (part - part.mean(0) for part in (pull_in(x), winsorise(f)))
    decoders = fit_decoders([Moments.of(x[member], f[member]) for member in members])
    gains = torch.empty(len(x), dtype=torch.float64, device=x.device)
    for member, decoder in zip(members, decoders, strict=True):
        gains[member] = decoder.gains(x[member], f[member])
    return gains


def gaussian_ceiling(x: Num[Tensor, "N Dx"]) -> float:
    """The most that :func:`gaussian_information` could be, where F determines X up to the noise floor; nats.

    Args:
        x: Inputs, shape (N, Dx).
    """
    moments = Moments.of(x, x[:, :0])
    floor = noise_floor(moments)
    covariance = moments.centred_x(moments.x / moments.count)
    return float(torch.linalg.slogdet(add_noise(covariance, floor) / floor).logabsdet / 2)


def noise_floor(moments: Moments) -> Float[Tensor, ""]:
    """Variance of the noise with which X is seen: it bounds I where F determines X; shape ()."""
    mean = moments.x / moments.count
    return _NOISE_FLOOR * (moments.xx.diagonal() / moments.count - mean.square()).mean()


def add_noise(covariance: Float[Tensor, "Dx Dx"], floor: Float[Tensor, ""]) -> Float[Tensor, "Dx Dx"]:
    """The covariance (Dx, Dx) with noise of that variance."""
    return covariance + floor * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)


class _Regression:
    """The ridge regression of x on f, for any ridge, fitted to all samples but those of one fold.

    It keeps nothing of size (Df, Df) of its own: the covariance of f is made anew for each ridge, which takes less time
    than its factor does.
    """

    def __init__(self, total: Moments, fold: Moments, usual: Float[Tensor, " Df"]) -> None:
        self._total, self._fold = total, fold
        self._count = total.count - fold.count
        self.mean_x, self.mean_f = (total.x - fold.x) / self._count, (total.f - fold.f) / self._count
        diagonal = total.ff.diagonal() - fold.ff.diagonal()
        deviation = (diagonal / self._count - self.mean_f.square()).clamp_min(0).sqrt()
        constant = (deviation <= 1e-9 * deviation.max()) | (deviation <= _STILL * usual)
        self._scale = torch.where(constant, 0.0, 1 / torch.where(constant, 1.0, deviation))
        cross = (total.xf - fold.xf) / self._count - torch.outer(self.mean_x, self.mean_f)
        self._cross = self._scale[:, None] * cross.T

    def slope(self, ridge: float) -> Float[Tensor, "Df Dx"]:
        """Shape (Df, Dx); the ridge is on features of unit variance."""
        correlation = self._total.ff - self._fold.ff
        correlation.div_(self._count).addr_(self.mean_f, self.mean_f, alpha=-1)
        correlation.mul_(self._scale).mul_(self._scale[:, None])
        correlation.diagonal().add_(ridge)
        slope: Tensor = self._scale[:, None] * torch.cholesky_solve(self._cross, torch.linalg.cholesky(correlation))
        return slope

    def residual(self, slope: Float[Tensor, "Df Dx"]) -> Float[Tensor, "Dx Dx"]:
        """Second moment of x - slope^T f over the fold, both centred by this regression's means."""
        return _residual(self._fold, self.mean_x, self.mean_f, slope)

    def second_moment(self) -> Float[Tensor, "Dx Dx"]:
        """Second moment of x over the fold, centred by this regression's mean."""
        return self._fold.centred_x(self.mean_x)


def _deviation(moments: Moments) -> Float[Tensor, " Df"]:
    """Standard deviation of each feature, shape (Df,)."""
    mean = moments.f / moments.count
    return (moments.ff.diagonal() / moments.count - mean.square()).clamp_min(0).sqrt()


def _residual(
    samples: Moments, mean_x: Float[Tensor, " Dx"], mean_f: Float[Tensor, " Df"], slope: Float[Tensor, "Df Dx"]
) -> Float[Tensor, "Dx Dx"]:
    """Second moment of (x - mean_x) - slope^T (f - mean_f)."""
    x, mean, fitted = samples.x / samples.count, slope.T @ (samples.f / samples.count), slope.T @ mean_f
    # of f times slope^T: its second moment, and its products with x, both centred
    second = slope.T @ (samples.ff @ slope) / samples.count
    second = second - torch.outer(mean, fitted) - torch.outer(fitted, mean) + torch.outer(fitted, fitted)
    cross = samples.xf @ slope / samples.count
    cross = cross - torch.outer(x, fitted) - torch.outer(mean_x, mean) + torch.outer(mean_x, fitted)
    residual = samples.centred_x(mean_x) - cross - cross.T + second
    return (residual + residual.T) / 2


def _costs(
    x: Float[Tensor, "N Dx"], covariance: Float[Tensor, "Dx Dx"], floor: Float[Tensor, ""]
) -> Float[Tensor, " N"]:
    """Mean negative log-density in nats of each sample over noise of that variance, less the constant; shape (N,)."""
    factor = torch.linalg.cholesky(covariance)
    whitened = torch.linalg.solve_triangular(factor, x.T, upper=False)
    noise = floor * torch.cholesky_inverse(factor).diagonal().sum()
    cost: Tensor = factor.diagonal().log().sum() + (whitened.square().sum(0) + noise) / 2
    return cost


def _mean_cost(
    second_moment: Float[Tensor, "Dx Dx"], covariance: Float[Tensor, "Dx Dx"], floor: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Mean of :func:`_costs` over samples with that second moment."""
    factor = torch.linalg.cholesky(covariance)
    solved = torch.cholesky_solve(add_noise(second_moment, floor), factor)
    cost: Tensor = factor.diagonal().log().sum() + solved.diagonal().sum() / 2
    return cost
