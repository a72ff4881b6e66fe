from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.losses import FeatureLoss, feature_loss


def features(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def set_projector(loss: FeatureLoss, weight: torch.Tensor, bias: torch.Tensor) -> FeatureLoss:
    loss = loss.double()
    with torch.no_grad():
        loss.projector.weight.copy_(weight.reshape(loss.projector.weight.shape))
        loss.projector.bias.copy_(bias)
    return loss


def bilinear(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Interpolation between the centres of pixels, the border's values beyond the outer centres."""
    for axis, length in zip((2, 3), size, strict=True):
        old = maps.shape[axis]
        at = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0, old - 1)
        low = np.minimum(np.floor(at).astype(int), old - 1)
        high = np.minimum(low + 1, old - 1)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(4)])
        maps = (1 - share) * maps.take(low, axis) + share * maps.take(high, axis)
    return maps


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 2, 5)])
def test_against_numpy_in_float64(shape: tuple[int, ...]) -> None:
    student, teacher = features(0, *shape), features(1, *shape)
    expected = np.mean((student.numpy() - teacher.numpy()) ** 2)
    assert float(feature_loss(student, teacher)) == pytest.approx(expected, rel=1e-10)


def test_gradcheck() -> None:
    student, teacher = (features(seed, 4, 3).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(feature_loss, (student, teacher))
    spatial = FeatureLoss(3, 2, spatial=True).double()
    for size in ((2, 6), (4, 4), (5, 7)):
        maps = features(0, 2, 3, 4, 4).requires_grad_(), features(1, 2, 2, *size).requires_grad_()
        assert torch.autograd.gradcheck(spatial, maps)


def test_zero_only_where_they_are_equal_and_the_batch_mean() -> None:
    student, teacher = features(0, 4, 3), features(1, 4, 3)
    assert float(feature_loss(student, student.clone())) == 0
    assert float(feature_loss(student, student + 2)) == pytest.approx(4, rel=1e-12)
    twice = feature_loss(student.repeat(2, 1), teacher.repeat(2, 1))
    assert float(twice) == pytest.approx(float(feature_loss(student, teacher)), rel=1e-12)


def test_large_features() -> None:
    student = torch.full((2, 2), 1e4, requires_grad=True)
    loss = feature_loss(student, -student.detach())
    loss.backward()
    assert loss.item() == pytest.approx(4e8)
    assert student.grad is not None
    assert student.grad.tolist() == [[1e4, 1e4]] * 2


@pytest.mark.parametrize("positions", [(), (7,)])
def test_vectors_are_projected(positions: tuple[int, ...]) -> None:
    student, teacher = features(0, 6, *positions, 4), features(1, 6, *positions, 3)
    weight, bias = features(2, 3, 4), features(3, 3)
    loss = set_projector(FeatureLoss(4, 3, spatial=False), weight, bias)
    expected = np.mean((student.numpy() @ weight.numpy().T + bias.numpy() - teacher.numpy()) ** 2)
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("size", [(6, 4), (3, 2), (6, 1), (12, 8), (7, 5), (3, 8), (9, 2)])
def test_maps_are_projected_and_resized(size: tuple[int, int]) -> None:
    """From 6 x 4: sides that shrink, by whole factors here, are averaged in blocks; those that grow, interpolated."""
    student, teacher = features(0, 5, 4, 6, 4), features(1, 5, 3, *size)
    weight, bias = features(2, 3, 4), features(3, 3)
    loss = set_projector(FeatureLoss(4, 3, spatial=True), weight, bias)
    projected = np.einsum("nchw,dc->ndhw", student.numpy(), weight.numpy()) + bias.numpy()[:, None, None]
    height, width = min(6, size[0]), min(4, size[1])
    pooled = projected.reshape(5, 3, height, 6 // height, width, 4 // width).mean((3, 5))
    expected = np.mean((bilinear(pooled, size) - teacher.numpy()) ** 2)
    assert loss(student, teacher).item() == pytest.approx(expected, rel=1e-10)


def test_the_projector_is_made_at_once_and_trained() -> None:
    torch.manual_seed(0)
    for spatial, shape in ((False, ()), (True, (3, 3))):
        loss = FeatureLoss(4, 2, spatial)
        assert type(loss.projector) is (nn.Conv2d if spatial else nn.Linear)
        assert sum(parameter.numel() for parameter in loss.parameters()) == 4 * 2 + 2
        student = torch.randn(16, 4, *shape)
        teacher = torch.stack([student[:, 1] - 1, student[:, 0] + student[:, 3]], 1)
        before = loss(student, teacher).item()
        optimizer = torch.optim.SGD(loss.parameters(), lr=0.5)
        for _ in range(50):
            optimizer.zero_grad()
            loss(student, teacher).backward()
            optimizer.step()
        assert loss(student, teacher).item() < 0.01 * before


def test_half_precision_features_are_compared_in_float32() -> None:
    student, teacher = (features(seed, 4, 3).bfloat16() for seed in (0, 1))
    found = feature_loss(student, teacher)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(feature_loss(student.double(), teacher.double())), rel=1e-5)
    assert feature_loss(student, teacher.double()).dtype == torch.float64
    maps = features(0, 2, 3, 4, 4).bfloat16(), features(1, 2, 2, 3, 6).bfloat16()
    loss = FeatureLoss(3, 2, spatial=True)
    exact = loss(*maps).item()
    with torch.autocast("cpu", torch.bfloat16):
        cast = loss(*maps)
    for value in (loss(*maps), cast):
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact, rel=0.02)
    assert loss.bfloat16()(*maps).dtype == torch.float32


def test_half_precision_maps_are_resized_in_float32() -> None:
    maps = features(0, 2, 3, 4, 4).bfloat16(), features(1, 2, 3, 2, 7).bfloat16()
    loss = set_projector(FeatureLoss(3, 3, spatial=True), torch.eye(3), torch.zeros(3))
    exact = loss(*maps).item()
    assert loss.bfloat16()(*maps).item() == pytest.approx(exact, rel=1e-5)


def test_bad_arguments() -> None:
    for dims in ((0, 3), (3, 0)):
        with pytest.raises(ArgumentError, match=rf"{'student_dim' if dims[0] == 0 else 'teacher_dim'} should be 1 or"):
            FeatureLoss(*dims, spatial=False)
    with pytest.raises(ArgumentError, match=r"one shape, but have \(4, 3\) and \(1, 3\)"):
        feature_loss(torch.ones(4, 3), torch.ones(1, 3))


@pytest.mark.parametrize(
    ("spatial", "student", "teacher", "message"),
    [
        (True, (2, 4, 5, 5), (2, 4, 5, 5), r"teacher_features should have the shape \(N, 3, H, W\), .* \(2, 4, 5, 5\)"),
        (True, (2, 3, 5, 5), (2, 3, 5, 5), r"student_features should have the shape \(N, 4, H, W\), .* \(2, 3, 5, 5\)"),
        (True, (2, 4), (2, 3, 5, 5), r"student_features should have the shape \(N, 4, H, W\), .* \(2, 4\)"),
        (True, (2, 4, 5, 5), (1, 3, 5, 5), r"same samples and positions"),
        (False, (2, 3), (2, 3), r"student_features should have the shape \(N, ..., 4\), .* \(2, 3\)"),
        (False, (2, 4), (2, 4), r"teacher_features should have the shape \(N, ..., 3\), .* \(2, 4\)"),
        (False, (4,), (3,), r"student_features should have the shape \(N, ..., 4\), .* \(4,\)"),
        (False, (2, 4), (1, 3), r"same samples and positions"),
        (False, (2, 6, 4), (2, 7, 3), r"same samples and positions"),
    ],
)
def test_shapes_that_cannot_match(
    spatial: bool, student: tuple[int, ...], teacher: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        FeatureLoss(4, 3, spatial)(torch.ones(student), torch.ones(teacher))
