"""Matching of intermediate features (FitNets, Romero et al., ICLR 2015, arXiv 1412.6550)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses.arguments import in_one_precision
from lightning_ckptkd.shapes import Float


def feature_loss(
    student_features: Float[Tensor, "*shape"], teacher_features: Float[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    r"""The mean of (f - g)^2 over all elements, with f the student's and g the teacher's features.

    The paper has ||f - g||^2 / 2 of each sample; the mean does not depend on the features' number. Computed in
    float32 at least, also under autocast.

    Args:
        student_features: f, any shape.
        teacher_features: g, the same shape.

    Returns:
        Shape ().

    Raises:
        ArgumentError: If the shapes differ.
    """
    check_types(feature_loss, locals())
    if student_features.shape != teacher_features.shape:
        raise ArgumentError(
            f"student_features and teacher_features should have one shape, but have {tuple(student_features.shape)} "
            f"and {tuple(teacher_features.shape)}. FeatureLoss projects the student's to the teacher's."
        )
    return F.mse_loss(*in_one_precision(student_features, teacher_features))


class FeatureLoss(nn.Module):
    """:func:`feature_loss` of the student's features, projected to the teacher's dimension.

    The projector (the paper's regressor) is a linear layer with a bias, or for maps a 1x1 convolution, also where the
    dimensions agree: the student's features need not lie along the teacher's axes. Its parameters are trained with the
    student's, so give them to the optimiser.

    Where the maps' sizes differ, the projected map is brought to the teacher's size: sides that shrink by adaptive
    average pooling, sides that grow by bilinear interpolation.

    Args:
        student_dim: Channels of the student's maps, or the last dimension of its features.
        teacher_dim: The same of the teacher's.
        spatial: Whether the features are maps, (N, C, H, W), rather than (N, ..., D).

    Raises:
        ArgumentError: If a dimension is not 1 or more.
    """

    def __init__(self, student_dim: int, teacher_dim: int, spatial: bool) -> None:
        super().__init__()
        check_types(FeatureLoss.__init__, locals())
        for name, value in (("student_dim", student_dim), ("teacher_dim", teacher_dim)):
            if value < 1:
                raise ArgumentError(f"{name} should be 1 or more, got {value}.")
        self.student_dim, self.teacher_dim, self.spatial = student_dim, teacher_dim, spatial
        self.projector: nn.Conv2d | nn.Linear = (
            nn.Conv2d(student_dim, teacher_dim, 1) if spatial else nn.Linear(student_dim, teacher_dim)
        )

    @override
    def forward(
        self, student_features: Float[Tensor, "N ..."], teacher_features: Float[Tensor, "N ..."]
    ) -> Float[Tensor, ""]:
        """The loss of a batch.

        Args:
            student_features: Shape (N, student_dim, H, W), or (N, ..., student_dim) where not spatial.
            teacher_features: Shape (N, teacher_dim, H', W'), or (N, ..., teacher_dim) where not spatial.

        Returns:
            Shape ().

        Raises:
            ArgumentError: If the features have other shapes.
        """
        self._check(student_features, teacher_features)
        projected = self.projector(student_features.to(self.projector.weight.dtype))
        projected, teacher_features = in_one_precision(projected, teacher_features)
        if self.spatial:
            projected = _resized(projected, *teacher_features.shape[2:])
        return feature_loss(projected, teacher_features)

    def _check(self, student: Tensor, teacher: Tensor) -> None:
        form = "(N, {}, H, W)" if self.spatial else "(N, ..., {})"
        for name, features, dim in (("student", student, self.student_dim), ("teacher", teacher, self.teacher_dim)):
            fits = features.dim() == 4 if self.spatial else features.dim() >= 2
            if not fits or features.shape[1 if self.spatial else -1] != dim:
                raise ArgumentError(
                    f"{name}_features should have the shape {form.format(dim)}, but have {tuple(features.shape)}. Set "
                    f"{name}_dim of FeatureLoss or FeatureMatching to their dimension, and spatial=True for maps, "
                    "False for vectors."
                )
        shared = slice(0, 1) if self.spatial else slice(0, -1)
        if student.shape[shared] != teacher.shape[shared]:
            raise ArgumentError(
                f"student_features and teacher_features should be of the same samples and positions, but have the "
                f"shapes {tuple(student.shape)} and {tuple(teacher.shape)}. Only maps are resized."
            )


def _resized(maps: Float[Tensor, "N C H W"], height: int, width: int) -> Float[Tensor, "N C {height} {width}"]:
    """Maps (N, C, H, W) brought to another height and width."""
    pooled = min(maps.shape[2], height), min(maps.shape[3], width)
    if maps.shape[2:] != pooled:
        maps = F.adaptive_avg_pool2d(maps, pooled)
    if pooled != (height, width):
        maps = F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
    return maps
