from __future__ import annotations

import itertools

import pytest

from lightning_ckptkd import ArgumentError
from lightning_ckptkd.snapshots import Snapshot
from lightning_ckptkd.snapshots.retention import Retention


def harvest(retention: Retention, count: int, size: int = 10) -> list[int]:
    """The epochs that are there after each has been harvested in turn."""
    kept: list[Snapshot] = []
    for epoch in range(count):
        kept = retention.kept([*kept, Snapshot(epoch, 7 * (epoch + 1), f"{epoch}.safetensors", "", size)])
    return [snapshot.epoch for snapshot in kept]


def test_all_and_the_last() -> None:
    assert harvest(Retention(), 5) == [0, 1, 2, 3, 4]
    assert harvest(Retention(last=2), 5) == [3, 4]
    assert harvest(Retention(last=9), 5) == [0, 1, 2, 3, 4]


def test_a_budget_covers_the_whole_training_evenly() -> None:
    assert harvest(Retention(max_bytes=10), 4) == [3]
    assert harvest(Retention(max_bytes=25), 4) == [0, 3]
    assert harvest(Retention(max_bytes=40), 10) == [0, 4, 8, 9]
    for room, count in itertools.product((4, 5, 8, 13), range(4, 120)):
        epochs = harvest(Retention(max_bytes=10 * room), count)
        assert len(epochs) == min(room, count)
        assert epochs[0] == 0
        assert epochs[-1] == count - 1
        gaps = [later - earlier for earlier, later in itertools.pairwise(epochs[:-1])]
        assert max(gaps) <= 2 * min(gaps), (room, count, epochs)
        assert max(gaps) <= max(1, 2 * count / (room - 1)), (room, count, epochs)


def test_what_can_not_be_used() -> None:
    with pytest.raises(ArgumentError, match="Give keep_last=2 or keep_bytes=5, not both"):
        Retention(2, 5)
    with pytest.raises(ArgumentError, match="keep_last should be 1 or more, got 0"):
        Retention(0)
    with pytest.raises(ArgumentError, match="keep_bytes=99 is less than one snapshot needs, 100 bytes"):
        Retention(max_bytes=99).check_room(100)
