from __future__ import annotations

import pytest
import torch

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
