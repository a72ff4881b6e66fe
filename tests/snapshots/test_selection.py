from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_ckptkd import MISelector, SnapshotError, SnapshotStore
from lightning_ckptkd.snapshots import Selection
from lightning_ckptkd.snapshots.seal import sealed


@pytest.fixture
def selected(harvest: Path) -> Path:
    MISelector(rule="spaced", num_teachers=2).select(harvest, progress=False)
    return harvest


def change(folder: Path, **changes: object) -> None:
    """As somebody would who knows how to seal."""
    path = folder / "selection.json"
    path.write_text(json.dumps(sealed({**json.loads(path.read_text()), **changes})))


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


@pytest.mark.parametrize("name", ["chosen", "snapshots", "settings", "probe", "created", "seal"])
def test_what_was_edited_is_not_believed(selected: Path, name: str) -> None:
    store = SnapshotStore.open(selected)
    path = selected / "selection.json"
    document = json.loads(path.read_text())
    if name == "chosen":  # another snapshot of the manifest, that was not chosen
        document["chosen"][0] = next(
            snapshot.file for snapshot in store.snapshots if snapshot.file not in document["chosen"]
        )
    elif name == "snapshots":
        document["snapshots"][0]["score"] = 9.0
    elif name == "seal":
        del document["seal"]
    else:
        document[name] = {} if document[name] else {"size": 3}
    path.write_text(json.dumps(document))
    with pytest.raises(
        SnapshotError, match=r"selection.json was changed since it was written.*select again: `ckptkd select"
    ):
        Selection.read(store)
    MISelector(rule="spaced", num_teachers=2).select(selected, progress=False)  # the remedy
    assert len(Selection.read(store).chosen) == 2


def test_a_snapshot_that_is_named_twice(selected: Path) -> None:
    document = json.loads((selected / "selection.json").read_text())
    for name in ("chosen", "snapshots"):
        change(selected, **{**document, name: [*document[name], document[name][0]]})
        with pytest.raises(SnapshotError, match="names the same snapshot twice; select again"):
            Selection.read(SnapshotStore.open(selected))


@pytest.mark.parametrize("name", ["epoch", "global_step"])
def test_another_epoch_than_the_manifest_has(selected: Path, name: str) -> None:
    document = json.loads((selected / "selection.json").read_text())
    for candidate in document["snapshots"]:
        candidate[name] += 1
    change(selected, snapshots=document["snapshots"])
    with pytest.raises(SnapshotError, match="or has with another hash, epoch or step"):
        Selection.read(SnapshotStore.open(selected))


def test_a_snapshot_that_changed_since_the_choice(selected: Path) -> None:
    document = json.loads((selected / "selection.json").read_text())
    for candidate in document["snapshots"]:
        candidate["sha256"] = "0" * 64
    change(selected, snapshots=document["snapshots"])
    with pytest.raises(SnapshotError, match="or has with another hash"):
        Selection.read(SnapshotStore.open(selected))
