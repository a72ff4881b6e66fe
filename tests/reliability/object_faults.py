"""Writers that are killed, and a store that goes and comes back while a model trains, on a real S3 server."""

from __future__ import annotations

import json
import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from lightning_ckptkd import CheckpointHarvester, SnapshotError, SnapshotStore
from lightning_ckptkd.snapshots.folders import objects
from lightning_ckptkd.snapshots.retention import Retention
from tests.projects import DigitsData, Project, make_trainer
from tests.reliability.forking import fork, wait
from tests.reliability.harvests import RUN_ID, commit, make_weights, scratch_folder
from tests.reliability.interruptions import Interrupt
from tests.reliability.object_races import in_child, names_in
from tests.reliability.s3_server import BUCKET, S3Server, s3_server

_EPOCHS = 4


def kill_trials(count: int, seed: int = 0) -> dict[str, Any]:
    """``count`` writers: killed before one of their requests, at any moment, and, every fifth, whole trainings.

    Raises:
        AssertionError: If a committed snapshot is lost or wrong, another run gets in without being told, the same run
            can't go on, or leftovers stay.
    """
    generator = random.Random(seed)
    trainings = survivors = locked = 0
    with s3_server(), scratch_folder() as scratch:
        counted = Path(scratch) / "calls"
        in_child(lambda: counted.write_text(str(_write(f"s3://{BUCKET}/count", Path(scratch) / "none"))))
        calls = int(counted.read_text())
        for trial in range(count):
            url, done = f"s3://{BUCKET}/kill-{seed}-{trial}", Path(scratch) / f"done-{trial}"
            if trial % 5 == 4:
                in_child(partial(_kill_training, Path(scratch), url, trial // 5), seconds=120)
                trainings += 1
                continue
            if trial % 2:
                child = fork(partial(_write, url, done))
                time.sleep(generator.uniform(0.02, 0.8))
                os.kill(child, signal.SIGKILL)
                wait(child)
            else:
                place = 1 + (trial * 7919 // 2) % calls
                assert wait(fork(partial(_write, url, done, die_before=place))) == -signal.SIGKILL
            told = Path(scratch) / f"told-{trial}"
            in_child(partial(_check_killed, url, done, told))
            found = json.loads(told.read_text())
            survivors, locked = survivors + found["snapshots"], locked + found["locked"]
    return {
        "trials": count,
        "calls": calls,
        "trainings": trainings,
        "snapshots_found": survivors,
        "locks_left_and_taken_over": locked,
    }


def _write(url: str, done: Path, die_before: int | None = None) -> int:
    """A writer's life; notes each commit in ``done`` once it has returned. Returns the requests it made."""
    made = 0
    real = objects.Objects._call

    def counting(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        nonlocal made
        made += 1
        if made == die_before:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, method, *arguments, **options)

    objects.Objects._call = counting  # type: ignore[method-assign]
    with SnapshotStore.create(url, RUN_ID, {}) as store:
        for epoch in range(4):
            commit(store, epoch, Retention(last=3))
            done.write_text(str(epoch))
            store.set_metrics(10 * epoch + 10, {"loss": 0.5})
    return made


def _check_killed(url: str, done: Path, told: Path) -> None:
    committed = int(done.read_text()) if done.exists() else -1
    names = names_in(url)
    epochs: list[int] = []
    if committed >= 0 or "manifest.json" in names:
        epochs = _right_epochs(url)
    assert committed <= max(epochs, default=-1) <= committed + 1, (committed, epochs)
    assert epochs == list(range(max(epochs, default=-1) + 1))[-3:], epochs
    locked = "lock.json" in names
    if locked or epochs:
        try:
            SnapshotStore.create(url, "another", {})
        except SnapshotError as error:
            assert ("of another run" if epochs else f"remove {url}/lock.json") in str(error), error
        else:
            raise AssertionError("another run got in")
    with SnapshotStore.create(url, RUN_ID, {}) as store:
        commit(store, 7)
    assert _right_epochs(url) == [*epochs, 7]
    assert names_in(url) == {"manifest.json", *SnapshotStore.open(url).manifest.files}
    told.write_text(json.dumps({"snapshots": len(epochs), "locked": locked}))


def _right_epochs(url: str) -> list[int]:
    store = SnapshotStore.open(url)
    for snapshot in store.snapshots:
        loaded, wanted = store.load(snapshot), make_weights(snapshot.epoch)
        assert all(torch.equal(loaded[name], wanted[name]) for name in wanted), f"epoch {snapshot.epoch} is wrong"
    return [snapshot.epoch for snapshot in store.snapshots]


def _kill_training(scratch: Path, url: str, number: int) -> None:
    """A training that is killed and resumed has the harvest of one that was not, bit for bit."""
    root = scratch / f"training-{number}"
    place = ("in the epoch", "at its end")[number % 2]
    interrupt = Interrupt("SIGKILL", place, 1 + number // 2 % (_EPOCHS - 1))
    assert wait(fork(partial(_train, root, url, interrupt))) == -signal.SIGKILL
    assert wait(fork(partial(_train, root, url))) == 0
    assert wait(fork(partial(_train, root / "whole", str(root / "whole" / "harvest")))) == 0
    resumed, whole = SnapshotStore.open(url), SnapshotStore.open(root / "whole" / "harvest")
    assert [entry.epoch for entry in resumed.snapshots] == list(range(_EPOCHS))
    assert [entry.sha256 for entry in resumed.snapshots] == [entry.sha256 for entry in whole.snapshots]
    assert [entry.metrics for entry in resumed.snapshots] == [entry.metrics for entry in whole.snapshots]
    assert names_in(url) == {"manifest.json", *resumed.manifest.files}


def _train(root: Path, dirpath: str, *callbacks: Callback) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    seed_everything(0, verbose=False)
    own = ModelCheckpoint(dirpath=root / "own", filename="last", save_on_train_epoch_end=True)
    trainer = make_trainer(
        root, *callbacks, CheckpointHarvester(dirpath), own, max_epochs=_EPOCHS, enable_checkpointing=True
    )
    checkpoints = sorted((root / "own").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    trainer.fit(Project(), DigitsData(shuffle=False), ckpt_path=checkpoints[-1] if checkpoints else None)


class Outage(Callback):
    """Has the server go at the start of one epoch and come back at the start of another; notes how long epochs take."""

    def __init__(self, go: Callable[[], None], come_back: Callable[[], None], first: int, last: int) -> None:
        self.go, self.come_back, self.first, self.last = go, come_back, first, last
        self.starts: list[float] = []

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.starts.append(time.monotonic())
        if trainer.current_epoch == self.first:
            self.go()
        if trainer.current_epoch == self.last:
            self.come_back()


def outage_trials(count: int, patience_seconds: float = objects.PATIENCE_SECONDS) -> dict[str, Any]:
    """A training of ten epochs of a fraction of a second, without the server from the third to the sixth.

    Of three kinds the first ``count``: it refuses connections, it takes them and hangs, it is gone for good.

    Raises:
        AssertionError: If training ends otherwise than with the snapshots from before and after, all of them right, and
            one warning for each that was dropped.
    """
    objects.PATIENCE_SECONDS = patience_seconds
    results: dict[str, Any] = {"trials": count, "patience_seconds": patience_seconds}
    with s3_server() as server, scratch_folder() as scratch:
        kinds: dict[str, tuple[Callable[[], None], Callable[[], None], int]] = {
            "refuses": (server.down, server.up, 6),
            "hangs": (server.hang, server.go_on, 6),
            "gone": (server.down, lambda: None, 99),
        }
        for kind, (go, come_back, last) in list(kinds.items())[:count]:
            url = f"s3://{BUCKET}/outage-{kind}"
            results[kind] = _outage(Path(scratch), url, Outage(go, come_back, 2, last), server)
    return results


def _outage(root: Path, url: str, outage: Outage, server: S3Server) -> dict[str, Any]:
    class Moves(Project):
        """Waits for its snapshots at each checkpoint, since its weights move in between."""

        def on_train_epoch_end(self) -> None:
            super().on_train_epoch_end()
            self.classifier.weight.data.mul_(0.999)

    own = ModelCheckpoint(dirpath=root / url.rsplit("/", 1)[-1], save_on_train_epoch_end=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = make_trainer(root, CheckpointHarvester(url), own, outage, max_epochs=10, enable_checkpointing=True)
        trainer.fit(Moves(), DigitsData())
    ended = time.monotonic()
    if outage.last == 99:
        server.up()
    dropped = sum("is not stored" in str(one.message) and "the snapshot at step" in str(one.message) for one in said)
    store = SnapshotStore.open(url)
    epochs = [snapshot.epoch for snapshot in store.snapshots]
    assert all(store.load(snapshot) for snapshot in store.snapshots)
    assert set(epochs) == {*range(2), *range(min(outage.last, 10), 10)}, epochs
    assert dropped == 10 - len(epochs), [str(one.message) for one in said]
    lengths = [later - earlier for earlier, later in zip(outage.starts, [*outage.starts[1:], ended], strict=True)]
    return {
        "dropped": dropped,
        "longest_wait_seconds": round(max(lengths), 1),
        "all_epochs_seconds": round(sum(lengths), 1),
    }
