from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_ckptkd import SnapshotError, SnapshotStore
from lightning_ckptkd.snapshots.folders import LocalFolder
from lightning_ckptkd.snapshots.host_copy import HostCopy
from lightning_ckptkd.snapshots.layout import plan_layout
from lightning_ckptkd.snapshots.recorder import Recorder

WEIGHTS = {"a": torch.arange(1000.0)}


class GatedStore(SnapshotStore):
    """A store whose disk stands still until the gate is opened."""

    gate = threading.Event()

    def commit(self, weights: Any, **entry: Any) -> Any:
        assert self.gate.wait(30)
        return super().commit(weights, **entry)


@pytest.fixture
def waits() -> list[str]:
    return []


@pytest.fixture
def recorder(tmp_path: Path, waits: list[str]) -> Recorder:
    GatedStore.gate.clear()
    return Recorder(GatedStore.create(tmp_path / "h", "run", {}), on_wait=lambda: waits.append("said"))


def take(recorder: Recorder, epoch: int) -> HostCopy:
    copy = recorder.reserve(plan_layout(WEIGHTS))
    copy.fill({"a": WEIGHTS["a"] + epoch})
    recorder.commit(copy, epoch=epoch, global_step=epoch + 1)
    return copy


def test_training_goes_on_while_a_snapshot_is_written(recorder: Recorder, tmp_path: Path) -> None:
    take(recorder, 0)
    recorder.set_metrics(1, {"loss": 0.5})
    assert not (tmp_path / "h" / "manifest.json").exists()
    GatedStore.gate.set()
    recorder.close()
    store = SnapshotStore.open(tmp_path / "h")
    assert store.snapshots[0].metrics == {"loss": 0.5}
    assert torch.equal(store.load(store.snapshots[0])["a"], WEIGHTS["a"])


def test_two_copies_and_no_more(recorder: Recorder, waits: list[str], tmp_path: Path) -> None:
    copies = [take(recorder, 0), take(recorder, 1)]
    assert waits == []
    third: list[HostCopy] = []
    thread = threading.Thread(target=lambda: third.append(take(recorder, 2)))
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    assert waits == ["said"]
    GatedStore.gate.set()
    thread.join(30)
    assert third[0] in copies, "the memory of a written one is used again"
    for epoch in range(3, 9):
        take(recorder, epoch)
    recorder.close()
    assert waits == ["said"], "once is enough"
    assert recorder.take_problems() == []
    store = SnapshotStore.open(tmp_path / "h")
    assert [snapshot.epoch for snapshot in store.snapshots] == list(range(9))
    for snapshot in store.snapshots:
        assert torch.equal(store.load(snapshot)["a"], WEIGHTS["a"] + snapshot.epoch)


def test_what_is_not_stored_yet(recorder: Recorder) -> None:
    copy = take(recorder, 0)
    assert recorder.unstored(1) is copy
    assert recorder.unstored(2) is None
    GatedStore.gate.set()
    recorder.flush()
    assert recorder.unstored(1) is None
    recorder.close()


def test_waiting_for_all_but_the_last(recorder: Recorder) -> None:
    take(recorder, 0)
    recorder.set_metrics(1, {"loss": 0.5})
    held = threading.Event()
    recorder._submit(lambda: (held.set(), GatedStore.gate.clear())[1], "the gate")
    take(recorder, 1)
    thread = threading.Thread(target=lambda: recorder.flush_before(2))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    GatedStore.gate.set()
    thread.join(30)
    assert held.is_set()
    assert recorder.store.snapshots[0].metrics == {"loss": 0.5}
    assert recorder.unstored(2) is not None, "the last one is not waited for"
    GatedStore.gate.set()
    recorder.close()


def test_a_failure_is_kept_and_the_next_snapshot_is_stored(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    GatedStore.gate.set()

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(GatedStore, "commit", fail)
    take(recorder, 0)
    recorder.flush()
    monkeypatch.undo()
    take(recorder, 1)
    recorder.close()
    (problem,) = recorder.take_problems()
    assert isinstance(problem, SnapshotError)
    assert "the snapshot at step 1 is not stored: KeyError: 'a bug'" in str(problem)
    assert [snapshot.epoch for snapshot in SnapshotStore.open(tmp_path / "h").snapshots] == [1]


def test_closing_gives_back_the_lock_and_the_thread(recorder: Recorder, tmp_path: Path) -> None:
    GatedStore.gate.set()
    take(recorder, 0)
    recorder.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ckptkd-recorder")]
    SnapshotStore.create(tmp_path / "h", "run", {}).close()


def test_a_branch_that_was_left_goes_though_a_snapshot_on_the_way_failed(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    GatedStore.gate.set()
    for epoch in (1, 2, 3):
        take(recorder, epoch)
    recorder.flush()
    resumed = Recorder(recorder.store, position=2, on_wait=lambda: None)
    monkeypatch.setattr(LocalFolder, "write", lambda *_: (_ for _ in ()).throw(SnapshotError("full")))
    resumed.commit(copy_of(resumed, 7.0), epoch=9, global_step=3)
    resumed.flush()
    monkeypatch.undo()
    resumed.commit(copy_of(resumed, 8.0), epoch=9, global_step=4)
    resumed.close()
    recorder.close()
    assert len(resumed.take_problems()) == 1
    assert [snapshot.global_step for snapshot in recorder.store.snapshots] == [2, 4]


def copy_of(recorder: Recorder, value: float) -> HostCopy:
    copy = recorder.reserve(plan_layout(WEIGHTS))
    copy.fill({"a": WEIGHTS["a"] * value})
    return copy
