from __future__ import annotations

import pytest
import torch

from benchmarks.selection.coverage import measure, usual
from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.information.uncertainty import jackknife_error, leave_one_out


def test_the_means_without_each_group() -> None:
    values = torch.randn(103).double()
    groups = assign_folds(103, 20, 4)
    expected = [float(values[groups != group].mean()) for group in range(20)]
    assert leave_one_out(values, 4).tolist() == pytest.approx(expected)


def test_the_error_of_a_mean() -> None:
    values = torch.randn(2000).double()
    errors = [float(jackknife_error(leave_one_out(values, seed))) for seed in range(50)]
    assert sum(errors) / 50 == pytest.approx(1 / 2000**0.5, rel=0.1)


@pytest.mark.parametrize(
    "name",
    [
        "head, K = 2, e = 0.001, first class 90%",
        "Gaussian decoder, Student-t of 5 degrees",
        "Gaussian decoder, mixture of two normals, one in 20 of them wide",
    ],
)
def test_two_standard_errors_cover(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 draws; the whole study, with 200 of each, is in docs/estimators.md."""
    monkeypatch.setattr("benchmarks.selection.coverage.LIMIT", 50_000)
    (found,) = [measure(case, draw, gains, 1000, 100) for case, draw, gains in usual() if case == name]
    assert found.covered >= 0.85
    assert found.error == pytest.approx(found.spread, rel=0.3)
