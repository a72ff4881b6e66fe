"""The intervals that the tables of the docs show."""

from __future__ import annotations

import math

import pytest

from benchmarks.rows import half_width, mean_of_groups


def test_one_group_is_students_t() -> None:
    values = [1.0, 2.0, 4.0, 4.5, 7.0]
    assert mean_of_groups([values]) == (pytest.approx(3.7), pytest.approx(half_width(values)))
    assert half_width(values) == pytest.approx(2.776445 * 2.334524 / math.sqrt(5), rel=1e-5)


def test_two_groups_of_one_spread_have_the_freedom_of_both() -> None:
    mean, width = mean_of_groups([[0.0, 2.0], [10.0, 12.0]])
    assert mean == 6
    assert width == pytest.approx(4.302653 * math.sqrt(0.5), rel=1e-5)  # t of two degrees of freedom


def test_a_group_without_spread_adds_none() -> None:
    mean, width = mean_of_groups([[1.0, 1.0, 1.0], [0.0, 1.0, 5.0]])
    assert mean == pytest.approx(1.5)
    assert width == pytest.approx(half_width([0.0, 1.0, 5.0]) / 2)
    assert mean_of_groups([[0.0, 0.0]]) == (0, 0)


def test_a_single_value_has_no_interval() -> None:
    mean, width = mean_of_groups([[1.0], [2.0, 3.0]])
    assert mean == 1.75
    assert math.isnan(width)
    assert math.isnan(half_width([1.0]))
