"""A training run that is interrupted and resumed has the harvest of one that was not, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from lightning_ckptkd import CheckpointHarvester, SnapshotStore
from lightning_ckptkd.snapshots.folders import local
from tests.projects import DigitsData, Project, make_trainer
from tests.reliability.forking import fork, main, wait

EPOCHS = 10
KINDS = ("exception", "Ctrl-C", "SIGTERM", "SIGKILL")
PLACES = ("in the epoch", "at its end", "after the checkpoint")
_SIGNALS = {"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}


class Interrupt(Callback):
    """Ends the run in one of the ways at one of the places of one epoch."""

    def __init__(self, kind: str, place: str, epoch: int) -> None:
        self.kind, self.place, self.epoch = kind, place, epoch

    def at(self, place: str, trainer: Trainer) -> None:
        if place == self.place and trainer.current_epoch == self.epoch:
            if self.kind == "exception":
                raise RuntimeError("interrupted")
            os.kill(os.getpid(), _SIGNALS[self.kind])

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 1:
            self.at("in the epoch", trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.at("at its end", trainer)


class InterruptingCheckpoint(ModelCheckpoint):
    """The project's own checkpoints; ends the run when one is on disk."""

    interrupt: Interrupt | None = None

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self.interrupt is not None:
            self.interrupt.at("after the checkpoint", trainer)


class SlowDisk:
    """The ``os`` module on a disk that needs time, so that runs end while snapshots are being written."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        time.sleep(0.01)


def train(root: Path, interrupt: Interrupt | None) -> None:
    """Train for ten epochs, from the last checkpoint if there is one."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # processes in the background are started without it
    warnings.simplefilter("ignore")
    seed_everything(0, verbose=False)
    local.os = SlowDisk()  # type: ignore[assignment]
    own = InterruptingCheckpoint(dirpath=root / "own", filename="last", save_on_train_epoch_end=True)
    own.CHECKPOINT_EQUALS_CHAR = "_"
    callbacks: list[Callback] = [CheckpointHarvester(root / "harvest"), own]
    if interrupt is not None:
        own.interrupt = interrupt
        callbacks.insert(0, interrupt)
    trainer = make_trainer(root, *callbacks, max_epochs=EPOCHS, enable_checkpointing=True)
    checkpoints = sorted((root / "own").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    trainer.fit(Project(), DigitsData(shuffle=False), ckpt_path=checkpoints[-1] if checkpoints else None)


def interruption_trials(places: int, seed: int = 0, every: int = 1) -> dict[str, Any]:
    """Each way to end a run x each of its epochs, or every few, x ``places`` of an epoch's three places, by turns.

    Raises:
        AssertionError: If a committed snapshot is gone, or the resumed harvest differs from an uninterrupted one.
    """
    trials = uncommitted = 0
    with tempfile.TemporaryDirectory(prefix="ckptkd-") as scratch:
        whole = Path(scratch) / "whole"
        assert wait(fork(lambda: train(whole, None))) == 0
        wanted = _content(whole / "harvest")
        assert [entry.epoch for entry, _ in wanted] == list(range(EPOCHS))
        for number, kind in enumerate(KINDS):
            for epoch in range(0, EPOCHS, every):
                for place in range(places):
                    root = Path(scratch) / "cut"
                    interrupt = Interrupt(kind, PLACES[(number + epoch + place + seed) % len(PLACES)], epoch)
                    uncommitted += _interrupt_once(root, interrupt, wanted)
                    shutil.rmtree(root)
                    trials += 1
    return {"trials": trials, "made_up_for_from_the_checkpoint": uncommitted}


def _interrupt_once(root: Path, interrupt: Interrupt, wanted: list[tuple[Any, dict[str, torch.Tensor]]]) -> bool:
    where = f"{interrupt.kind} {interrupt.place} of epoch {interrupt.epoch}"
    status = wait(fork(lambda: _silently(lambda: train(root, interrupt))))
    assert status == (-signal.SIGKILL if interrupt.kind == "SIGKILL" else 1), f"{where}: ended with {status}"
    before = _content(root / "harvest") if (root / "harvest" / "manifest.json").exists() else []
    for (entry, weights), (_, expected) in zip(before, wanted, strict=False):
        assert all(torch.equal(weights[name], expected[name]) for name in expected), f"{where}: {entry.label} differs"
    due = interrupt.epoch + (interrupt.place == "after the checkpoint")
    if interrupt.kind != "SIGKILL":  # Lightning minds SIGTERM only after the next batch, or the epoch's end
        assert due <= len(before) <= due + (interrupt.kind == "SIGTERM"), (
            f"{where}: {len(before)} snapshots of {due} were committed"
        )
    assert wait(fork(lambda: train(root, None))) == 0, where
    after = _content(root / "harvest")
    assert [entry for entry, _ in after] == [entry for entry, _ in wanted], where
    for (entry, weights), (_, expected) in zip(after, wanted, strict=True):
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected), f"{where}: {entry.label} differs"
    names = {snapshot.file for snapshot in SnapshotStore.open(root / "harvest").snapshots}
    assert {path.name for path in (root / "harvest").iterdir()} == {"manifest.json", ".lock", *names}, where
    return len(before) < due and interrupt.place == "after the checkpoint"


def _content(folder: Path) -> list[tuple[Any, dict[str, torch.Tensor]]]:
    store = SnapshotStore.open(folder)
    return [(replace(snapshot, file=""), store.load(snapshot)) for snapshot in store.snapshots]


def _silently(work: Any) -> None:
    """Run what is meant to end with a traceback, without showing it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stderr.fileno())
    work()


if __name__ == "__main__":
    main(interruption_trials)
