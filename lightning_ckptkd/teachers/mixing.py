"""Mixup (Zhang et al., ICLR 2018, arXiv 1710.09412) and CutMix (Yun et al., ICCV 2019, arXiv 1905.04899)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses import KDLoss, MSELoss
from lightning_ckptkd.tasks.batch import Batch, describe
from lightning_ckptkd.trainer import seeding


def mixup(inputs: Tensor, permutation: Tensor, lam: float) -> Tensor:
    """Mix each sample x with its partner: lam * x + (1 - lam) * x[permutation].

    Args:
        inputs: x, shape (N, ...), floating-point.
        permutation: The partner of each sample, shape (N,).
        lam: Share of the sample itself, in [0, 1].

    Returns:
        Shape (N, ...), the dtype of ``inputs``.
    """
    return lam * inputs + (1 - lam) * inputs[permutation]


def cutmix(inputs: Tensor, permutation: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """Put the pixels of each sample's partner, x[permutation], into a box of x.

    Args:
        inputs: x, shape (N, C, H, W); it is left as it is.
        permutation: The partner of each sample, shape (N,).
        box: Top, left, bottom and right in pixels, the last two exclusive.

    Returns:
        Shape (N, C, H, W).
    """
    top, left, bottom, right = box
    mixed = inputs.clone()
    mixed[:, :, top:bottom, left:right] = inputs[permutation, :, top:bottom, left:right]
    return mixed


def cut_box(height: int, width: int, lam: float, centre: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box of about 1 - lam of the area, cut off at the image's borders, as in CutMix's released code.

    Args:
        height: H in pixels.
        width: W in pixels.
        lam: Share of the image that should stay, in [0, 1].
        centre: Row and column of the box's centre.

    Returns:
        Top, left, bottom and right in pixels, the last two exclusive.
    """
    side = math.sqrt(1 - lam)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    row, column = centre
    return (
        max(row - half_height, 0),
        max(column - half_width, 0),
        min(row + half_height, height),
        min(column + half_width, width),
    )


@dataclass(frozen=True)
class Pairs:
    """Which samples of a batch were mixed, and in which shares.

    Attributes:
        lam: Share of each sample itself, in [0, 1].
        permutation: The partner of each sample, shape (N,).
    """

    lam: float
    permutation: Tensor

    def average(self, own: Tensor, partners: Tensor) -> Tensor:
        """The loss of both: lam * own + (1 - lam) * partners."""
        return self.lam * own + (1 - self.lam) * partners


class Mix(ABC):
    """Mixes the samples of a batch in pairs; lambda, one for the batch, is of Beta(alpha, alpha).

    What is drawn depends on the seed and on which batch of which rank it is. No generator of the process is drawn
    from, so that a resumed run mixes as an uninterrupted one.

    Args:
        alpha: Above 0; small ones leave most batches almost as they are.
        seed: Of the draws.

    Raises:
        ArgumentError: If ``alpha`` can't be used.
    """

    def __init__(self, alpha: float, seed: int = 0) -> None:
        check_types(Mix.__init__, locals())
        if not (alpha > 0 and math.isfinite(alpha)):
            raise ArgumentError(
                f"alpha of {type(self).__name__} should be above 0, got {alpha}. To mix nothing, leave mix out."
            )
        self.alpha, self.seed = alpha, seed

    def __call__(self, inputs: Tensor, step: int, batch: int, rank: int) -> tuple[Tensor, Pairs]:
        """Mix a batch.

        Args:
            inputs: Shape (N, ...), floating-point; they are left as they are.
            step: Optimiser steps taken so far.
            batch: Number of the batch in its epoch: under accumulation several have the same step.
            rank: Of the process.

        Returns:
            The mixed inputs, and what was mixed.

        Raises:
            ArgumentError: If the inputs can't be mixed.
        """
        self.check(inputs)
        key = seeding.mix("pairs", self.seed, step, batch, rank)
        generator = numpy.random.default_rng(int.from_bytes(key, "little"))
        lam = float(generator.beta(self.alpha, self.alpha))
        permutation = torch.from_numpy(generator.permutation(len(inputs))).to(inputs.device, non_blocking=True)
        mixed, lam = self.mix(inputs, permutation, lam, generator)
        return mixed, Pairs(lam, permutation)

    def mix_batch(self, batch: Batch, step: int, number: int, rank: int) -> tuple[Batch, Pairs]:
        """Mix the inputs of a batch: one tensor, or the one floating-point tensor of a mapping.

        Args:
            batch: It is left as it is; so are its targets.
            step: As in :meth:`__call__`.
            number: Of the batch in its epoch; likewise.
            rank: Likewise.

        Returns:
            The batch with mixed inputs, and what was mixed.

        Raises:
            ArgumentError: If the inputs can't be mixed.
        """
        inputs: Any = batch.inputs
        if isinstance(inputs, Tensor) and batch.whole is None:
            mixed, pairs = self(inputs, step, number, rank)
            return replace(batch, inputs=mixed), pairs
        names = [name for name, value in inputs.items() if _is_mixable(value)] if isinstance(inputs, Mapping) else []
        if len(names) != 1 or batch.whole is not None:
            what = "the whole batch" if batch.whole is not None else describe(inputs)
            raise ArgumentError(
                f"mix={type(self).__name__} needs inputs that are one floating-point tensor, or a mapping with one, "
                f"but the network takes {what}. Name the tensor with input_keys, or leave mix out."
            )
        mixed, pairs = self(inputs[names[0]], step, number, rank)
        return replace(batch, inputs={**inputs, names[0]: mixed}), pairs

    def check(self, inputs: Tensor) -> None:
        """Check that inputs can be mixed.

        Raises:
            ArgumentError: If they are not floating-point, or have no samples' dimension.
        """
        if not inputs.is_floating_point() or inputs.dim() == 0:
            raise ArgumentError(
                f"mix={type(self).__name__} needs floating-point inputs of shape (samples, ...), got {inputs.dtype} of "
                f"shape {tuple(inputs.shape)}. Convert them in the dataset's transforms or in unpack_batch(), or leave "
                "mix out."
            )

    @abstractmethod
    def mix(
        self, inputs: Tensor, permutation: Tensor, lam: float, generator: numpy.random.Generator
    ) -> tuple[Tensor, float]:
        """The mixed inputs, and the share of itself that each sample has kept.

        Args:
            inputs: Shape (N, ...).
            permutation: Shape (N,).
            lam: The share that was drawn.
            generator: For what else there is to draw.
        """


def _is_mixable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0


class Mixup(Mix):
    """:func:`mixup` of each batch.

    Args:
        alpha: See :class:`Mix`.
        seed: Of the draws.

    Raises:
        ArgumentError: If ``alpha`` can't be used.
    """

    def __init__(self, alpha: float = 0.2, seed: int = 0) -> None:
        super().__init__(alpha, seed)

    @override
    def mix(
        self, inputs: Tensor, permutation: Tensor, lam: float, generator: numpy.random.Generator
    ) -> tuple[Tensor, float]:
        return mixup(inputs, permutation, lam), lam


class CutMix(Mix):
    """:func:`cutmix` of each batch, with one box whose centre is anywhere in the image.

    The labels' lambda is the share of the pixels that stay, since a box is cut off at the image's borders.

    Args:
        alpha: See :class:`Mix`.
        seed: Of the draws.

    Raises:
        ArgumentError: If ``alpha`` can't be used.
    """

    def __init__(self, alpha: float = 1.0, seed: int = 0) -> None:
        super().__init__(alpha, seed)

    @override
    def check(self, inputs: Tensor) -> None:
        super().check(inputs)
        if inputs.dim() != 4:
            raise ArgumentError(
                "mix=CutMix needs images of shape (samples, channels, height, width), got "
                f"{tuple(inputs.shape)}. Give Mixup instead, or leave mix out."
            )

    @override
    def mix(
        self, inputs: Tensor, permutation: Tensor, lam: float, generator: numpy.random.Generator
    ) -> tuple[Tensor, float]:
        height, width = inputs.shape[2:]
        centre = int(generator.integers(height)), int(generator.integers(width))
        top, left, bottom, right = box = cut_box(height, width, lam, centre)
        return cutmix(inputs, permutation, box), 1 - (bottom - top) * (right - left) / (height * width)


def check_cached_mix(kd_loss: nn.Module | object | None) -> None:
    """Check that a loss with the logits of both partners means something for a student that sees them mixed.

    Args:
        kd_loss: None is :class:`KDLoss`.

    Raises:
        ArgumentError: If it is not known to.
    """
    # a subclass may have changed what makes it true
    if kd_loss is not None and type(kd_loss) not in (KDLoss, MSELoss):
        name = getattr(kd_loss, "__qualname__", type(kd_loss).__name__)
        raise ArgumentError(
            f"mix with cache needs kd_loss to be KDLoss or MSELoss, got {name}: the cached logits are of the samples "
            "before they are mixed, and only these losses can be averaged over both. Give one of them, or leave cache "
            "out."
        )
