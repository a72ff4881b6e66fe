"""Matching of the student's features with each teacher's (FitNets): the option, and the projectors that it asks for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses import FeatureLoss
from lightning_ckptkd.losses.arguments import check_term_weight
from lightning_ckptkd.trainer.seeding import keep_random_state, seed_by


@dataclass(frozen=True)
class FeatureMatching:
    """Bring a layer's output in the student close to one in the teachers (FitNets, arXiv 1412.6550).

    ``weight`` times the mean over a step's teachers of their :class:`~lightning_ckptkd.losses.FeatureLoss` is added to
    the loss of :class:`DistillationModule`. Each teacher has a projector of its own, trained with the student in the
    steps that the teacher runs in.

    Attributes:
        student_layer: Attribute path, in the student, of the module whose output is matched; the last one, where it
            runs several times in a forward pass.
        teacher_layer: The same in a teacher: in what was harvested, so without the path of its ``submodule``.
        student_dim: Channels of the student's maps (N, C, H, W), or the last dimension of its features (N, ..., D).
        teacher_dim: The same of the teachers'.
        spatial: Whether the outputs are maps; heights and widths may differ.
        weight: What the mean is multiplied by, 0 or more.

    Raises:
        ArgumentError: If a dimension is not 1 or more, or the weight negative or not finite.
    """

    student_layer: str
    teacher_layer: str
    student_dim: int
    teacher_dim: int
    spatial: bool = True
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_types(FeatureMatching, vars(self))
        for name, value in (("student_dim", self.student_dim), ("teacher_dim", self.teacher_dim)):
            if value < 1:
                raise ArgumentError(f"{name} should be 1 or more, got {value}.")
        check_term_weight("weight", self.weight)


def make_projectors(option: FeatureMatching, count: int) -> nn.ModuleList:
    """New projectors, one for each teacher.

    Each is drawn by the global seed and its place alone, so the others do not change where a teacher is added, and
    nobody else's random numbers do.
    """
    seed = torch.initial_seed()
    made = nn.ModuleList()
    with keep_random_state(), torch.device("cpu"):
        for place in range(count):
            seed_by("projector", seed, place)
            made.append(FeatureLoss(option.student_dim, option.teacher_dim, option.spatial))
    return made
