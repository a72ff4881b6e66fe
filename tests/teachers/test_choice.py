from __future__ import annotations

from typing import Any

import pytest

from lightning_ckptkd import ArgumentError, MISelector, SelectionError, SnapshotError, SnapshotStore
from lightning_ckptkd.teachers import choose_teachers


def epochs(store: SnapshotStore, choice: Any) -> list[int]:
    return [snapshot.epoch for snapshot in choose_teachers(store, choice)]


def test_what_was_selected_the_best_first(store: SnapshotStore) -> None:
    MISelector(rule="spaced", num_teachers=2).select(store.folder, progress=False)
    assert epochs(store, None) == epochs(store, "selected") == [3, 1]


def test_positions_and_epochs(store: SnapshotStore) -> None:
    assert epochs(store, "full") == [3]
    assert epochs(store, "half") == [1]
    assert epochs(store, [2, 0]) == [2, 0]


def test_nothing_was_selected(store: SnapshotStore) -> None:
    with pytest.warns(UserWarning, match=r"has no selection.json: the last snapshot alone will teach"):
        assert epochs(store, None) == [3]
    with pytest.raises(SnapshotError, match=r"selection.json is missing"):
        choose_teachers(store, "selected")


def test_bad_choices(store: SnapshotStore) -> None:
    with pytest.raises(ArgumentError, match="choice='best' is unknown"):
        choose_teachers(store, "best")
    with pytest.raises(SelectionError, match=r"no snapshot of the epochs \[7\]; it has \[0, 1, 2, 3\]"):
        choose_teachers(store, [1, 7])
    with pytest.raises(SelectionError, match=r"choice=\[\]"):
        choose_teachers(store, [])
