"""The first door: a callback that snapshots the weights while a model trains."""

from __future__ import annotations

import contextlib
import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn.parameter import is_lazy
from typing_extensions import override

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError, CkptKDError, SnapshotError
from lightning_ckptkd.snapshots.cadence import Cadence
from lightning_ckptkd.snapshots.clock import StepClock, WeightSample
from lightning_ckptkd.snapshots.fields import json_safe
from lightning_ckptkd.snapshots.folders import open_folder
from lightning_ckptkd.snapshots.host_copy import (
    STORED_DTYPES,
    HostCopy,
    is_sharded,
    join_gathering,
)
from lightning_ckptkd.snapshots.layout import Layout, plan_layout
from lightning_ckptkd.snapshots.manifest import MANIFEST_NAME, Manifest
from lightning_ckptkd.snapshots.recorder import Recorder
from lightning_ckptkd.snapshots.retention import Retention
from lightning_ckptkd.snapshots.store import SnapshotStore
from lightning_ckptkd.snapshots.weights import get_submodule, module_weights
from lightning_ckptkd.trainer.loggers import check_artifact, log_folder
from lightning_ckptkd.trainer.namespaces import TakesDataOfOneName
from lightning_ckptkd.trainer.ranks import on_rank_zero
from lightning_ckptkd.trainer.strategies import check_strategy, find_averaging, harvested_module

FOLDER_NAME = "snapshots"
_ARTIFACT = "harvest"


class CheckpointHarvester(TakesDataOfOneName):
    """Snapshot the weights at each epoch, as teachers for distillation.

    A plain callback: the project's own ``ModelCheckpoint`` and the training itself stay as they are. Each snapshot
    is one safetensors file; ``manifest.json`` in the same folder says which exist. Weights are taken at the end of
    an epoch before the LightningModule's own ``on_train_epoch_end``; the metrics that this hook logs are recorded
    too, when the next hook runs. Training waits for the copy of the weights alone; a thread hashes and writes it.

    Args:
        dirpath: The folder: a path, or an fsspec URL such as ``s3://bucket/run/snapshots``. None takes ``snapshots``
            in the first logger's folder (``save_dir/name/version``) or, without a logger, in the Trainer's
            ``default_root_dir``.
        submodule: Attribute path of the part of the LightningModule to harvest, such as ``network``; None
            harvests all of it.
        every_n_epochs: A snapshot at the end of every n-th epoch; None is 1, where neither of the next two is given.
        every_n_train_steps: A snapshot after every n-th optimiser step instead.
        epochs: Snapshots at the end of these epochs (counted from 0, as Lightning does) instead.
        window: Only in this part of training, as two fractions: ``(0, 0.5)`` is the first half.
        keep_last: Keep this many snapshots, the newest. None keeps all.
        keep_bytes: Keep what fits into this many bytes, spread evenly over training, instead.
        dtype: What floating-point weights are stored as: ``bf16`` or ``fp16``; None stores them as they are.
        averaged: Harvest the averaged weights of Lightning's ``WeightAveraging`` (or ``EMAWeightAveraging``) callback,
            once it has begun to average, instead of the trained ones. It must be listed before this callback.
        on_error: What a snapshot that can't be stored does to training: ``warn`` goes on without it (and tries again
            with the next), ``raise`` ends the run. What is committed stays in any case.
        as_artifact: When fitting has ended, give the folder to the run's W&B and MLflow loggers as an artifact, with
            the choice that :class:`MISelector` made.

    Raises:
        ArgumentError: If an argument can't be used; what depends on the project is checked when training starts.
        SnapshotError: When training starts, if the folder holds the harvest of another run, is being written by one
            or can't be written; during training, with ``on_error="raise"``, if a file can't be written.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        submodule: str | None = None,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        epochs: Sequence[int] | None = None,
        window: tuple[float, float] = (0.0, 1.0),
        keep_last: int | None = None,
        keep_bytes: int | None = None,
        dtype: str | None = None,
        averaged: bool = False,
        on_error: str = "warn",
        as_artifact: bool = False,
    ) -> None:
        check_types(CheckpointHarvester.__init__, locals())
        if dtype not in (None, *STORED_DTYPES):
            raise ArgumentError(f"dtype should be one of {', '.join(STORED_DTYPES)} or None, got {dtype!r}.")
        if on_error not in ("warn", "raise"):
            raise ArgumentError(f"on_error should be warn or raise, got {on_error!r}.")
        self.dirpath = dirpath
        self.submodule = submodule
        self.cadence = Cadence(every_n_epochs, every_n_train_steps, epochs, window)
        self.retention = Retention(keep_last, keep_bytes)
        self.dtype = dtype
        self.averaged = averaged
        self.on_error = on_error
        self.as_artifact = as_artifact
        self._fitted = False
        self.folder: str | None = None
        self._run_id: str | None = None
        self._restored: dict[str, Any] = {}  # the state in the checkpoint that is resumed, until training starts
        self._active = False  # from the start of training to its end, on every rank
        self._recorder: Recorder | None = None  # on rank 0
        self._averaging: WeightAveraging | None = None
        self._learning_rate: float | None = None
        self._clock = StepClock()
        self._counted = 0  # global_step when training started, or at the last snapshot
        self._sample: WeightSample | None = None  # of the weights at that moment
        self._was_due = False
        self._said_skipped = False
        self._last_entry: dict[str, Any] = {}
        self._waiting = False  # whether the last snapshot's metrics are not recorded yet
        self._stale_metrics: Mapping[str, Tensor] = {}
        self._earlier_metrics: dict[str, float | None] = {}  # of the epoch that a resumed run begins in the middle of

    @property
    @override
    def state_key(self) -> str:
        dirpath = None if self.dirpath is None else str(self.dirpath)
        if dirpath is not None and "://" not in dirpath:
            dirpath = str(Path(dirpath).expanduser().resolve())
        return self._generate_state_key(dirpath=dirpath, submodule=self.submodule)

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._restored and not self._active:  # saved again before training goes on, as tuners do
            return self._restored
        state = {"run_id": self._run_id, "folder": self.folder, "learning_rate": self._learning_rate}
        return {**state, "uncounted": self._clock.uncounted, "counted_batches": self._clock.batches}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self.folder = trainer.strategy.broadcast(str(self._resolve_folder(trainer)))
        self._fitted = False
        if self.as_artifact:
            check_artifact(trainer.loggers, self.folder)
        self._abandon()  # what an earlier fit could not
        self._restored = {}  # of an earlier test, say; a checkpoint that is resumed is loaded after this hook
        if trainer.global_step == 0 and _count_batches(trainer) == 0:
            self._run_id = None
            self._clock = StepClock()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.cadence.needs_progress and _progress(trainer, None if self.cadence.by_steps else 0) is None:
            raise ArgumentError(
                f"window={self.cadence.window}: the length of training is unknown. Give the Trainer max_epochs or "
                "max_steps (the latter if steps are counted and the data has no length), or leave window out."
            )
        check_strategy(trainer)
        self._averaging = find_averaging(trainer, self) if self.averaged else None
        get_submodule(pl_module, self.submodule, "submodule")
        self._last_entry = {}
        self._waiting = self._was_due = self._said_skipped = False
        restored, self._restored = self._restored, {}
        batches, uncounted = (
            _count_batches(trainer),
            restored.get("uncounted", 0) if restored else self._clock.uncounted,
        )
        self._clock = StepClock(trainer.global_step, restored.get("counted_batches", batches), uncounted)
        self._remember(trainer, pl_module)
        self._learning_rate = restored.get("learning_rate", self._learning_rate)
        self._earlier_metrics = restored.get("metrics", {})
        weights = module_weights(pl_module, self.submodule)  # every rank: sharded modules need it
        layout = None
        if not any(is_lazy(value) for value in weights.values()):
            layout = self._plan(weights)  # what can't be harvested shows now
            self.retention.check_room(layout.data_bytes)
        self.folder = on_rank_zero(lambda: self._open(trainer, pl_module, restored, layout))
        self._active = True
        unstored: dict[str, Any] = restored.get("unstored") or {}
        told = unstored.get("global_step") == self._clock.position
        if told and on_rank_zero(lambda: self._is_missing(unstored)):
            self._take(pl_module, unstored)  # the run was killed before it was written; the checkpoint has its weights

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record_metrics(trainer)
        if self._active:
            self._stale_metrics = dict(trainer.callback_metrics)
            self._earlier_metrics = {}

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._record_metrics(trainer)
        groups = trainer.optimizers[0].param_groups if trainer.optimizers else []
        self._learning_rate = float(groups[0]["lr"]) if groups else None

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        previous, batches = self._clock.position, _count_batches(trainer)
        if self._clock.tick(trainer.global_step, batches):
            if self.cadence.due_after_step(previous, self._clock.position, _progress(trainer)):
                self._snapshot(trainer, pl_module)
        elif trainer.global_step == self._counted:  # accumulated gradients, or steps that Lightning does not see
            ahead = self._clock.ahead(batches)
            if self.cadence.due_after_step(ahead - 1, ahead, _progress(trainer)) and self._moved(pl_module):
                self._snapshot(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record_metrics(trainer)
        progress = _progress(trainer, epochs_done=trainer.current_epoch + 1)
        if self.cadence.due_after_epoch(trainer.current_epoch, progress):
            self._snapshot(trainer, pl_module)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """See to it that a run resumed from this checkpoint has every snapshot before it."""
        if not self._active:
            return
        waiting = self._waiting
        metrics = self._new_metrics(trainer)
        self._record_metrics(trainer)
        self._waiting = waiting  # more may be logged before the next hook
        if self._recorder is not None:
            unstored = self._hand_over(self._recorder, trainer, pl_module)
            state = {**self.state_dict(), "unstored": unstored, "metrics": metrics}
            checkpoint["callbacks"][self.state_key] = state

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record_metrics(trainer)
        if self._active:
            self._active = False
            on_rank_zero(lambda: self._finish(forget_after=self._clock.position))

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fitted = not trainer.fast_dev_run  # type: ignore[attr-defined]
        if self._restored.get("unstored"):  # training was complete, so that it did not start again
            self.on_train_start(trainer, pl_module)
            self._active = False
            on_rank_zero(self._finish)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.world_size == 1:  # reading metrics is a collective, and other ranks may not be here
            self._record_metrics(trainer)
        self._abandon()
        super().on_exception(trainer, pl_module, exception)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._abandon()
        if self.as_artifact and self._fitted and self.folder is not None:  # other callbacks are done with it by now
            self._fitted = False
            log_folder(trainer.loggers, _ARTIFACT, Path(self.folder).expanduser())

    def _resolve_folder(self, trainer: Trainer) -> Path | str:
        if self.dirpath is not None:
            return self.dirpath
        if not trainer.loggers:
            return _join(trainer.default_root_dir, FOLDER_NAME)
        logger = trainer.loggers[0]
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        return _join(logger.save_dir or trainer.default_root_dir, str(logger.name), version, FOLDER_NAME)

    def _open(
        self, trainer: Trainer, pl_module: LightningModule, restored: Mapping[str, Any], layout: Layout | None
    ) -> str:
        """Open the store and the thread that writes to it."""
        assert self.folder is not None
        folder, resumed = self.folder, restored.get("folder")
        self._run_id = restored.get("run_id") or self._run_id or uuid.uuid4().hex
        if self.dirpath is None and resumed not in (None, folder):
            if _holds_run(resumed, self._run_id):
                folder = resumed  # the logger's folder is a new one, the harvest goes on in the old one
            else:
                rank_zero_warn(
                    f"CheckpointHarvester: {resumed} does not hold the snapshots of the run that is resumed, so the "
                    f"harvest goes on in {folder} without them. Give dirpath where they were moved."
                )
        store = SnapshotStore.create(folder, self._run_id, self._describe(pl_module))
        self._recorder = Recorder(
            store,
            position=self._clock.position,
            retention=self.retention,
            pinned=trainer.strategy.root_device.type == "cuda",
            on_wait=_say_wait,
        )
        if layout is not None:
            self._recorder.warm_up(layout)
        return str(store.folder)

    def _is_missing(self, entry: dict[str, Any]) -> bool:
        """Whether a snapshot that a checkpoint tells of is not there; what is there gets its metrics."""
        assert self._recorder is not None
        found = self._recorder.store.find(entry["global_step"])
        if found is None or found.sha256 != entry["sha256"]:
            return True
        self._recorder.set_metrics(entry["global_step"], entry["metrics"])
        return False

    def _plan(self, weights: Mapping[str, Tensor]) -> Layout:
        return plan_layout(weights, None if self.dtype is None else STORED_DTYPES[self.dtype])

    def _snapshot(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._active:  # fast_dev_run
            return
        self._was_due = True
        batches = _count_batches(trainer)
        if trainer.global_step == self._counted and batches > self._clock.batches and self._moved(pl_module):
            self._clock.count_batches(batches)
        step = self._clock.position
        if step in (0, self._last_entry.get("global_step")):
            self._say_skipped(trainer)
            return
        entry = {"epoch": trainer.current_epoch, "global_step": step, "learning_rate": self._learning_rate}
        if self._take(pl_module, entry):
            self._waiting = True
            self._remember(trainer, pl_module)

    def _remember(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what the weights are, to see later whether they have moved without a step that Lightning counts."""
        self._counted = trainer.global_step
        self._sample = WeightSample(pl_module)

    def _moved(self, pl_module: LightningModule) -> bool:
        """Whether the weights have moved since training started or the last snapshot; one answer on all ranks."""
        return on_rank_zero(lambda: self._sample is None or self._sample.differs(pl_module))

    def _say_skipped(self, trainer: Trainer) -> None:
        if not self._said_skipped:
            self._said_skipped = True
            rank_zero_warn(
                f"CheckpointHarvester: no snapshot is taken in epoch {trainer.current_epoch}, where one is due: no "
                "optimiser step was taken, and the weights are what they were when training started or the last "
                "snapshot was taken. Further ones are left out without a word."
            )

    def _take(self, pl_module: LightningModule, entry: dict[str, Any]) -> bool:
        """Copy the weights and have them written as ``entry`` says; on every rank. Whether there is a snapshot."""
        module = harvested_module(pl_module, self._averaging)
        if module is None:
            return False
        weights = module_weights(module, self.submodule)  # every rank, as all that follows
        copies: list[HostCopy] = []

        def reserve() -> Layout | bool:
            assert self._recorder is not None
            self._tell(self._recorder.take_problems())
            try:
                layout = self._plan(weights)
                copies.append(self._recorder.reserve(layout))
            except (CkptKDError, MemoryError, RuntimeError) as error:  # torch says RuntimeError where memory is short
                self._tell([SnapshotError(f"the snapshot at step {entry['global_step']} is not taken: {error}")])
                return False
            return layout if is_sharded(weights) else True

        reserved = on_rank_zero(reserve)
        if not reserved:
            return False
        if self._recorder is not None:
            copies[0].fill(weights)
            self._recorder.commit(copies[0], **entry)
        elif isinstance(reserved, Layout):
            join_gathering(weights, reserved)
        self._last_entry = entry
        return True

    def _record_metrics(self, trainer: Trainer) -> None:
        """Add what has been logged since the epoch began to the snapshot that was taken last."""
        if not self._active or not self._waiting:
            return
        self._waiting = False
        metrics = {**self._last_entry.get("metrics", {}), **self._new_metrics(trainer)}
        self._stale_metrics = dict(trainer.callback_metrics)
        self._last_entry["metrics"] = metrics
        if self._recorder is not None:
            self._recorder.set_metrics(self._last_entry["global_step"], metrics)

    def _new_metrics(self, trainer: Trainer) -> dict[str, float | None]:
        """What has been logged since the epoch began or the last snapshot got its metrics; on every rank."""
        logged = {
            name: float(value) if math.isfinite(float(value)) else None
            for name, value in trainer.callback_metrics.items()  # every rank: it can be a collective
            if self._stale_metrics.get(name) is not value
        }
        return {**self._earlier_metrics, **logged}

    def _hand_over(self, recorder: Recorder, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any] | None:
        """What a checkpoint must tell of the last snapshot; None once that is on disk.

        A run that is killed between the checkpoint and the snapshot makes up for it when it resumes, since the
        checkpoint holds the same weights. Where they have moved on since, the checkpoint waits for the snapshot, and in
        any case for those before it.
        """
        step = self._last_entry.get("global_step")
        copy = None if step is None else recorder.unstored(step)
        module = harvested_module(pl_module, self._averaging)
        if copy is not None and module is not None and step == self._clock.position:
            whole = not is_sharded(dict(module.named_parameters()))
            with contextlib.suppress(CkptKDError, MemoryError, RuntimeError):  # the writer tells what is wrong with it
                if whole and copy.matches(module_weights(module, self.submodule)):
                    recorder.flush_before(step)
                    return {"metrics": {}, **self._last_entry, "sha256": copy.sha256()}
        recorder.flush()
        return None

    def _finish(self, forget_after: int | None = None) -> None:
        recorder, self._recorder = self._recorder, None
        assert recorder is not None
        try:
            if forget_after is not None:
                recorder.forget_after(forget_after)
        finally:
            recorder.close()  # whatever goes wrong, the last snapshot is written
        self._tell(recorder.take_problems())
        if forget_after is not None and not self._was_due and not recorder.store.snapshots:
            rank_zero_warn(
                f"CheckpointHarvester: training has ended without a snapshot, since none was due ({self.cadence}) "
                "while the weights moved. Harvest more often, or train longer."
            )

    def _abandon(self) -> None:
        """Finish what is being written and let go, whatever the other ranks do."""
        self._active = False
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.close()
            for problem in recorder.take_problems():
                _warn(problem)

    def _tell(self, problems: Sequence[CkptKDError]) -> None:
        if problems and self.on_error == "raise":
            raise problems[0]
        for problem in problems:
            _warn(problem)

    def _describe(self, pl_module: LightningModule) -> dict[str, Any]:
        kind = type(pl_module)
        hyper_parameters = {key: value for key, value in pl_module.hparams.items() if not str(key).startswith("_")}
        return {
            "class_path": f"{kind.__module__}.{kind.__qualname__}",
            "hyper_parameters": json_safe(hyper_parameters),
            "submodule": self.submodule,
            "dtype": self.dtype,
            "averaged": self.averaged,
        }


def _join(folder: str | Path, *names: str) -> str:
    return "/".join([str(folder).rstrip("/"), *names])


def _say_wait() -> None:
    rank_zero_info(
        "CheckpointHarvester: training makes snapshots faster than they can be written, and waits for the writer "
        "(said once). Harvest less often, or into a faster folder."
    )


def _warn(problem: CkptKDError) -> None:
    what = str(problem).rstrip(".")
    rank_zero_warn(
        f"CheckpointHarvester: {what}. Training goes on; the next snapshot is tried. on_error='raise' would end it."
    )


def _count_batches(trainer: Trainer) -> int:
    """Training batches since the run began; Lightning restores the number on resume."""
    return trainer.fit_loop.total_batch_idx + 1


def _progress(trainer: Trainer, epochs_done: int | None = None) -> float | None:
    """Fraction of training that is done, by the limit that is nearer; None where no limit is known.

    Inside an epoch (``epochs_done`` None) the epoch's own length counts.
    """
    fractions = []
    if trainer.max_steps > 0:
        fractions.append(trainer.global_step / trainer.max_steps)
    batches = trainer.num_training_batches
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        if epochs_done is not None:
            fractions.append(epochs_done / trainer.max_epochs)
        elif math.isfinite(batches):
            fractions.append((trainer.current_epoch + (trainer.fit_loop.batch_idx + 1) / batches) / trainer.max_epochs)
    return max(fractions) if fractions else None


def _holds_run(location: str, run_id: str | None) -> bool:
    folder = open_folder(location)
    return folder.exists(MANIFEST_NAME) and Manifest.read(folder).run_id == run_id
