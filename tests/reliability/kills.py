"""SIGKILL before the n-th call that touches the disk, for every n: what was committed stays, the rest is cleaned."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning_ckptkd.snapshots.retention import Retention
from tests.reliability.faults import watched_disk
from tests.reliability.forking import fork, main, wait
from tests.reliability.harvests import check_clean, check_harvest, scratch_folder, write_epochs

# What is on disk before, what the writer then does, and which of the old snapshots it may drop.
_SCENARIOS: list[tuple[int, Callable[[Path], None], set[int]]] = [
    (0, lambda folder: write_epochs(folder, range(2)), set()),
    (2, lambda folder: write_epochs(folder, range(2, 4), metrics=True), set()),
    (3, lambda folder: write_epochs(folder, range(3, 5), Retention(last=3)), {0, 1}),
    (3, lambda folder: write_epochs(folder, range(1, 5), Retention(max_bytes=16_000)), {0, 1, 2, 3}),
]


def kill_trials(count: int, seed: int = 0) -> dict[str, Any]:
    """``count`` writers, each killed at another place.

    Raises:
        AssertionError: If a committed snapshot is lost, a load is wrong, or leftovers stay.
    """
    places: list[tuple[int, int]] = []
    with scratch_folder() as scratch:
        for number, (_, work, _) in enumerate(_SCENARIOS):
            folder = Path(scratch) / f"base_{number}"
            folder.mkdir()
            write_epochs(folder, range(_SCENARIOS[number][0]))
            trial = Path(scratch) / "count"
            shutil.copytree(folder, trial)
            with watched_disk(lambda call, name: None) as watched:
                work(trial)
            shutil.rmtree(trial)
            places += [(number, call) for call in range(1, watched.calls + 1)]
        order = random.Random(seed)
        survivors = 0
        for index in range(count):
            if index % len(places) == 0:
                order.shuffle(places)
            number, call = places[index % len(places)]
            survivors += _kill_once(Path(scratch), number, call)
    return {"trials": count, "places": len(places), "snapshots_found": survivors}


def _kill_once(scratch: Path, number: int, call: int) -> int:
    before, work, droppable = _SCENARIOS[number]
    folder = scratch / "trial"
    shutil.copytree(scratch / f"base_{number}", folder)

    def die(n: int, name: str) -> None:
        if n == call:
            os.kill(os.getpid(), signal.SIGKILL)

    def write() -> None:
        with watched_disk(die):
            work(folder)

    status = wait(fork(write))
    assert status == -signal.SIGKILL, f"scenario {number}, call {call}: the writer ended with {status}"
    found = check_harvest(folder, set(range(before)) - droppable, set(range(5)))
    write_epochs(folder, range(5, 6))
    assert check_harvest(folder, {5}, {*found, 5}) == {*found, 5}
    check_clean(folder)
    shutil.rmtree(folder)
    return len(found)


if __name__ == "__main__":
    main(kill_trials)
