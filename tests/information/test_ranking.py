from __future__ import annotations

import pytest
import torch

from lightning_ckptkd.information.ranking import normalise, rank_by_position, rank_descending

STEPS = torch.arange(1, 11, dtype=torch.float64) * 10


def test_normalise() -> None:
    values = torch.tensor([2.0, 4.0, -1.0], dtype=torch.float64)
    assert normalise(values, "max").tolist() == [0.5, 1.0, 0.0]
    assert normalise(values + 2, "minmax").tolist() == pytest.approx([0.6, 1.0, 0.0])
    for how in ("max", "minmax"):
        assert normalise(torch.zeros(3), how).tolist() == [0, 0, 0]
        assert normalise(torch.full((3,), -2.0), how).tolist() == [0, 0, 0]


def test_of_equal_scores_the_later_is_first() -> None:
    order = rank_descending(torch.tensor([1.0, 3.0, 3.0, 2.0]), torch.tensor([1, 2, 3, 4]))
    assert order.tolist() == [2, 1, 3, 0]


@pytest.mark.parametrize(
    ("rule", "count", "order"),
    [
        ("full", 1, [9]),
        ("full", 3, [9, 8, 7]),
        ("half", 1, [4]),
        ("half", 3, [4, 3, 5]),
        ("spaced", 1, [9]),
        ("spaced", 2, [9, 4]),
        ("spaced", 5, [9, 7, 5, 3, 1]),
        ("spaced", 10, list(range(9, -1, -1))),
    ],
)
def test_rank_by_position(rule: str, count: int, order: list[int]) -> None:
    assert rank_by_position(STEPS, rule, count).tolist() == order


def test_half_is_half_of_the_steps_not_of_the_snapshots() -> None:
    assert rank_by_position(torch.tensor([1.0, 2.0, 3.0, 60.0, 100.0]), "half", 1).tolist() == [3]


def test_spaced_never_takes_one_twice() -> None:
    assert sorted(rank_by_position(torch.tensor([98.0, 99.0, 100.0]), "spaced", 3).tolist()) == [0, 1, 2]
