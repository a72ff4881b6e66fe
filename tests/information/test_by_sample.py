from __future__ import annotations

import math

import pytest
import torch

from lightning_ckptkd.information.by_sample import gains_by_sample, sum_by_sample, values_by_sample
from lightning_ckptkd.information.uncertainty import jackknife_error, leave_one_out


def test_the_mean_is_that_over_rows() -> None:
    samples = torch.tensor([0, 0, 0, 1, 3, 3])  # sample 2 has none
    values = torch.tensor([1.0, 2.0, 6.0, -4.0, 0.5, 3.5])
    totals = sum_by_sample(values, samples, 4)
    assert totals.tolist() == [9.0, -4.0, 0.0, 4.0]
    found = values_by_sample(totals, torch.bincount(samples, minlength=4))
    assert float(found.mean()) == pytest.approx(float(values.mean()), abs=1e-15)
    assert float(found[2]) == pytest.approx(float(values.mean()), abs=1e-15), "no row moves nothing"


def test_one_row_a_sample_is_that_row() -> None:
    values = torch.randn(50, dtype=torch.float64)
    assert torch.equal(values_by_sample(values, torch.ones(50)), values)


def test_the_error_is_by_samples() -> None:
    """Rows that repeat their sample's value tell no more than one would; by rows the error would be a tenth of it."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4000, generator=generator, dtype=torch.float64)
    counts = torch.full((4000,), 100)
    by_sample = values_by_sample(means * counts, counts)
    errors = [float(jackknife_error(leave_one_out(by_sample, seed))) for seed in range(40)]
    assert sum(errors) / 40 == pytest.approx(1 / math.sqrt(4000), rel=0.1)


def test_the_error_of_samples_of_different_lengths() -> None:
    """Against the spread of the ratio over fresh draws."""
    generator = torch.Generator().manual_seed(0)
    ratios, errors = [], []
    for _ in range(300):
        counts = torch.randint(1, 20, (400,), generator=generator)
        totals = (counts + 5 * torch.randn(400, generator=generator)) * 0.1 * counts
        values = values_by_sample(totals, counts)
        ratios.append(float(totals.sum() / counts.sum()))
        assert float(values.mean()) == pytest.approx(ratios[-1])
        errors.append(float(jackknife_error(leave_one_out(values, 0))))
    spread = float(torch.tensor(ratios).std())
    assert float(torch.tensor(errors).mean()) == pytest.approx(spread, rel=0.15)


def test_a_term_is_the_sum_over_units() -> None:
    gains, units = torch.randn(60).double(), torch.arange(60) % 3
    samples = torch.arange(60) // 3
    values = gains_by_sample(gains, samples, 20, units)
    expected = sum(float(gains[units == unit].mean()) for unit in range(3))
    assert float(values.mean()) == pytest.approx(expected)
    torch.testing.assert_close(values, gains.view(20, 3).sum(1), msg="one row of each unit a sample: their sum")
