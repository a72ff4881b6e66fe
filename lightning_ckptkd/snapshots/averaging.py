"""The mean of the weights of snapshots, which are read one after another."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_ckptkd.errors import SnapshotError
from lightning_ckptkd.snapshots.layout import find_ties

_NAMES_SHOWN = 5
_LEAVE_OUT = "Choose without a soup: ensemble='top'."


class WeightMean:
    """The mean of state dicts; of one at first.

    Floating-point and complex tensors are averaged, sums being kept in float64 (those of 16 bits in float32) and the
    mean in the first member's type. Integers and booleans (how many batches a BatchNorm has seen, masks, indices) have
    no mean: they stay the first member's. Names that are one tensor in each member are one tensor in the mean.

    Args:
        weights: Of the first member, which says what stays.
        name: Its file, for messages.

    Attributes:
        size: How many members there are.
    """

    def __init__(self, weights: Mapping[str, Tensor], name: str) -> None:
        self._first, self._name = dict(weights), name
        self._ties = find_ties(weights)
        self._sums = {key: _wide(value) for key, value in weights.items() if _has_mean(value)}
        self._differing: set[str] = set()
        self.size = 1

    def add(self, weights: Mapping[str, Tensor], name: str) -> None:
        """Let one more join.

        Args:
            weights: Its weights.
            name: Its file, for messages.

        Raises:
            SnapshotError: If names or shapes are not those of the first member, or a tensor can't be averaged.
        """
        self.check(weights, name)
        self._ties, self._differing = self._common_ties(weights), self._differing | self._differs(weights)
        for key, total in self._sums.items():
            total += _wide(weights[key])
        self.size += 1

    def mean(self, more: Mapping[str, Tensor] | None = None, name: str = "") -> dict[str, Tensor]:
        """The mean of the members, or of the members and one more, who does not join.

        Arguments and errors are those of :meth:`add`.
        """
        size, ties = self.size, self._ties
        if more is not None:
            self.check(more, name)
            size, ties = size + 1, self._common_ties(more)
        mean: dict[str, Tensor] = {}
        for key, value in self._first.items():
            if key in ties:
                continue
            if key not in self._sums:
                mean[key] = value.clone()
                continue
            total = self._sums[key] if more is None else self._sums[key] + _wide(more[key])
            mean[key] = (total / size).to(value.dtype)
        mean.update({key: mean[stored] for key, stored in ties.items()})
        return {key: mean[key] for key in self._first}

    @property
    def kept(self) -> tuple[str, ...]:
        """Names that differ and have no mean, in an order that does not depend on that of a file's tensors."""
        return tuple(sorted(self._differing - self._sums.keys()))

    def differing(self, more: Mapping[str, Tensor] | None = None) -> set[str]:
        """Names whose values are not the same, bit for bit, in all members, and in one more."""
        return self._differing if more is None else self._differing | self._differs(more)

    def check(self, weights: Mapping[str, Tensor], name: str) -> None:
        """Check that weights can be averaged with those of the members.

        Raises:
            SnapshotError: If not.
        """
        first = self._first
        differences = [
            *(f"{key} is missing" for key in first if key not in weights),
            *(f"{key} is extra" for key in weights if key not in first),
            *(
                f"{key} is {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
                for key, value in first.items()
                if key in weights and weights[key].shape != value.shape
            ),
            *(
                f"{key} is {weights[key].dtype} instead of {value.dtype}"
                for key, value in first.items()
                if key in weights and _has_mean(weights[key]) != _has_mean(value)
            ),
        ]
        if differences:
            more = f" and {len(differences) - _NAMES_SHOWN} more" if len(differences) > _NAMES_SHOWN else ""
            raise SnapshotError(
                f"{name} can't be averaged with {self._name}, whose weights have other names, shapes or types: "
                f"{', '.join(differences[:_NAMES_SHOWN])}{more}. {_LEAVE_OUT}"
            )
        narrow = next((key for key in self._sums if weights[key].itemsize < 2 and key in self._differs(weights)), None)
        if narrow is not None:
            raise SnapshotError(
                f"{narrow!r} of {name} is {weights[narrow].dtype}: numbers of so few bits go with a scale of their own "
                f"and have no mean. {_LEAVE_OUT}"
            )

    def _common_ties(self, weights: Mapping[str, Tensor]) -> dict[str, str]:
        theirs = find_ties(weights)
        return {key: stored for key, stored in self._ties.items() if theirs.get(key) == stored}

    def _differs(self, weights: Mapping[str, Tensor]) -> set[str]:
        return {key for key, value in self._first.items() if not _is_same(value, weights[key])}


def _has_mean(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _wide(value: Tensor) -> Tensor:
    """A copy to sum up in."""
    if value.is_complex():
        return value.to(torch.complex128, copy=True)
    return value.to(torch.float32 if value.itemsize == 2 else torch.float64, copy=True)


def _is_same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype:
        return False
    if one.itemsize == 1:  # of some of these types torch compares none
        return torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    return torch.equal(one, other)
