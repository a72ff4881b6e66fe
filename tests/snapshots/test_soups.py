from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_ckptkd import ArgumentError, SnapshotError, SnapshotStore
from lightning_ckptkd.snapshots import SoupSnapshot, commit_soup
from lightning_ckptkd.snapshots.retention import Retention
from tests.snapshots.test_store import weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with SnapshotStore.create(tmp_path, "run", {"submodule": None}) as store:
        for epoch in range(3):
            store.commit(weights(epoch), epoch=epoch, global_step=10 * (epoch + 1))
    return tmp_path


def cook(folder: Path, value: float = 0.5, **recipe: Any) -> SoupSnapshot:
    members = SnapshotStore.open(folder).snapshots[1::-1]
    return commit_soup(folder, weights(value), members, {"kind": "greedy", **recipe})


def test_a_soup_is_beside_the_snapshots_and_read_as_they_are(folder: Path) -> None:
    made = cook(folder)
    store = SnapshotStore.open(folder)
    assert [snapshot.epoch for snapshot in store.snapshots] == [0, 1, 2]
    (soup,) = store.soups
    assert soup == made
    assert soup.label == "soup of epochs 0, 1"
    assert [(member.epoch, member.global_step) for member in soup.members] == [(1, 20), (0, 10)]
    assert {member.sha256 for member in soup.members} == {snapshot.sha256 for snapshot in store.snapshots[:2]}
    assert soup.recipe == {"kind": "greedy"}
    assert torch.equal(store.load(soup)["a.weight"], weights(0.5)["a.weight"])


def test_the_same_soup_is_not_written_again(folder: Path) -> None:
    first = cook(folder)
    written = (folder / first.file).stat().st_mtime_ns
    assert cook(folder) == first
    assert cook(folder, margin=2) == first, "the same weights by another recipe"
    assert cook(folder, value=0.50001) == first, "the same recipe, whose last digits differ"
    assert (folder / first.file).stat().st_mtime_ns == written
    other = cook(folder, value=0.7, margin=3)
    assert SnapshotStore.open(folder).soups == (first, other)


def test_a_damaged_soup_is_refused_and_made_anew(folder: Path) -> None:
    first = cook(folder)
    data = bytearray((folder / first.file).read_bytes())
    data[-1] ^= 1
    (folder / first.file).write_bytes(data)
    with pytest.raises(SnapshotError, match="does not have the SHA-256"):
        SnapshotStore.open(folder).load(first)
    assert cook(folder) == first
    assert torch.equal(SnapshotStore.open(folder).load(first)["a.weight"], weights(0.5)["a.weight"])
    assert SnapshotStore.open(folder).soups == (first,)


def test_a_training_that_goes_on_keeps_soups(folder: Path) -> None:
    soup = cook(folder)
    with SnapshotStore.create(folder, "run", {}) as store:  # which cleans what nobody names
        store.commit(weights(9), epoch=3, global_step=40, retention=Retention(last=1))
        assert [snapshot.epoch for snapshot in store.snapshots] == [3]
        store.set_metrics(40, {"loss": 1.0})
        store.forget_after(0)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["snapshots"] == []
    assert [entry["file"] for entry in manifest["soups"]] == [soup.file]
    assert torch.equal(store.load(soup)["a.weight"], weights(0.5)["a.weight"])


def test_a_killed_writer_leaves_nothing(folder: Path) -> None:
    soup = cook(folder)
    path = folder / soup.file.replace(soup.sha256[:8], "0" * 8)
    path.write_bytes(b"half")
    with SnapshotStore.create(folder, "run", {}):
        pass
    assert not path.exists()
    assert (folder / soup.file).exists()


def test_a_harvest_without_soups_is_written_as_before(folder: Path) -> None:
    assert "soups" not in json.loads((folder / "manifest.json").read_text())


def test_members_that_are_gone_and_a_training_that_writes(folder: Path) -> None:
    members = SnapshotStore.open(folder).snapshots
    with SnapshotStore.create(folder, "run", {}) as store:
        with pytest.raises(SnapshotError, match=r"select again when it can: .* is being written by another"):
            commit_soup(folder, weights(0.5), members, {})
        store.forget_after(10)
    with pytest.raises(SnapshotError, match=f"does not hold {members[1].file} any more"):
        commit_soup(folder, weights(0.5), members, {})
    with pytest.raises(ArgumentError, match="opened to read"):
        SnapshotStore.open(folder).add_soup(SoupSnapshot(0, 0, "soup.safetensors", "0" * 64, 0), [b""])
    assert SnapshotStore.open(folder).soups == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"file": "../soup.safetensors"}, "only plain names"),
        ({"sha256": "z" * 64}, "64 hexadecimal digits"),
        ({"members": [{"file": 3}]}, "'file' should be a string"),
        ({"members": "none"}, "'members' should be an array"),
        ({"recipe": []}, "'recipe' should be an object"),
        ({"size": -1}, "'size' should be an integer >= 0"),
    ],
)
def test_nothing_in_an_entry_is_trusted(folder: Path, change: dict[str, Any], words: str) -> None:
    cook(folder)
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document["soups"][0].update(change)
    path.write_text(json.dumps(document))
    with pytest.raises(SnapshotError, match=words):
        SnapshotStore.open(folder)


def test_two_names_of_one_file(folder: Path) -> None:
    cook(folder)
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document["soups"][0]["file"] = document["snapshots"][0]["file"]
    path.write_text(json.dumps(document))
    with pytest.raises(SnapshotError, match="the same file twice"):
        SnapshotStore.open(folder)
