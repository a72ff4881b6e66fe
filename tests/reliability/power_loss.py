"""Power loss: the log of a writer's operations is replayed up to a moment, as a disk without power may show it.

What was fsynced before that moment is there. Of all other operations any may be missing, whatever their order, and
data that was not fsynced may be torn or zeroed. A reader must see the old state or the new one.
"""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_ckptkd import SnapshotStore
from lightning_ckptkd.snapshots.folders import local, lock
from lightning_ckptkd.snapshots.retention import Retention
from tests.reliability.forking import main
from tests.reliability.harvests import RUN_ID, check_harvest, commit, scratch_folder


@dataclass(frozen=True)
class Operation:
    """One change of the disk, or a promise about earlier ones; ``done`` is a step of the writer that has returned."""

    kind: str
    file: int = -1
    name: str = ""
    data: bytes = b""
    done: int = 0


@dataclass
class RecordingOS:
    """The ``os`` module, with a log of what changes the files of one folder."""

    folder: Path
    log: list[Operation] = field(default_factory=list)
    _files: dict[int, int] = field(default_factory=dict)
    _folders: set[int] = field(default_factory=set)
    _made: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = os.open(path, flags, mode)
        if flags & os.O_DIRECTORY and Path(path) == self.folder:
            self._folders.add(descriptor)
        elif flags & os.O_EXCL:
            self._made += 1
            self._files[descriptor] = self._made
            self.log.append(Operation("link", self._made, Path(path).name))
        return descriptor

    def write(self, descriptor: int, data: Any) -> int:
        written = os.write(descriptor, data)
        self.log.append(Operation("data", self._files[descriptor], data=bytes(data[:written])))
        return written

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)
        if descriptor in self._folders:
            self.log.append(Operation("sync folder"))
        elif descriptor in self._files:
            self.log.append(Operation("sync file", self._files[descriptor]))

    def close(self, descriptor: int) -> None:
        os.close(descriptor)
        self._files.pop(descriptor, None)
        self._folders.discard(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)
        self.log.append(Operation("rename", name=f"{Path(source).name}/{Path(target).name}"))

    def unlink(self, path: Path) -> None:
        os.unlink(path)
        self.log.append(Operation("unlink", name=Path(path).name))


def power_loss_trials(count: int, seed: int = 0) -> dict[str, Any]:
    """``count`` states of a disk after a power loss.

    Raises:
        AssertionError: If a reader sees anything but the state before or after the step that was interrupted.
    """
    order = random.Random(seed)
    with scratch_folder() as scratch:
        folder = Path(scratch) / "harvest"
        log, states = _record(folder)
        seen = [0, 0]
        for trial in range(count):
            moment = order.randrange(len(log) + 1)
            files = _after_power_loss(log[:moment], order)
            done = max((operation.done for operation in log[:moment]), default=0)
            state = Path(scratch) / "state"
            state.mkdir()
            for name, data in files.items():
                (state / name).write_bytes(data)
            if "manifest.json" in files:
                text = files["manifest.json"]
                assert text in states[done : done + 2], f"trial {trial}: after step {done} the manifest is a mix"
                check_harvest(state, set(), set(range(6)))
                seen[states.index(text) - done] += 1
            else:
                assert done == 0, f"trial {trial}: the manifest is gone after step {done}"
            shutil.rmtree(state)
    return {"states": count, "operations": len(log), "old": seen[0], "new": seen[1]}


def _record(folder: Path) -> tuple[list[Operation], list[bytes]]:
    """The log of a writer, and the manifests after each of its steps (empty before the first)."""
    recording = RecordingOS(folder)
    states = [b""]
    real = local.os, lock.os
    local.os = recording  # type: ignore[assignment]
    try:
        with SnapshotStore.create(folder, RUN_ID, {}) as store:

            def step_done() -> None:
                states.append((folder / "manifest.json").read_bytes())
                recording.log.append(Operation("done", done=len(states) - 1))

            for epoch in range(3):
                commit(store, epoch)
                step_done()
            store.set_metrics(30, {"loss": 0.5})
            step_done()
            for epoch in range(3, 6):
                commit(store, epoch, Retention(last=2))
                step_done()
            store.forget_after(50)
            step_done()
    finally:
        local.os, lock.os = real
    return recording.log, states


def _after_power_loss(log: list[Operation], order: random.Random) -> dict[str, bytes]:
    """Names and content that the disk may show when power is lost after these operations."""
    folder_synced = max((i for i, operation in enumerate(log) if operation.kind == "sync folder"), default=-1)
    contents: dict[int, bytes] = {}
    synced: dict[int, int] = {}
    for operation in log:
        if operation.kind == "data":
            contents[operation.file] = contents.get(operation.file, b"") + operation.data
        elif operation.kind == "sync file":
            synced[operation.file] = len(contents.get(operation.file, b""))
    entries: dict[str, int] = {}
    owners: dict[str, int] = {}  # which file a name stands for, as the writer sees it
    late: list[tuple[str, str, int]] = []
    for i, operation in enumerate(log):
        change: tuple[str, str, int] | None = None
        if operation.kind == "link":
            owners[operation.name] = operation.file
            change = ("", operation.name, operation.file)
        elif operation.kind == "rename":
            source, target = operation.name.split("/")
            owners[target] = owners.pop(source)
            change = (source, target, owners[target])
        elif operation.kind == "unlink":
            owners.pop(operation.name)
            change = (operation.name, "", -1)
        if change is not None and i <= folder_synced:
            _apply(entries, change)
        elif change is not None and order.random() < 0.5:
            late.append(change)
    if order.random() < 0.5:
        order.shuffle(late)
    for change in late:
        _apply(entries, change)
    return {name: _torn(contents.get(file, b""), synced.get(file, 0), order) for name, file in entries.items()}


def _apply(entries: dict[str, int], change: tuple[str, str, int]) -> None:
    removed, added, file = change
    entries.pop(removed, None)
    if added:
        entries[added] = file


def _torn(content: bytes, synced: int, order: random.Random) -> bytes:
    """The content with what was not synced missing, cut or zeroed."""
    if len(content) <= synced or order.random() < 0.3:
        return content
    cut = order.randrange(synced, len(content))
    return content[:cut] if order.random() < 0.5 else content[:cut] + bytes(len(content) - cut)


if __name__ == "__main__":
    main(power_loss_trials)
