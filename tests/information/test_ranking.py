from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_ckptkd.information.ranking import (
    ScoreRule,
    choose_spaced,
    normalise,
    rank_by_score,
    rank_half,
    rank_last,
    rank_spaced,
)

STEPS = torch.arange(1, 11, dtype=torch.float64) * 10


def test_normalise() -> None:
    values = torch.tensor([2.0, 4.0, -1.0], dtype=torch.float64)
    assert normalise(values, "max").tolist() == [0.5, 1.0, 0.0]
    assert normalise(values + 2, "minmax").tolist() == pytest.approx([0.6, 1.0, 0.0])
    for how in ("max", "minmax"):
        assert normalise(torch.zeros(3), how).tolist() == [0, 0, 0]
        assert normalise(torch.full((3,), -2.0), how).tolist() == [0, 0, 0]

    assert normalise(values, "entropy", 8.0).tolist() == [0.25, 0.5, 0.0]
    stacked = torch.stack([values, 2 * values])
    assert normalise(stacked, "max").tolist() == [[0.5, 1.0, 0.0]] * 2, "each row by itself"


@pytest.mark.parametrize(("ties", "first"), [("later", [2, 1]), ("earlier", [1, 2]), ("score", [1, 2])])
def test_of_exactly_equal_scores(ties: str, first: list[int]) -> None:
    scores = torch.tensor([1.0, 3.0, 3.0, 2.0]).double()
    order = rank_by_score(scores, scores.expand(5, 4), torch.tensor([1, 2, 3, 4]), ties)
    assert order.tolist() == [*first, 3, 0]


def test_scores_within_a_standard_error_of_their_difference_are_equal() -> None:
    scores = torch.tensor([1.0, 0.99, 0.9]).double()
    shared = 0.2 * torch.randn(20, 1).double()  # moves all alike, and so says nothing of their differences
    own = torch.zeros(20, 3).double()
    own[:, 1] = 0.01 * torch.randn(20)
    steps = torch.tensor([1, 2, 3])
    assert rank_by_score(scores, scores + shared + own, steps, "later").tolist() == [1, 0, 2]
    assert rank_by_score(scores, scores + shared + own / 100, steps, "later").tolist() == [0, 1, 2]
    swapped = torch.tensor([2, 1, 3])
    assert rank_by_score(scores, scores + shared + own, swapped, "earlier").tolist() == [1, 0, 2]
    assert rank_by_score(scores, scores + shared + own, swapped, "score").tolist() == [0, 1, 2]


def test_score_rule() -> None:
    x = torch.tensor([6.0, 4.0, 3.0]).double()
    y = torch.tensor([0.5, 1.9, 2.0], dtype=torch.float64)
    assert ScoreRule().scores(x, y).tolist() == pytest.approx([1.25, 4 / 6 + 0.95, 1.5])
    assert ScoreRule(label_floor=0.9).scores(x, y).tolist() == pytest.approx([0.25, 4 / 6 + 0.95, 1.5])
    assert ScoreRule(input_weight=0.0, label_weight=2.0).scores(x, y).tolist() == pytest.approx([0.5, 1.9, 2.0])
    entropy = ScoreRule(normalisation="entropy", input_entropy=12.0, label_entropy=4.0)
    assert entropy.scores(x, y).tolist() == pytest.approx([0.625, 4 / 12 + 1.9 / 4, 0.75])


def test_replicates_fall_on_the_same_side_of_the_floor() -> None:
    x, y = torch.tensor([[6.0, 4.0], [1.9, 2.0]], dtype=torch.float64)
    wiggled = y + torch.tensor([[0.02, 0.0], [-0.02, 0.0]])
    rule = ScoreRule(label_floor=0.95)
    assert rule.above_floor(y).tolist() == [True, True]
    assert rule.above_floor(wiggled).tolist() == [[True, True], [False, True]]
    scores = rule.scores(x.expand(2, 2), wiggled, rule.above_floor(y))
    assert float((scores[0] - scores[1]).abs().max()) == pytest.approx(0.02)


@pytest.mark.parametrize("normalisation", ["max", "minmax", "entropy"])
def test_what_a_nat_is_worth(normalisation: str) -> None:
    x, y = torch.tensor([[6.0, 4.0, 3.0], [0.5, 1.9, 2.0]], dtype=torch.float64)
    rule = ScoreRule(0.5, 2.0, normalisation, 0.0, 12.0, 4.0)
    worth_x, worth_y = rule.weights_of_nats(x, y)
    scores = rule.scores(x, y)
    assert float(scores[1] - scores[2]) == pytest.approx(worth_x * 1.0 - worth_y * 0.1)


@pytest.mark.parametrize(
    ("order", "count", "chosen"),
    [
        ([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], 3, [9, 7, 5]),
        ([4, 5, 3, 9, 0, 1, 2, 6, 7, 8], 2, [4, 9]),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 10, list(range(10))),
    ],
)
def test_spaced_choice(order: list[int], count: int, chosen: list[int]) -> None:
    assert choose_spaced(torch.tensor(order), STEPS, count).tolist() == chosen


@pytest.mark.parametrize(
    ("rank", "count", "order"),
    [
        (rank_last, 1, [9]),
        (rank_last, 3, [9, 8, 7]),
        (rank_half, 1, [4]),
        (rank_half, 3, [4, 3, 5]),
        (rank_spaced, 1, [9]),
        (rank_spaced, 2, [9, 4]),
        (rank_spaced, 5, [9, 7, 5, 3, 1]),
        (rank_spaced, 10, list(range(9, -1, -1))),
    ],
)
def test_rank_by_position(rank: Callable[[Tensor, int], Tensor], count: int, order: list[int]) -> None:
    assert rank(STEPS, count).tolist() == order


def test_half_is_half_of_the_steps_not_of_the_snapshots() -> None:
    assert rank_half(torch.tensor([1.0, 2.0, 3.0, 60.0, 100.0]), 1).tolist() == [3]


def test_spaced_never_takes_one_twice() -> None:
    assert sorted(rank_spaced(torch.tensor([98.0, 99.0, 100.0]), 3).tolist()) == [0, 1, 2]
