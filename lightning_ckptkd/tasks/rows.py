"""Rows: outputs and targets of a batch, one for each thing that is predicted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_ckptkd.shapes import Bool, Float, Int, Shaped


@dataclass(frozen=True)
class Rows:
    """Outputs and targets of a batch as losses and metrics see them.

    Attributes:
        student: Shape (R, K).
        teachers: Shape (M, R, K); None where no teacher ran.
        targets: Shape (R,): class indices; or (R, K), shares of the classes or numbers.
    """

    student: Float[Tensor, "R K"]
    teachers: Float[Tensor, "M R K"] | None
    targets: Shaped[Tensor, "R ..."]

    @property
    def num_classes(self) -> int:
        """K."""
        return self.student.shape[-1]

    @property
    def is_taught(self) -> bool:
        """Whether a teacher ran."""
        return self.teachers is not None


class PlaneRows(Rows):
    """Rows of pixels, made when somebody asks for them: a loss over classes that lie as planes costs no copy.

    Args:
        student: Shape (N, K, L): a plane of L pixels for each class.
        teachers: Shape (M, N, K, L), or None.
        targets: Shape (N, L).
        valid: Pixels that count, shape (N, L), bool; None for all.

    Attributes:
        planes: The student's, as given.
        teacher_planes: The teachers', likewise.
        plane_targets: Likewise.
        valid: Likewise.
    """

    def __init__(
        self,
        student: Float[Tensor, "N K L"],
        teachers: Float[Tensor, "M N K L"] | None,
        targets: Int[Tensor, "N L"],
        valid: Bool[Tensor, "N L"] | None,
    ) -> None:
        own = {"planes": student, "teacher_planes": teachers, "plane_targets": targets, "valid": valid}
        self.__dict__.update(own)  # a frozen dataclass takes no attribute

    planes: Float[Tensor, "N K L"]
    teacher_planes: Float[Tensor, "M N K L"] | None
    plane_targets: Int[Tensor, "N L"]
    valid: Bool[Tensor, "N L"] | None

    @cached_property
    def student(self) -> Float[Tensor, "R K"]:
        """Shape (R, K)."""
        return self._laid_out(self.planes.movedim(1, -1))

    @cached_property
    def teachers(self) -> Float[Tensor, "M R K"] | None:
        """Shape (M, R, K)."""
        planes = self.teacher_planes
        return None if planes is None else torch.stack([self._laid_out(each.movedim(1, -1)) for each in planes])

    @cached_property
    def targets(self) -> Int[Tensor, " R"]:
        """Shape (R,)."""
        return self._laid_out(self.plane_targets)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.planes.shape[1]

    @property
    def is_taught(self) -> bool:
        """Whether a teacher ran."""
        return self.teacher_planes is not None

    @cached_property
    def _places(self) -> Tensor | None:
        return None if self.valid is None else self.valid.flatten().nonzero().squeeze(1)

    def _laid_out(self, values: Tensor) -> Tensor:
        flat = values.flatten(0, 1)
        return flat if self._places is None else flat[self._places]


@dataclass(frozen=True)
class Labelled:
    """The rows that have a target: what estimators of I(Y;F) and losses that read the target may look at.

    Attributes:
        places: Of these among the P rows of the output, shape (R,).
        targets: Of each, shape (R,) or (R, K).
        samples: The sample that each belongs to, shape (R,).
        units: What each is about, shape (R,), where a sample has several things to tell of (its labels); else None.
    """

    places: Int[Tensor, " R"]
    targets: Shaped[Tensor, "R ..."]
    samples: Int[Tensor, " R"]
    units: Int[Tensor, " R"] | None

    def __len__(self) -> int:
        return len(self.places)

    def take(self, chosen: Int[Tensor, " R"]) -> Labelled:
        """Some of them: ``chosen`` indexes the R rows."""
        units = None if self.units is None else self.units[chosen]
        return Labelled(self.places[chosen], self.targets[chosen], self.samples[chosen], units)


def rows_of_samples(targets: Shaped[Tensor, "N ..."], rows: int) -> Int[Tensor, " P"]:
    """The sample of each row, shape (N * rows,), where each sample of targets (N, ...) has as many rows."""
    return torch.arange(len(targets), device=targets.device).repeat_interleave(rows)


def without_ones(tensor: Shaped[Tensor, "..."]) -> tuple[int, ...]:
    """The shape without dimensions of size 1, but with N: (N,) and (N, 1) hold the same."""
    return (len(tensor), *(size for size in tensor.shape[1:] if size != 1)) if tensor.dim() else ()
