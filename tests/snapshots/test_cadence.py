from __future__ import annotations

from typing import Any

import pytest

from lightning_ckptkd import ArgumentError
from lightning_ckptkd.snapshots.cadence import Cadence


def epochs_taken(cadence: Cadence, total: int = 10) -> list[int]:
    return [epoch for epoch in range(total) if cadence.due_after_epoch(epoch, (epoch + 1) / total)]


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, list(range(10))),
        ({"every_n_epochs": 4}, [3, 7]),
        ({"epochs": [0, 7]}, [0, 7]),
        ({"window": (0.0, 0.5)}, [0, 1, 2, 3, 4]),
        ({"window": (0.5, 1.0)}, [5, 6, 7, 8, 9]),
        ({"every_n_epochs": 2, "window": (0.5, 1.0)}, [5, 7, 9]),
        ({"every_n_train_steps": 3}, []),
    ],
)
def test_epochs(options: dict[str, Any], taken: list[int]) -> None:
    assert epochs_taken(Cadence(**options)) == taken


def test_steps_that_a_batch_jumps_over_still_count() -> None:
    cadence = Cadence(every_n_train_steps=3)
    assert [step for step in range(2, 14, 2) if cadence.due_after_step(step - 2, step, None)] == [4, 6, 10, 12]
    assert not cadence.due_after_step(6, 6, None)
    assert not Cadence().due_after_step(0, 1, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs should be 1 or more, got 0"),
        ({"every_n_train_steps": -2}, "every_n_train_steps should be 1 or more, got -2"),
        ({"every_n_epochs": 1, "epochs": [1]}, "Give one of every_n_epochs, epochs"),
        ({"epochs": []}, "epochs should list epochs"),
        ({"epochs": [-1]}, "epochs should list epochs from 0 on"),
        ({"window": (0.6, 0.5)}, "window should be two fractions"),
        ({"window": (0.0, 1.5)}, "window should be two fractions"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Cadence(**options)


@pytest.mark.parametrize(
    ("options", "max_epochs", "max_steps", "expected"),
    [
        ({}, 10, None, 10),
        ({"every_n_epochs": 5}, 10, None, 2),
        ({"every_n_epochs": 4}, 10, None, 2),
        ({"every_n_train_steps": 25}, None, 100, 4),
        ({"epochs": [0, 9, 10]}, 10, None, 2),
        ({"every_n_epochs": 2, "window": (0.5, 1.0)}, 10, None, 3),
        ({"window": (0.5, 1.0)}, 10, 100, None),
        ({}, None, None, None),
        ({"epochs": [3, 4]}, None, None, 2),
    ],
)
def test_how_many_are_to_come(
    options: dict[str, Any], max_epochs: int | None, max_steps: int | None, expected: int | None
) -> None:
    assert Cadence(**options).count(max_epochs, max_steps, 100) == expected
