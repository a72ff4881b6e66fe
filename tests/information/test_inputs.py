"""Principal components of X, whichever of its two sides is the longer one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_ckptkd.information import inputs
from lightning_ckptkd.information.inputs import component_bytes, principal_components

N = 120


def vectors(dim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Correlated numbers, far from zero, one of which never changes."""
    draw = torch.Generator().manual_seed(dim)
    x = torch.randn(N, 40, generator=draw, dtype=dtype) @ torch.randn(40, dim, generator=draw, dtype=dtype)
    x = x + 0.5 * torch.randn(N, dim, generator=draw, dtype=dtype) + 100
    x[:, 0] = 7
    return x


def by_singular_values(x: Tensor, count: int) -> Tensor:
    x = x.double()
    left, values, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    return left[:, :count] * values[:count]


def of_one_sign(scores: Tensor) -> Tensor:
    return scores * scores.gather(0, scores.abs().argmax(0, keepdim=True)).sign()


@pytest.mark.parametrize("dim", [N - 1, N, N + 1, 1000])
@pytest.mark.parametrize("block", [2**22, 3 * N + 1])
def test_scores_on_both_sides_of_a_square(dim: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_BLOCK", block)
    found = principal_components(vectors(dim), 20)
    torch.testing.assert_close(of_one_sign(found), of_one_sign(by_singular_values(vectors(dim), 20)))


def test_rows_repeated_or_columns_repeated_tell_the_same() -> None:
    """The same numbers with D below N and, each of them ten times, with D above it."""
    narrow = vectors(50)
    wide = narrow.repeat(1, 10) / 10**0.5
    ours, theirs = (of_one_sign(principal_components(x, 15)) for x in (narrow, wide))
    torch.testing.assert_close(ours, theirs)


def test_what_never_changes_is_left_out_of_wide_vectors_too() -> None:
    varying = torch.randn(N, 3, generator=torch.Generator().manual_seed(0))
    x = torch.cat([varying, torch.full((N, 500), 9.0)], 1)
    assert principal_components(x, 64).shape == (N, 3)
    assert principal_components(torch.ones(N, 500), 64).shape == (N, 0)


def test_the_memory_of_ten_seconds_of_sound() -> None:
    assert component_bytes(2000, 160_000) < 200e6 < 8 * 160_000**2
    x = vectors(3000, torch.float32)
    found = of_one_sign(principal_components(x, 5))
    torch.testing.assert_close(found, of_one_sign(by_singular_values(x, 5)))
