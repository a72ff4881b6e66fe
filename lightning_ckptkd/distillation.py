"""The third door: a LightningModule that trains a student on the chosen snapshots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import MovedOptions
from lightning_ckptkd.snapshots.weights import names_of, plain_names
from lightning_ckptkd.tasks.alone import attach, let_log
from lightning_ckptkd.tasks.base import Task
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.calling import call, takes_whole
from lightning_ckptkd.tasks.outputs import get_output
from lightning_ckptkd.tasks.reading import BatchReader
from lightning_ckptkd.teachers import (
    Acceleration,
    CachedBatch,
    Evaluation,
    FeatureMatching,
    KDFunction,
    Mix,
    Objective,
    TeacherCache,
    TeacherEnsemble,
    TeacherPanel,
    TeacherSchedule,
    check_cached_mix,
)
from lightning_ckptkd.teachers.transfer_hooks import lend_hooks, tell_of_other_hooks
from lightning_ckptkd.trainer.length import step_number, training_batches
from lightning_ckptkd.trainer.namespaces import OfOneName
from lightning_ckptkd.trainer.optimizers import LRSchedulerCallable, OptimizerCallable, configure
from lightning_ckptkd.trainer.ranks import current_rank
from lightning_ckptkd.trainer.run_data import logged_numbers
from lightning_ckptkd.trainer.sharding import shard

_OBJECTS = (  # options whose values a checkpoint's hyper-parameters could not hold
    *("student", "teacher", "kd_loss", "optimizer", "lr_scheduler", "cache", "mix", "feature_matching", "schedule"),
    "unpack_batch",
)
_TEACHERS = "lightning_ckptkd.teachers"


class DistillationModule(OfOneName, MovedOptions, LightningModule):
    """Train a student on the logits of chosen snapshots.

    The loss is the paper's unless ``kd_loss`` or the task give another: alpha * CE(student, targets) + (1 - alpha) *
    T^2 * KL(softmax(mean of the teachers' logits / T) || softmax(student's logits / T)). The teachers are verified and
    frozen before training starts, in eval mode on each process, and no part of this module's state or checkpoints.

    Under ModelParallelStrategy the student is sharded as one unit by FSDP2's ``fully_shard``, over the data-parallel
    ranks; a subclass that overrides ``configure_model`` shards it itself. A student may be compiled: checkpoints name
    its weights as without ``torch.compile``, and load into either. Teachers run in the Trainer's precision.
    Logged, and kept in checkpoints: ``train_loss``; in validation and test ``_loss``, the task's metrics (``_acc``),
    ``_agreement`` with the ensemble and, once, its first metric (``_teacher_acc``); without the harvest the student's.

    Args:
        student: The network to train; it returns logits.
        teacher: The teachers' architecture: the network or LightningModule that was trained; its weights aren't used.
        snapshots: The harvest's folder, or those of several that teach together, with one ``teacher`` or one for each.
        choice: Which snapshots of each harvest teach: ``selected`` (or the soup of some, one teacher), ``full`` (the
            last), ``half`` (half-way), or a list of epochs. None: what was selected or, with a warning, the last one
            where nothing was.
        alpha: Weight of the targets' own loss, in [0, 1].
        temperature: T > 0, of the default ``kd_loss``.
        kd_loss: What stands beside it: a loss of :mod:`lightning_ckptkd.losses`, or any function of the student's
            logits (R, K), the teachers' (M, R, K) and the targets (R,), where R is N for classification.
        optimizer: Makes the optimiser; the default is the paper's.
        lr_scheduler: Makes the learning-rate schedule, stepped once an epoch; None keeps the rate.
        cache: Run the teachers once, not once an epoch, and keep their logits on disk; see :class:`TeacherCache`.
        mix: ``Mixup`` or ``CutMix`` for training batches; with a cache the loss must be ``KDLoss`` or ``MSELoss``.
        feature_matching: Match the student's features with the teachers' too; see :class:`FeatureMatching`. Teachers
            then run also where ``alpha`` is 1, always in the plain loop. Adds ``train_feature_loss`` to the log, and
            the projectors to the module's parameters and checkpoints.
        schedule: Which of :mod:`lightning_ckptkd.teachers.schedules` says who teaches when; None: all, always.
        teacher_weights: What each teacher counts, in the order of the choice; ``score``: its score in
            ``selection.json`` (of a single harvest); None: all the same.
        submodule: Part of the snapshots' weights to load, where ``teacher`` is only a part of what was harvested.
        acceleration: How the teachers may run: ``auto``, ``compile``, ``none``, or an :class:`Acceleration`.
        logits_key: Where the logits are, if the teacher returns a tuple, mapping or object.
        student_logits_key: The same for the student.
        task: What outputs and targets are: a name, a :class:`~lightning_ckptkd.tasks.base.Task`, or ``auto``.
        input_keys: What of a batch is the input; see :class:`~lightning_ckptkd.tasks.reading.BatchReader`.
        target_key: The same of the target.
        unpack_batch: A function of a batch that returns (inputs, targets), instead of both.
        ignore_index: Targets of this value are left out of the targets' own loss and of metrics.

    Raises:
        ArgumentError: If an option can't be used; before training, if one does not suit the teachers; at the first
            batch, if outputs and targets are not the task's.
        SnapshotError: Before training, if a file is missing, damaged or hostile.
        TeacherError: Before training, if a snapshot does not fit ``teacher``, or a resumed run had others; if student
            and teachers differ in classes, or a teacher gives NaN or infinity (on a GPU: once an epoch).
    """

    moved_options: ClassVar = {
        "kd_from_epoch": f"give from_epoch to the schedule, as in schedule={_TEACHERS}.AllTeachers(from_epoch=1)",
        "kd_until_epoch": f"give until_epoch to the schedule, as in schedule={_TEACHERS}.AllTeachers(until_epoch=9)",
        "bf16_teachers": f"give bf16 to the acceleration, as in acceleration={_TEACHERS}.Acceleration(bf16=True)",
    }

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | list[nn.Module],
        snapshots: str | Path | list[str] | list[Path],
        choice: str | list[int] | None = None,
        alpha: float = 0.5,
        temperature: float = 5.0,
        kd_loss: nn.Module | KDFunction | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(
            p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        ),
        lr_scheduler: LRSchedulerCallable | None = None,
        cache: TeacherCache | None = None,
        mix: Mix | None = None,
        feature_matching: FeatureMatching | None = None,
        schedule: TeacherSchedule | None = None,
        teacher_weights: list[float] | str | None = None,
        submodule: str | None = None,
        acceleration: str | Acceleration = "auto",
        logits_key: str | int | None = None,
        student_logits_key: str | int | None = None,
        task: str | Task = "auto",
        input_keys: str | int | list[str | int] | None = None,
        target_key: str | int | None = None,
        unpack_batch: Callable[[Any], tuple[Any, Any]] | None = None,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        check_types(DistillationModule.__init__, locals())
        if mix is not None and cache is not None:
            check_cached_mix(kd_loss)
        options = submodule, logits_key, schedule, acceleration, cache, feature_matching
        self.panel = TeacherPanel(snapshots, teacher, choice, teacher_weights, *options)
        self.objective = Objective(self.panel, alpha, temperature, kd_loss, task, ignore_index)
        self.evaluation = Evaluation(self.panel, self.objective)
        either = {"acceleration": acceleration, "task": task}  # a name or an object
        self.save_hyperparameters(ignore=[*_OBJECTS, *(name for name in either if not isinstance(either[name], str))])
        # a Path among the hyper-parameters, also one that a subclass was given, would bar weights_only loading
        self.hparams["snapshots"] = self.panel.where
        self.student = student
        self.kd_loss = kd_loss  # whose parameters and buffers are this module's
        self.projectors = self.panel.features.projectors  # likewise; one for each teacher, where features are matched
        self.alpha = alpha
        self._mix, self._student_logits_key = mix, student_logits_key
        self._optimizer, self._lr_scheduler = optimizer, lr_scheduler
        self._reader = BatchReader(input_keys, target_key, unpack_batch)
        own = is_overridden("unpack_batch", self, DistillationModule)
        self._read = BatchReader(unpack_batch=self.unpack_batch) if own else self._reader
        self._trained = teacher if isinstance(teacher, list) else [teacher]  # a list: no children of this module
        lend_hooks(self, student)

    @property
    def teachers(self) -> TeacherEnsemble | None:
        """The teachers; None until ``setup`` has loaded them."""
        return self.panel.ensemble

    def unpack_batch(self, batch: Any) -> tuple[Any, Any]:
        """Inputs and targets of one batch; override it where the options can't say which they are."""
        read = self._reader(batch[0] if isinstance(batch, CachedBatch) else batch)  # which is refused
        return read.inputs, read.targets

    @override
    def forward(self, inputs: Any) -> Tensor:
        """The student's logits, shape (N, ...), of inputs as its network takes them, or of a whole ``Batch``."""
        output = call(self.student, inputs if isinstance(inputs, Batch) else Batch(inputs))
        return get_output(output, self._student_logits_key, type(self.student).__name__, "student_logits_key")

    @override
    def setup(self, stage: str) -> None:
        strategy = None if self._trainer is None else self._trainer.strategy
        if isinstance(strategy, ModelParallelStrategy) and not is_overridden("configure_model", self):
            # no method of the class, since WeightAveraging takes one for a sign of sharding and warns
            self.configure_model = self._shard_student  # type: ignore[method-assign]
        attach(self.student, self._trainer)
        if stage == "fit":
            self.panel.features.refuse_averaging(self._trainer)
        if stage != "predict":
            self.panel.load(self.student, self.device, fitting=stage == "fit")
            self.objective.check_selected()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "state_dict" in checkpoint:
            checkpoint["state_dict"] = names_of(self, checkpoint["state_dict"])
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self.panel.resume(checkpoint)
        else:
            self.panel.features.take_saved(checkpoint, self.device)

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure(nn.ModuleList([self.student, self.projectors]), self._optimizer, self._lr_scheduler)

    @override
    def on_fit_start(self) -> None:
        tell_of_other_hooks(self, self.trainer.datamodule, self._trained)  # type: ignore[attr-defined]
        self.evaluation.start()
        self._settle()

    @override
    def on_train_start(self) -> None:
        if self.alpha < 1:
            self._settle()  # validating first may have moved the teachers
            self.panel.train_on_cache(self.trainer, self._read, self.student)

    @override
    def on_train_epoch_start(self) -> None:
        self.objective.start_epoch()

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        panel, objective, cached, pairs = self.panel, self.objective, None, None
        if isinstance(batch, CachedBatch):
            batch, cached = batch.batch, batch.logits
        read = self._read(batch)
        if self._mix is not None:
            read, pairs = self._mix.mix_batch(read, step_number(self), batch_idx, current_rank())
        places = panel.places(self) if self.alpha < 1 or panel.features.option is not None else []
        if places and cached is None and not panel.is_calibrated and self._trainer is not None:
            panel.calibrate(read, training_batches(self.trainer))
        with panel.features.catch(self.student, panel.ensemble, places) as features:
            student = self(read)
            teachers = panel.logits(read, places, cached) if places else None
        name = type(self.student).__name__
        loss, count = objective.step(student, teachers, read, places, name, cached=cached is not None, pairs=pairs)
        found, term = panel.match(features)
        if found is not None:
            self.log("train_feature_loss", found, on_step=False, on_epoch=True, batch_size=len(read), sync_dist=True)
        loss = loss if term is None else loss + term
        self.log("train_loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=count, sync_dist=True)
        return loss

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.panel.features.drop_gradients_of_others()

    @override
    def on_validation_start(self) -> None:
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self.evaluation.start()
        self._settle()

    @override
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluation.log(self, self._read(batch), "val", dataloader_idx)

    @override
    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.evaluation.end("val")

    @override
    def on_test_start(self) -> None:
        self.evaluation.start()
        self._settle()

    @override
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluation.log(self, self._read(batch), "test", dataloader_idx)

    @override
    def on_predict_start(self) -> None:
        self._settle()

    @override
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        logits: Tensor = self(Batch(batch) if isinstance(batch, Tensor) else self._read.inputs_only(batch))
        return logits

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "state_dict" in checkpoint:
            checkpoint["state_dict"] = plain_names(checkpoint["state_dict"])
        self.panel.save(checkpoint)
        checkpoint["lightning_ckptkd_metrics"] = logged_numbers(self._trainer)  # for the model card

    @override
    def teardown(self, stage: str) -> None:
        let_log(self.student)
        self.panel.place(torch.device("cpu"), self.student)

    def _shard_student(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            shard(self.student, self.trainer.strategy)

    def _settle(self) -> None:
        """Put the teachers where the student is, and see who takes whole batches, when all networks are made."""
        self.panel.place(self.device, self.student)
        self._read = replace(self._read, whole=takes_whole(self.student) or self.panel.take_whole)
