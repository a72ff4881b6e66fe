from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch

from lightning_ckptkd import SnapshotError, SnapshotStore
from lightning_ckptkd.snapshots.folders import LocalFolder, RemoteFolder, lock, open_folder
from tests.reliability.faults import watched_disk
from tests.reliability.harvests import commit, make_weights

pytestmark = pytest.mark.filterwarnings("ignore:memory.*its store has no conditional put")


@pytest.fixture
def remote() -> str:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    return "memory://bucket/run"


def test_which_folder_a_location_is(tmp_path: Path) -> None:
    assert isinstance(open_folder(tmp_path), LocalFolder)
    assert open_folder(f"file://{tmp_path}").location == str(tmp_path)
    assert open_folder("~/x").location == str(Path.home() / "x")
    assert isinstance(open_folder("memory://x"), RemoteFolder)
    with pytest.raises(SnapshotError, match=r"nothing://x: .*Install what the scheme needs"):
        open_folder("nothing://x")


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", ".hidden", "a/b", "", "a\0b", ".."])
def test_names_that_lead_elsewhere_are_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "h" / "a").mkdir(parents=True)
    (tmp_path / "h" / "a" / "b").write_text("secret")
    (tmp_path / "h" / ".hidden").write_text("secret")
    with pytest.raises(SnapshotError, match="is not a plain file name"):
        open_folder(tmp_path / "h").read(name)


def test_json_files_are_read_up_to_a_limit(tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(SnapshotError, match="more than the 16777216 that are read"):
        open_folder(tmp_path).read_json("large.json")


def test_every_new_folder_is_synced_into_its_parent(tmp_path: Path) -> None:
    calls: list[str] = []
    with watched_disk(lambda n, name: calls.append(name)):
        LocalFolder(tmp_path / "a" / "b").make()
        assert calls == ["mkdir", "open", "fsync", "close"] * 2
        LocalFolder(tmp_path / "a" / "b").make()
        assert calls == ["mkdir", "open", "fsync", "close"] * 2


def test_the_order_of_a_commit(tmp_path: Path) -> None:
    """Weights: written, synced, renamed, folder synced; then the manifest likewise; only then old files go."""
    with SnapshotStore.create(tmp_path, "run", {}) as store:
        commit(store, 0)
        calls: list[str] = []
        with watched_disk(lambda n, name: calls.append(name)):
            store.commit(make_weights(7), epoch=0, global_step=10)
    write = ["open", "fsync", "close", "replace", "open", "fsync", "close"]
    assert [name for name in calls if name != "write"] == [*write, *write, "unlink"]


def test_the_lock_keeps_others_out_and_is_given_back(tmp_path: Path) -> None:
    with SnapshotStore.create(tmp_path, "run", {}) as store:
        with pytest.raises(
            SnapshotError,
            match=r"is being written by another CheckpointHarvester or Trainer of this process; .*'other'",
        ):
            SnapshotStore.create(tmp_path, "other", {})
        held = _lock_in_another_process(tmp_path)
        assert "is being written by the run 'run' (process" in held
        assert "Nothing was written. Choose another dirpath" in held
        commit(store, 0)
    assert "already holds 1 snapshots of another run ('run')" in _lock_in_another_process(tmp_path)
    SnapshotStore.create(tmp_path, "run", {}).close()


def test_a_lock_is_not_inherited_by_a_process_that_outlives_its_writer(tmp_path: Path) -> None:
    """Data loader processes are forked while the lock is held, and may live on for seconds after a kill."""
    code = (
        "import os, sys, time; from lightning_ckptkd import SnapshotStore\n"
        "SnapshotStore.create(sys.argv[1], 'run', {})\n"
        "if os.fork() == 0: os.close(1); os.close(2); time.sleep(20); os._exit(0)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    SnapshotStore.create(tmp_path, "run", {}).close()


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", refuse)
    with pytest.warns(UserWarning, match=r"its file system has no locks \(No locks available\)"):
        SnapshotStore.create(tmp_path, "run", {}).close()


def test_leftovers_are_cleaned_by_the_same_run_and_by_nobody_else(tmp_path: Path) -> None:
    with SnapshotStore.create(tmp_path, "run", {}) as store:
        snapshot = commit(store, 0)
    tag = snapshot.file.split("-")[2]
    own = [f".manifest.json.{tag}-00000000.tmp", f"epoch=9-step=9-{tag}-00000000.safetensors"]
    others = [
        ".manifest.json.00000000-00000000.tmp",
        "epoch=9-step=9-00000000-00000000.safetensors",
        "notes.txt",
        f"epoch=9-step=9-{tag}-00000000.safetensors.bak",
    ]
    for name in (*own, *others):
        (tmp_path / name).write_text("left")
    with pytest.raises(SnapshotError, match="another run"):
        SnapshotStore.create(tmp_path, "other", {})
    SnapshotStore.open(tmp_path)
    assert all((tmp_path / name).exists() for name in (*own, *others))
    SnapshotStore.create(tmp_path, "run", {}).close()
    assert not any((tmp_path / name).exists() for name in own)
    assert all((tmp_path / name).exists() for name in (*others, snapshot.file))


def test_a_remote_harvest(remote: str) -> None:
    with SnapshotStore.create(remote, "run", {}) as store:
        with pytest.raises(
            SnapshotError, match=r"being written by the run 'run'.*remove memory://bucket/run/lock.json"
        ):
            SnapshotStore.create(remote, "other", {})
        assert [commit(store, epoch).epoch for epoch in range(2)] == [0, 1]
        replaced = store.commit(make_weights(5), epoch=1, global_step=20)
    again = SnapshotStore.open(remote)
    assert again.snapshots[1] == replaced
    assert torch.equal(again.load(replaced)["weight"], make_weights(5)["weight"])
    names = sorted(Path(name).name for name in fsspec.filesystem("memory").ls("/bucket/run", detail=False))
    assert names == sorted(["manifest.json", *(snapshot.file for snapshot in again.snapshots)])
    with pytest.raises(SnapshotError, match="already holds 2 snapshots of another run"):
        SnapshotStore.create(remote, "other", {})
    with pytest.raises(SnapshotError, match=r"memory://bucket/nothing has no manifest.json"):
        SnapshotStore.open("memory://bucket/nothing")


def test_remote_damage_is_detected(remote: str) -> None:
    with SnapshotStore.create(remote, "run", {}) as store:
        first, second, third = (commit(store, epoch) for epoch in range(3))
    memory = fsspec.filesystem("memory")
    data = bytearray(memory.cat_file(f"/bucket/run/{first.file}"))
    data[-1] ^= 1
    memory.pipe_file(f"/bucket/run/{first.file}", bytes(data))
    memory.pipe_file(f"/bucket/run/{second.file}", bytes(data[:-1]))
    memory.rm_file(f"/bucket/run/{third.file}")
    for snapshot, reason in ((first, "does not have the SHA-256"), (second, "bytes where"), (third, "is missing")):
        with pytest.raises(SnapshotError, match=reason):
            store.load(snapshot)


@pytest.mark.parametrize("broken", ["pipe_file", "info"])
def test_a_remote_write_that_fails(remote: str, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    with SnapshotStore.create(remote, "run", {}) as store:
        commit(store, 0)

        def fail(*_: object, **__: object) -> None:
            raise PermissionError("quota exceeded")

        monkeypatch.setattr(type(fsspec.filesystem("memory")), broken, fail)
        with pytest.raises(SnapshotError, match=r"could not be written \(\d+ bytes\).*quota exceeded"):
            commit(store, 1)
        monkeypatch.undo()
        assert [snapshot.epoch for snapshot in SnapshotStore.open(remote).snapshots] == [0]
        commit(store, 2)
    SnapshotStore.create(remote, "run", {}).close()  # cleans what the failure left
    files = {Path(name).name for name in fsspec.filesystem("memory").ls("/bucket/run", detail=False)}
    assert files == {"manifest.json", *(snapshot.file for snapshot in SnapshotStore.open(remote).snapshots)}


def test_a_remote_upload_that_is_cut_off(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with SnapshotStore.create(remote, "run", {}) as store:
        kind = type(fsspec.filesystem("memory"))
        real = kind.info
        monkeypatch.setattr(kind, "info", lambda self, path, **_: {**real(self, path), "size": 7})
        with pytest.raises(SnapshotError, match="7 bytes arrived"):
            commit(store, 0)
        monkeypatch.undo()
        assert not fsspec.filesystem("memory").exists("/bucket/run/manifest.json")


def test_a_remote_object_store_never_shows_a_manifest_before_its_weights(remote: str) -> None:
    order: list[str] = []
    folder = open_folder(remote)
    real: Callable[..., None] = folder.write

    def write(name: str, parts: object, tag: str) -> None:
        real(name, parts, tag)
        order.append(name)

    folder.write = write  # type: ignore[method-assign]
    with SnapshotStore.create(folder, "run", {}) as store:
        snapshot = commit(store, 0)
    assert order == [snapshot.file, "manifest.json"]


def _lock_in_another_process(folder: Path) -> str:
    code = (
        "import sys; from lightning_ckptkd import SnapshotStore, SnapshotError\n"
        "try: SnapshotStore.create(sys.argv[1], 'another', {})\n"
        "except SnapshotError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    before = sorted(path.name for path in folder.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True, env=environment
    )
    assert sorted(path.name for path in folder.iterdir()) == before
    return done.stdout
