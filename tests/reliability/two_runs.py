"""Two runs that start in one folder at the same moment: one wins, nothing is mixed."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from lightning_ckptkd import SnapshotError, SnapshotStore
from tests.reliability.forking import fork, main, wait
from tests.reliability.harvests import commit, scratch_folder


def race_trials(count: int, seed: int = 0) -> dict[str, Any]:
    """``count`` races; odd ones are between two runs of the same id, as when one is resumed twice.

    Raises:
        AssertionError: If not exactly one wins.
    """
    locked = 0
    with scratch_folder() as scratch:
        for trial in range(count):
            folder = Path(scratch) / f"race_{trial}"
            start = time.monotonic() + 0.05
            runs = ("run-a", "run-a" if trial % 2 else "run-b")
            children = [fork(partial(_race, folder, i, run, start)) for i, run in enumerate(runs)]
            assert [wait(child) for child in children] == [0, 0]
            outcomes = [(folder.parent / f"{folder.name}_{i}").read_text() for i in range(2)]
            assert sorted(outcome == "won" for outcome in outcomes) == [False, True], outcomes
            refusal = next(outcome for outcome in outcomes if outcome != "won")
            by_lock = "is being written by" in refusal
            assert by_lock or (trial % 2 == 0 and "already holds" in refusal), refusal
            locked += by_lock
            store = SnapshotStore.open(folder)
            assert store.manifest.run_id == runs[outcomes.index("won")]
            assert [snapshot.epoch for snapshot in store.snapshots] == [0, 1]
            assert all(store.load(snapshot) for snapshot in store.snapshots)
            names = {"manifest.json", ".lock", *(snapshot.file for snapshot in store.snapshots)}
            assert {path.name for path in folder.iterdir()} == names
            assert json.loads((folder / ".lock").read_text())["run_id"] == store.manifest.run_id
    return {"trials": count, "one_won": count, "refused_by_the_lock": locked}


def _race(folder: Path, number: int, run_id: str, start: float) -> None:
    time.sleep(max(0.0, start - time.monotonic()))
    outcome = folder.parent / f"{folder.name}_{number}"
    other = folder.parent / f"{folder.name}_{1 - number}"
    try:
        with SnapshotStore.create(folder, run_id, {}) as store:
            commit(store, 0)
            commit(store, 1)
            end = time.monotonic() + 30
            while not other.exists() and time.monotonic() < end:  # the winner writes until the other was refused
                time.sleep(0.001)
            text = "won"
    except SnapshotError as error:
        text = str(error)
    finished = outcome.with_suffix(".tmp")
    finished.write_text(text)
    finished.replace(outcome)


if __name__ == "__main__":
    main(race_trials)
