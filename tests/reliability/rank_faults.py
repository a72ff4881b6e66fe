"""One of two gloo ranks raises, dies or hangs while both harvest or select: both end, and the error names the rank."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from typing_extensions import override

from lightning_ckptkd import CheckpointHarvester, MISelector, SnapshotStore, selector
from lightning_ckptkd.selecting.snapshot_scorer import SnapshotScorer
from lightning_ckptkd.snapshots.recorder import Recorder
from lightning_ckptkd.snapshots.store import SnapshotStore as Store
from tests.processes.two_ranks import InOrder, Teacher
from tests.projects import make_trainer
from tests.reliability.forking import fork, main, wait

LIMIT_SECONDS = 5
KINDS = ("raises", "dies", "hangs")
PHASES = ("opening", "taking", "storing", "ending", "scoring", "publishing")
_FAULT_EPOCH = 1


class Fault:
    """What the faulty rank does."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, *_: Any, **__: Any) -> Any:
        if self.kind == "raises":
            raise ValueError("an injected error")
        if self.kind == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)


class AtEpochEnd(Callback):
    """The fault, between two epochs, ahead of the harvester."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == _FAULT_EPOCH:
            self.fault()


def rank_trials(repeats: int, seed: int = 0) -> dict[str, Any]:
    """Each phase x each kind of fault, ``repeats`` times, the faulty rank by turns where it can be either.

    Raises:
        AssertionError: If a rank does not end in time, its error does not name the rank, or snapshots are lost.
    """
    trials, slowest = 0, 0.0
    for repeat in range(repeats):
        for phase in PHASES:
            for kind in KINDS:
                faulty = 0 if phase in ("opening", "storing", "ending", "publishing") else (repeat + 1 + seed) % 2
                with tempfile.TemporaryDirectory(prefix="ckptkd-") as scratch:
                    slowest = max(slowest, _fail_once(Path(scratch), phase, kind, faulty))
                trials += 1
    return {"trials": trials, "time_limit_seconds": LIMIT_SECONDS, "slowest_end_seconds": round(slowest, 1)}


def _fail_once(root: Path, phase: str, kind: str, faulty: int) -> float:
    where = f"rank {faulty} {kind} while {phase}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    children = [fork(_as_rank(root, rank, port, phase, kind, faulty)) for rank in (0, 1)]
    other = 1 - faulty
    try:
        assert wait(children[other], 60) == 0, where
        took = time.monotonic() - start
        if kind == "raises":
            assert wait(children[faulty], 60) == 0, where
    finally:
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            except (ProcessLookupError, ChildProcessError):
                continue
    ranks = (0, 1) if kind == "raises" else (other,)
    for rank in ranks:
        message = (root / f"rank_{rank}.txt").read_text()
        # A rank that dies in its writing thread may be missed first by DDP, whose message is torch's own.
        by_torch = phase == "storing" and kind == "dies" and "gloo" in message
        by_itself = phase == "taking" and rank == faulty  # its error is another callback's
        assert by_torch or by_itself or f"rank {faulty}" in message, f"{where}: rank {rank} says {message}"
    manifest = root / "snapshots" / "manifest.json"
    committed = {"opening": 0, "taking": 1, "storing": 1, "ending": 3, "scoring": 3, "publishing": 3}[phase]
    snapshots = SnapshotStore.open(manifest.parent).snapshots if manifest.exists() else ()
    epochs = [snapshot.epoch for snapshot in snapshots]
    unwritten = kind == "dies" and faulty == 0  # the writer died with its last snapshot still in memory
    later = phase == "storing" and epochs == [0, 2]  # the next one was in memory when the error came to light
    assert later or epochs == list(range(committed)) or (unwritten and epochs == list(range(committed - 1))), (
        f"{where}: {epochs}"
    )
    assert all(SnapshotStore.open(manifest.parent).load(snapshot) for snapshot in snapshots)
    assert not (manifest.parent / "selection.json").exists(), where
    return took


def _as_rank(root: Path, rank: int, port: int, phase: str, kind: str, faulty: int) -> Callable[[], None]:
    def work() -> None:
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "NODE_RANK": 0}
        os.environ.update({name: str(value) for name, value in environment.items()}, LOCAL_RANK=str(rank))
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        seed_everything(0, verbose=False)
        callbacks: list[Callback] = [
            CheckpointHarvester(root / "snapshots", on_error="raise"),
            MISelector(on_error="raise"),
        ]
        if rank == faulty:
            _inject(callbacks, phase, Fault(kind))
        strategy = DDPStrategy(timeout=timedelta(seconds=LIMIT_SECONDS), process_group_backend="gloo")
        trainer = make_trainer(root, *callbacks, max_epochs=3, devices=2, strategy=strategy)
        try:
            trainer.fit(Teacher(), InOrder(batch_size=16, train_size=64))
        except Exception as error:
            (root / f"rank_{rank}.txt").write_text(f"{type(error).__name__}: {error}")

    return work


def _inject(callbacks: list[Callback], phase: str, fault: Fault) -> None:
    if phase == "taking":
        callbacks.insert(0, AtEpochEnd(fault))
        return
    real = Store.commit

    def commit(store: Store, weights: Any, *, epoch: int, **options: Any) -> Any:
        if epoch == _FAULT_EPOCH:
            fault()
        return real(store, weights, epoch=epoch, **options)

    owner, name, planted = {
        "opening": (Store, "create", fault),
        "storing": (Store, "commit", commit),
        "ending": (Recorder, "forget_after", fault),
        "scoring": (SnapshotScorer, "score", fault),
        "publishing": (selector, "publish", fault),
    }[phase]
    assert hasattr(owner, name), f"{owner.__name__} has no {name} any more: the fault would not be met"
    setattr(owner, name, planted)


if __name__ == "__main__":
    main(rank_trials)
