"""Two trainers that start into one URL, and readers of a harvest that is being written, on a real S3 server."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fsspec

from lightning_ckptkd import CheckpointHarvester, SnapshotError, SnapshotStore
from lightning_ckptkd.selecting.score_files import SCORES_NAME
from lightning_ckptkd.snapshots import SELECTION_NAME
from lightning_ckptkd.snapshots.retention import Retention
from tests.projects import DigitsData, Project, make_trainer
from tests.reliability.forking import fork, wait
from tests.reliability.harvests import commit, scratch_folder
from tests.reliability.s3_server import BUCKET, s3_server

_LONGEST_DELAY = 0.3
_EPOCHS = 2


def start_trials(count: int, seed: int = 0) -> dict[str, Any]:
    """``count`` pairs of trainings, the second of which starts 0 to 300 ms after the first.

    Raises:
        AssertionError: If not exactly one of them has the harvest, or the other does not end with one clear error.
    """
    refused: Counter[str] = Counter()
    with s3_server(), scratch_folder() as scratch:
        for trial in range(count):
            delay = _LONGEST_DELAY * trial / max(count - 1, 1)
            url = f"s3://{BUCKET}/pair-{seed}-{trial}"
            outcomes = [Path(scratch) / f"{trial}-{number}.json" for number in range(2)]
            start = time.monotonic() + 0.05
            children = [fork(partial(_train, url, outcomes[i], start + i * delay)) for i in range(2)]
            assert [wait(child) for child in children] == [0, 0]
            found = [json.loads(outcome.read_text()) for outcome in outcomes]
            where = f"delay {delay:.3f} s: {found}"
            assert sorted(one["error"] is None for one in found) == [False, True], where
            winner = next(one for one in found if one["error"] is None)
            loser = next(one for one in found if one["error"] is not None)
            by_lock = f"is being written by the run '{winner['run_id']}'" in loser["error"]
            assert by_lock or f"of another run ('{winner['run_id']}')" in loser["error"], where
            assert loser["step"] == 0, where  # before it trained or wrote
            refused["lock" if by_lock else "manifest"] += 1
            in_child(partial(_check_whole, url, winner["run_id"]))
    return {
        "trials": count,
        "one_won": count,
        "refused_by_the_lock": refused["lock"],
        "refused_by_the_manifest": refused["manifest"],
    }


def _train(url: str, outcome: Path, start: float) -> None:
    harvester = CheckpointHarvester(url)
    trainer = make_trainer(outcome.parent, harvester, max_epochs=_EPOCHS)
    time.sleep(max(0.0, start - time.monotonic()))
    error = None
    try:
        trainer.fit(Project(), DigitsData())
    except SnapshotError as refusal:
        error = str(refusal)
    outcome.write_text(json.dumps({"run_id": harvester._run_id, "error": error, "step": trainer.global_step}))


def in_child(work: Callable[[], None], seconds: float = 60) -> None:
    """Do work in a child, so that fsspec's thread is not started in the process that forks."""
    assert wait(fork(work), seconds) == 0


def _check_whole(url: str, run_id: str) -> None:
    store = SnapshotStore.open(url)
    assert store.manifest.run_id == run_id
    assert [snapshot.epoch for snapshot in store.snapshots] == list(range(_EPOCHS))
    assert all(store.load(snapshot) for snapshot in store.snapshots)
    assert names_in(url) == {"manifest.json", *store.manifest.files}


def names_in(url: str) -> set[str]:
    """What is in a folder, as another client sees it."""
    files, root = fsspec.core.url_to_fs(url, skip_instance_cache=True)
    try:
        return {str(path).rsplit("/", 1)[-1] for path in files.ls(root, detail=False)}
    except FileNotFoundError:
        return set()


def open_trials(count: int, seed: int = 0) -> dict[str, Any]:
    """``count`` opens of a harvest whose writer commits, thins out and selects without a pause.

    Raises:
        AssertionError: If one of them is told of anything but a whole manifest, selection and file of scores.
    """
    with s3_server(), scratch_folder() as scratch:
        url, stop, told = f"s3://{BUCKET}/read-{seed}", Path(scratch) / "stop", Path(scratch) / "told.json"
        writer = fork(partial(_write_until, url, stop))
        try:
            in_child(partial(_read, url, count, told), 30 + 2 * count)
        finally:
            stop.touch()
            assert wait(writer) == 0
        return {"trials": count, **json.loads(told.read_text())}


def _write_until(url: str, stop: Path) -> None:
    end = time.monotonic() + 1800
    with SnapshotStore.create(url, "the-run", {}) as store:
        epoch = 0
        while not stop.exists() and time.monotonic() < end:
            commit(store, epoch, Retention(last=2 + epoch % 7))  # longer and shorter manifests
            store.set_metrics(10 * epoch + 10, {f"metric_{i}": 1 / 3 for i in range(epoch % 5 * 40)})
            for name in (SELECTION_NAME, SCORES_NAME):
                store.folder.write_json(name, _document(epoch), store.manifest.tag)
            epoch += 1


def _document(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "again": [epoch] * (epoch * 97 % 4000)}


def _read(url: str, count: int, told: Path) -> None:
    end = time.monotonic() + 30
    while not {SELECTION_NAME, SCORES_NAME} <= names_in(url):
        assert time.monotonic() < end
        time.sleep(0.05)
    manifests, newest = set(), 0
    for _ in range(count):
        store = SnapshotStore.open(url)
        last = store.snapshots[-1]
        assert last.epoch >= newest, "an older manifest than the one before"
        newest = last.epoch
        manifests.add((last.epoch, len(last.metrics)))
        for name in (SELECTION_NAME, SCORES_NAME):
            document = store.folder.read_json(name)
            assert document == _document(document["epoch"])
    told.write_text(json.dumps({"whole": count, "different_manifests": len(manifests)}))
