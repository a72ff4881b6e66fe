from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_ckptkd import MISelector, SnapshotError, SnapshotStore
from lightning_ckptkd.snapshots import Selection


@pytest.fixture
def selected(harvest: Path) -> Path:
    MISelector(rule="spaced", num_teachers=2).select(harvest, progress=False)
    return harvest


def change(folder: Path, **changes: object) -> None:
    path = folder / "selection.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_round_trip(selected: Path) -> None:
    store = SnapshotStore.open(selected)
    selection = Selection.read(store)
    assert selection.rule == "spaced"
    assert selection.settings["num_teachers"] == 2
    assert [candidate.file for candidate in selection.candidates] == [snapshot.file for snapshot in store.snapshots]
    selection.write(SnapshotStore.open(selected))
    assert Selection.read(store) == selection


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 9}, "is of version 9"),
        ({"run_id": "another"}, "was made for the run 'another'"),
        ({"chosen": []}, "chooses no snapshot"),
        ({"chosen": ["../../etc/passwd"]}, "which the manifest does not have"),
        ({"snapshots": [{}]}, "'file' should be a string but is nothing"),
    ],
)
def test_what_can_not_be_trusted(selected: Path, changes: dict[str, object], message: str) -> None:
    change(selected, **changes)
    with pytest.raises(SnapshotError, match=message):
        Selection.read(SnapshotStore.open(selected))


def test_a_snapshot_that_changed_since_the_choice(selected: Path) -> None:
    document = json.loads((selected / "selection.json").read_text())
    for candidate in document["snapshots"]:
        candidate["sha256"] = "0" * 64
    change(selected, snapshots=document["snapshots"])
    with pytest.raises(SnapshotError, match="or has with another hash"):
        Selection.read(SnapshotStore.open(selected))
