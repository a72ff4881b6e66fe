from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from lightning_ckptkd import ArgumentError, SnapshotError, SnapshotStore
from lightning_ckptkd.snapshots.folders import open_folder
from lightning_ckptkd.snapshots.retention import Retention


def weights(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"a.weight": torch.full((3, 2), value), "a.count": torch.tensor(7)}


def edit_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    for key, value in changes.items():
        if key in document:
            document[key] = value
        else:
            document["snapshots"][0][key] = value
    path.write_text(json.dumps(document))


def test_round_trip_is_exact(tmp_path: Path) -> None:
    store = SnapshotStore.create(tmp_path / "h", "run", {"submodule": None})
    written = {**weights(), "half": torch.randn(4).bfloat16(), "empty": torch.empty(0, 3), "scalar": torch.tensor(1.5)}
    store.commit(written, epoch=0, global_step=5, learning_rate=0.1, metrics={"loss": 0.5, "nan": None})
    again = SnapshotStore.open(tmp_path / "h")
    (snapshot,) = again.snapshots
    assert (snapshot.epoch, snapshot.global_step, snapshot.learning_rate) == (0, 5, 0.1)
    assert snapshot.metrics == {"loss": 0.5, "nan": None}
    read = again.load(snapshot)
    assert read.keys() == written.keys()
    for name, value in written.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)
    assert {path.name for path in (tmp_path / "h").iterdir()} == {"manifest.json", snapshot.file, ".lock"}


def test_snapshots_are_in_the_order_of_training(tmp_path: Path) -> None:
    store = SnapshotStore.create(tmp_path, "run", {})
    for step in (10, 5, 20):
        store.commit(weights(step), epoch=step, global_step=step)
    assert [snapshot.global_step for snapshot in SnapshotStore.open(tmp_path).snapshots] == [5, 10, 20]


def test_the_same_step_is_kept_once(tmp_path: Path) -> None:
    store = SnapshotStore.create(tmp_path, "run", {})
    first = store.commit(weights(1), epoch=0, global_step=5)
    assert store.commit(weights(1), epoch=0, global_step=5).file == first.file
    second = store.commit(weights(2), epoch=0, global_step=5)
    assert [snapshot.file for snapshot in SnapshotStore.open(tmp_path).snapshots] == [second.file]
    assert not (tmp_path / first.file).exists()


def test_another_run_is_refused_before_it_writes(harvest: Path) -> None:
    before = {path.name: path.read_bytes() for path in harvest.iterdir()}
    with pytest.raises(SnapshotError, match=r"already holds 4 snapshots of another run .*Choose another dirpath"):
        SnapshotStore.create(harvest, "another", {})
    assert {path.name: path.read_bytes() for path in harvest.iterdir()} == before


def test_no_manifest_is_no_harvest(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match=r"has no manifest.json, so there are no snapshots"):
        SnapshotStore.open(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "should be a JSON object"),
        ('{"format": "something else"}', "'format' should be 'lightning_ckptkd.harvest'"),
    ],
)
def test_broken_manifest(harvest: Path, content: str, message: str) -> None:
    (harvest / "manifest.json").write_text(content)
    with pytest.raises(SnapshotError, match=message):
        SnapshotStore.open(harvest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "is of version 2; this lightning_ckptkd reads version 1"),
        ({"run_id": 3}, "'run_id' should be a string but is 3"),
        ({"snapshots": {}}, "'snapshots' should be an array"),
        ({"snapshots": []}, "names no snapshots"),
        ({"epoch": -1}, "'epoch' should be an integer >= 0 but is -1"),
        ({"global_step": 10**400}, "'global_step' should be an integer >= 0"),
        ({"global_step": 10**6}, "not in the order of training"),
        ({"size": True}, "'size' should be an integer"),
        ({"sha256": "00"}, "is not 64 hexadecimal digits"),
        ({"learning_rate": "fast"}, "'learning_rate' should be a finite number or null"),
        ({"metrics": {"loss": 1e999}}, "is not valid JSON .*Infinity is no JSON"),
        ({"metrics": {"loss": "low"}}, "'loss' should be a finite number or null"),
        ({"file": "../manifest.safetensors"}, "only plain names"),
        ({"file": "/etc/passwd.safetensors"}, "only plain names"),
        ({"file": ".hidden.safetensors"}, "only plain names"),
        ({"file": "manifest.json"}, "only plain names"),
        ({"file": "a\u0000b.safetensors"}, "only plain names"),
    ],
)
def test_wrong_fields(harvest: Path, changes: dict[str, object], message: str) -> None:
    edit_manifest(harvest, **changes)
    with pytest.raises(SnapshotError, match=message):
        SnapshotStore.open(harvest)


def test_the_same_file_twice(harvest: Path) -> None:
    document = json.loads((harvest / "manifest.json").read_text())
    edit_manifest(harvest, file=document["snapshots"][1]["file"])
    with pytest.raises(SnapshotError, match="names the same file twice"):
        SnapshotStore.open(harvest)


def test_missing_truncated_and_changed_files(store: SnapshotStore) -> None:
    missing, truncated, changed, intact = store.snapshots
    Path(store.folder / missing.file).unlink()
    path = Path(store.folder / truncated.file)
    path.write_bytes(path.read_bytes()[:-1])
    path = Path(store.folder / changed.file)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(SnapshotError, match=rf"{missing.file} is missing"):
        store.load(missing)
    with pytest.raises(SnapshotError, match=rf"{truncated.file} has \d+ bytes where the manifest says"):
        store.load(truncated)
    with pytest.raises(SnapshotError, match=rf"{changed.file} does not have the SHA-256"):
        store.load(changed)
    assert store.load(intact)


def test_links_and_pipes_are_never_followed(store: SnapshotStore) -> None:
    linked, piped, *_ = store.snapshots
    path = Path(store.folder / linked.file)
    path.rename(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")
    with pytest.raises(SnapshotError, match=r"it is a link; links are never followed"):
        store.load(linked)
    Path(store.folder / piped.file).unlink()
    os.mkfifo(store.folder / piped.file)
    with pytest.raises(SnapshotError, match="is not a regular file"):
        store.load(piped)


def test_a_file_with_the_right_hash_that_is_no_safetensors(tmp_path: Path) -> None:
    import hashlib

    store = SnapshotStore.create(tmp_path, "run", {})
    snapshot = store.commit(weights(), epoch=0, global_step=1)
    data = b"\xff" * snapshot.size
    (tmp_path / snapshot.file).write_bytes(data)
    edit_manifest(tmp_path, sha256=hashlib.sha256(data).hexdigest())
    reopened = SnapshotStore.open(tmp_path)
    with pytest.raises(SnapshotError, match="is not a safetensors file"):
        reopened.load(reopened.snapshots[0])


def test_a_failed_write_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SnapshotStore.create(tmp_path, "run", {})
    kept = store.commit(weights(), epoch=0, global_step=1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        SnapshotError, match=r"could not be written: No space left on device\. It needs \d+ bytes, \d+ are free"
    ):
        store.commit(weights(2), epoch=1, global_step=2)
    monkeypatch.undo()
    reopened = SnapshotStore.open(tmp_path)
    assert reopened.snapshots == (kept,)
    assert torch.equal(reopened.load(kept)["a.weight"], weights()["a.weight"])


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SnapshotError, match="can't be made"):
        SnapshotStore.create(tmp_path / "file" / "h", "run", {})


def test_the_same_weights_under_another_epoch_keep_their_file(tmp_path: Path) -> None:
    store = SnapshotStore.create(tmp_path, "run", {})
    first = store.commit(weights(), epoch=0, global_step=5)
    assert store.commit(weights(), epoch=1, global_step=5) == first
    assert SnapshotStore.open(tmp_path).load(first)


def test_links_are_not_written_through_and_a_failed_write_leaves_nothing(
    harvest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (".manifest.json.tmp", ".x.tmp"):
        (harvest / name).symlink_to(victim)
    (harvest / "linked.json").symlink_to(victim)
    open_folder(harvest).write("linked.json", [b"new"], "tag")
    assert victim.read_text() == "precious"
    assert not (harvest / "linked.json").is_symlink()
    before = sorted(path.name for path in harvest.iterdir())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SnapshotError, match="could not be written"):
        open_folder(harvest).write("other.json", [b"new"], "tag")
    assert sorted(path.name for path in harvest.iterdir()) == before


def test_a_store_that_was_opened_to_read_does_not_write(harvest: Path) -> None:
    store = SnapshotStore.open(harvest)
    closed = SnapshotStore.create(harvest, store.manifest.run_id, {})
    closed.close()
    before = {path.name: path.read_bytes() for path in harvest.iterdir()}
    for writer in (store, closed):
        with pytest.raises(ArgumentError, match="was opened to read, or is closed: use SnapshotStore"):
            writer.commit(weights(), epoch=9, global_step=99)
        with pytest.raises(ArgumentError, match="was opened to read"):
            writer.forget_after(0)
    assert {path.name: path.read_bytes() for path in harvest.iterdir()} == before


def test_a_branch_that_was_left_does_not_push_out_new_snapshots(tmp_path: Path) -> None:
    with SnapshotStore.create(tmp_path, "run", {}) as store:
        for step in (10, 30, 40, 50):
            store.commit(weights(step), epoch=0, global_step=step)
        keep = Retention(last=2)
        store.commit(weights(20), epoch=0, global_step=20, after=10, retention=keep)
        assert [snapshot.global_step for snapshot in store.snapshots] == [10, 20, 30, 40, 50]
        store.commit(weights(35), epoch=0, global_step=35, after=20, retention=keep)
        assert [snapshot.global_step for snapshot in store.snapshots] == [20, 35, 40, 50]
        store.forget_after(35)
    assert [snapshot.global_step for snapshot in SnapshotStore.open(tmp_path).snapshots] == [20, 35]


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_harvesting_again_repairs_a_damaged_file(tmp_path: Path, damage: str) -> None:
    with SnapshotStore.create(tmp_path, "run", {}) as store:
        snapshot = store.commit(weights(), epoch=0, global_step=5)
        path = tmp_path / snapshot.file
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(bytes(snapshot.size))
        assert store.commit(weights(), epoch=0, global_step=5) == snapshot
    assert SnapshotStore.open(tmp_path).load(snapshot)
