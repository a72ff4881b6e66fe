"""Storing snapshots on a thread of its own, so that training only waits for the copy of the weights."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from lightning_ckptkd.errors import CkptKDError, SnapshotError
from lightning_ckptkd.snapshots.host_copy import HostCopy
from lightning_ckptkd.snapshots.layout import Layout
from lightning_ckptkd.snapshots.retention import Retention
from lightning_ckptkd.snapshots.store import SnapshotStore

_COPIES = 2  # one that is being written, one that waits: host memory never holds more


class Recorder:
    """Writes one snapshot after another while training goes on.

    All changes of the store are made by one thread, in the order in which they were asked for. What goes wrong there
    is kept until :meth:`take_problems`.

    Args:
        store: A store that was opened to write.
        position: The step at which training starts or is resumed; what the store holds beyond it belongs to a branch
            that was left, and goes as training passes it.
        retention: Which snapshots to keep.
        pinned: Whether the weights are on a GPU.
        on_wait: Called before the first wait for a writer that is slower than training.
    """

    def __init__(
        self,
        store: SnapshotStore,
        *,
        position: int = 0,
        retention: Retention | None = None,
        pinned: bool = False,
        on_wait: Callable[[], None],
    ) -> None:
        self.store = store
        self._position = position
        self._retention = retention
        self._pinned = pinned
        self._on_wait: Callable[[], None] | None = on_wait
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ckptkd-recorder")
        self._jobs: list[Future[None]] = []
        self._problems: deque[CkptKDError] = deque()
        self._free: list[HostCopy] = []
        self._made = 0
        self._freed = threading.Condition()
        self._unstored: dict[int, HostCopy] = {}
        self._commits: dict[int, Future[None]] = {}  # the last one's

    def warm_up(self, layout: Layout) -> None:
        """Have the memory of the first copy made ready by the thread, while training begins."""
        with self._freed:
            self._made += 1

        def work() -> None:
            copy = HostCopy(self._pinned)
            try:
                copy.reserve(layout)
                copy.touch()
            finally:
                self._release(copy)

        self._submit(work, "memory for the first snapshot")

    def reserve(self, layout: Layout) -> HostCopy:
        """Room for one snapshot; waits where two are still unwritten."""
        with self._freed:
            if not self._free and self._made < _COPIES:
                self._free.append(HostCopy(self._pinned))
                self._made += 1
            if not self._free and self._on_wait is not None:
                self._on_wait()
                self._on_wait = None
            while not self._free:
                self._freed.wait()
            copy = self._free.pop()
        try:
            copy.reserve(layout)
        except BaseException:
            self._release(copy)
            raise
        return copy

    def commit(self, copy: HostCopy, global_step: int, **entry: Any) -> None:
        """Have a filled copy written; ``entry`` is what :meth:`SnapshotStore.commit` takes."""
        self._unstored[global_step] = copy

        def write() -> None:
            try:
                self.store.commit(
                    copy, global_step=global_step, after=self._position, retention=self._retention, **entry
                )
                self._position = global_step
            finally:
                self._unstored.pop(global_step, None)
                self._release(copy)

        self._commits = {global_step: self._submit(write, f"the snapshot at step {global_step}")}

    def set_metrics(self, global_step: int, metrics: Mapping[str, float | None]) -> None:
        """Have the metrics of a snapshot recorded."""
        self._submit(lambda: self.store.set_metrics(global_step, metrics), f"the metrics of step {global_step}")

    def forget_after(self, global_step: int) -> None:
        """Have the snapshots beyond a step dropped."""
        self._submit(lambda: self.store.forget_after(global_step), f"what to drop after step {global_step}")

    def unstored(self, global_step: int) -> HostCopy | None:
        """The copy of the snapshot at a step, if it is still being written; valid until the next :meth:`reserve`."""
        return self._unstored.get(global_step)

    def flush_before(self, global_step: int) -> None:
        """Wait until everything is done that was asked for before the snapshot at a step."""
        commit = self._commits.get(global_step)
        for job in list(self._jobs):
            if job is commit:
                break
            job.exception()

    def take_problems(self) -> list[CkptKDError]:
        """What went wrong since the last call."""
        return [self._problems.popleft() for _ in range(len(self._problems))]

    def flush(self) -> None:
        """Wait until everything that was asked for is done."""
        for job in self._jobs:
            job.exception()
        self._jobs.clear()

    def close(self) -> None:
        """Finish what was asked for, end the thread, give the folder's lock back."""
        try:
            self.flush()
            self._thread.shutdown()
        finally:
            self.store.close()

    def _submit(self, job: Callable[[], None], what: str) -> Future[None]:
        def run() -> None:
            try:
                with self.store.folder.bounded():  # training may be waiting
                    job()
            except CkptKDError as error:
                self._problems.append(type(error)(f"{what} is not stored: {error}"))
            except Exception as error:  # it must not end the thread unseen
                self._problems.append(SnapshotError(f"{what} is not stored: {type(error).__name__}: {error}"))

        self._jobs = [future for future in self._jobs if not future.done()]
        self._jobs.append(self._thread.submit(run))
        return self._jobs[-1]

    def _release(self, copy: HostCopy) -> None:
        with self._freed:
            self._free.append(copy)
            self._freed.notify()
