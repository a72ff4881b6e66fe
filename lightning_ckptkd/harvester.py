"""The first door: a callback that snapshots the weights while a model trains."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError, SnapshotError
from lightning_ckptkd.ranks import on_rank_zero
from lightning_ckptkd.snapshots.cadence import Cadence
from lightning_ckptkd.snapshots.fields import json_safe
from lightning_ckptkd.snapshots.manifest import MANIFEST_NAME, Manifest
from lightning_ckptkd.snapshots.store import SnapshotStore
from lightning_ckptkd.snapshots.weights import copy_to_cpu, get_submodule, select_weights

FOLDER_NAME = "snapshots"


class CheckpointHarvester(Callback):
    """Snapshot the weights at each epoch, as teachers for distillation.

    A plain callback: the project's own ``ModelCheckpoint`` and the training itself stay as they are. Each snapshot
    is one safetensors file; ``manifest.json`` in the same folder says which exist. Weights are taken at the end of
    an epoch before the LightningModule's own ``on_train_epoch_end``; the metrics that this hook logs are recorded
    too, when the next hook runs.

    Args:
        dirpath: The folder. None takes ``snapshots`` in the first logger's folder (``save_dir/name/version``) or,
            without a logger, in the Trainer's ``default_root_dir``.
        submodule: Attribute path of the part of the LightningModule to harvest, such as ``network``; None
            harvests all of it.
        every_n_epochs: A snapshot at the end of every n-th epoch; None is 1, where neither of the next two is given.
        every_n_train_steps: A snapshot after every n-th optimiser step instead.
        epochs: Snapshots at the end of these epochs (counted from 0, as Lightning does) instead.
        window: Only in this part of training, as two fractions: ``(0, 0.5)`` is the first half.

    Raises:
        ArgumentError: If an argument can't be used; ``submodule`` and ``window`` are checked when training starts.
        SnapshotError: When training starts, if the folder holds the harvest of another run; during training, if a
            file can't be written.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        submodule: str | None = None,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        epochs: Sequence[int] | None = None,
        window: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.dirpath = dirpath
        self.submodule = submodule
        self.cadence = Cadence(every_n_epochs, every_n_train_steps, epochs, window)
        self.folder: Path | None = None
        self._run_id: str | None = None
        self._resumed_folder: Path | None = None
        self._store: SnapshotStore | None = None
        self._learning_rate: float | None = None
        self._last_step = 0
        self._position = 0  # up to here the harvest is this run's; what lies beyond is a resumed run's abandoned branch
        self._last_snapshot = -1
        self._waiting: int | None = None  # step of the snapshot whose metrics are not recorded yet
        self._stale_metrics: Mapping[str, Tensor] = {}

    @property
    @override
    def state_key(self) -> str:
        dirpath = None if self.dirpath is None else str(Path(self.dirpath).expanduser().resolve())
        return self._generate_state_key(dirpath=dirpath, submodule=self.submodule)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"run_id": self._run_id, "folder": str(self.folder)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._run_id = state_dict["run_id"]
        self._resumed_folder = Path(state_dict["folder"])

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.folder = Path(trainer.strategy.broadcast(str(self._resolve_folder(trainer))))
        if trainer.global_step == 0:  # a new run; resuming restores the id after this hook
            self._run_id = self._resumed_folder = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if self.cadence.needs_progress and _progress(trainer, None if self.cadence.by_steps else 0) is None:
            raise ArgumentError(
                f"window={self.cadence.window}: the length of training is unknown. Give the Trainer max_epochs or "
                "max_steps (the latter if steps are counted and the data has no length), or leave window out."
            )
        get_submodule(pl_module, self.submodule, "submodule")
        self._last_step = trainer.global_step
        self._position = trainer.global_step
        self._last_snapshot = -1
        self._waiting = None
        self._store = on_rank_zero(lambda: self._open_store(pl_module))
        self.folder = self._store.folder

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record_metrics(trainer)
        if self._store is not None:
            self._stale_metrics = dict(trainer.callback_metrics)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._record_metrics(trainer)
        groups = trainer.optimizers[0].param_groups if trainer.optimizers else []
        self._learning_rate = float(groups[0]["lr"]) if groups else None

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        previous, self._last_step = self._last_step, trainer.global_step
        if self.cadence.due_after_step(previous, trainer.global_step, _progress(trainer)):
            self._snapshot(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record_metrics(trainer)
        progress = _progress(trainer, epochs_done=trainer.current_epoch + 1)
        if self.cadence.due_after_epoch(trainer.current_epoch, progress):
            self._snapshot(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._record_metrics(trainer)
        store = self._store
        if store is not None:
            on_rank_zero(lambda: store.forget_after(trainer.global_step))

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.world_size > 1:  # reading metrics is a collective, and the other ranks may not be here
            return
        try:
            self._record_metrics(trainer)
        except SnapshotError as error:
            rank_zero_warn(f"CheckpointHarvester could not record the last metrics: {error}")

    def _resolve_folder(self, trainer: Trainer) -> Path:
        if self.dirpath is not None:
            return Path(self.dirpath).expanduser()
        if not trainer.loggers:
            return Path(trainer.default_root_dir) / FOLDER_NAME
        logger = trainer.loggers[0]
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version / FOLDER_NAME

    def _open_store(self, pl_module: LightningModule) -> SnapshotStore:
        select_weights(pl_module.state_dict(), self.submodule)  # fails now rather than after the first epoch
        assert self.folder is not None
        folder, resumed = self.folder, self._resumed_folder
        if self.dirpath is None and resumed is not None and _holds_run(resumed, self._run_id):
            folder = resumed  # the logger's folder is a new one, the harvest goes on in the old one
        self._run_id = self._run_id or uuid.uuid4().hex
        return SnapshotStore.create(folder, self._run_id, _describe(pl_module, self.submodule))

    def _snapshot(self, trainer: Trainer) -> None:
        step = trainer.global_step
        store = self._store
        if store is None or step in (0, self._last_snapshot):  # fast_dev_run, or the weights have not moved
            return
        state = trainer.strategy.lightning_module_state_dict()  # every rank: it can be a collective

        def commit() -> None:
            store.commit(
                copy_to_cpu(select_weights(state, self.submodule)),
                epoch=trainer.current_epoch,
                global_step=step,
                learning_rate=self._learning_rate,
                after=self._position,
            )

        on_rank_zero(commit)
        self._last_snapshot = self._waiting = self._position = step

    def _record_metrics(self, trainer: Trainer) -> None:
        """Add what has been logged since the epoch began to the snapshot that was taken last."""
        store, step = self._store, self._waiting
        if store is None or step is None:
            return
        self._waiting = None
        metrics = {
            name: float(value) if math.isfinite(float(value)) else None
            for name, value in trainer.callback_metrics.items()  # every rank: it can be a collective
            if self._stale_metrics.get(name) is not value
        }
        on_rank_zero(lambda: store.set_metrics(step, metrics))


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


def _holds_run(folder: Path, run_id: str | None) -> bool:
    return (folder / MANIFEST_NAME).exists() and Manifest.read(folder).run_id == run_id


def _describe(pl_module: LightningModule, submodule: str | None) -> dict[str, Any]:
    kind = type(pl_module)
    hyper_parameters = {key: value for key, value in pl_module.hparams.items() if not str(key).startswith("_")}
    return {
        "class_path": f"{kind.__module__}.{kind.__qualname__}",
        "hyper_parameters": json_safe(hyper_parameters),
        "submodule": submodule,
    }
