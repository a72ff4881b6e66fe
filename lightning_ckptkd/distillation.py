"""The third door: a LightningModule that trains a student on the chosen snapshots."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError, SnapshotError, TeacherError
from lightning_ckptkd.losses import KDLoss, LogitLoss
from lightning_ckptkd.snapshots.weights import names_of, plain_names
from lightning_ckptkd.tasks.legacy import check_labels, check_rows, get_logits, inputs_and_labels
from lightning_ckptkd.teachers import (
    FeatureMatching,
    TeacherCache,
    TeacherEnsemble,
    TeacherPath,
    TeacherSchedule,
    calibrate,
    check_acceleration,
    load_teachers,
    pair_harvests,
)
from lightning_ckptkd.teachers.ensemble import check_finite
from lightning_ckptkd.teachers.feature_matching import (
    StepFeatures,
    catch_features,
    check_layers,
    check_resumed,
    drop_gradients_of_others,
    make_projectors,
    make_saved_projectors,
    match_features,
    refuse_averaging,
    zero_of_others,
)
from lightning_ckptkd.teachers.mixing import Mix, check_cached_mix
from lightning_ckptkd.teachers.teacher_cache import CachedBatch, describe_network, pick, train_on_cache
from lightning_ckptkd.trainer.optimizers import LRSchedulerCallable, OptimizerCallable, configure
from lightning_ckptkd.trainer.ranks import current_rank, on_each_rank
from lightning_ckptkd.trainer.sharding import shard

_CHECKPOINT_KEY = "lightning_ckptkd_teachers"
_PATH_KEY = "lightning_ckptkd_teacher_path"


KDFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A loss of the student's logits (N, K), the teachers' (M, N, K) and the labels (N,)."""


class DistillationModule(LightningModule):
    """Train a student on the logits of chosen snapshots.

    The loss is the paper's unless ``kd_loss`` gives another: alpha * CE(student, labels) + (1 - alpha) * T^2 *
    KL(softmax(mean of the teachers' logits / T) || softmax(student's logits / T)). The teachers are read, verified and
    frozen before training starts; they stay in eval mode and are no part of this module's parameters, buffers or
    checkpoints. Each process has its own copy of them.

    Under ModelParallelStrategy the student is sharded as one unit by FSDP2's ``fully_shard``, over the data-parallel
    ranks; a subclass that overrides ``configure_model`` shards it itself. A student may be compiled: checkpoints name
    its weights as without ``torch.compile``, and load into either. Teachers run in the Trainer's precision: under
    autocast with its ``*-mixed`` ones, and in the student's type with ``*-true`` ones.

    Logged: ``train_loss``, and for validation and test ``{val,test}_loss``, ``_acc`` (the student's), ``_agreement``
    (share of samples on which student and ensemble agree) and, once, ``_teacher_acc`` (the ensemble's). Where the
    harvest is gone, validating and testing still log the student's accuracy.

    Args:
        student: The network to train; it returns logits.
        teacher: The architecture of the teachers: the network or the LightningModule that was trained. Its own
            weights are not used.
        snapshots: The harvest's folder; or those of several harvests, all of whose chosen snapshots teach together,
            with one ``teacher`` for all or a list of one for each.
        choice: Which snapshots of each harvest teach. None: those of ``selection.json``, or the last one, with a
            warning, where nothing was selected. ``selected``, ``full`` (the last), ``half`` (half-way), or a list of
            epochs.
        alpha: Weight of the labels' cross-entropy, in [0, 1].
        temperature: T > 0, of the default ``kd_loss``.
        kd_loss: What stands beside the cross-entropy: a loss of :mod:`lightning_ckptkd.losses`, or any function of
            the student's logits (N, K), the teachers' (M, N, K) and the labels (N,).
        schedule: Which teachers a step learns from, one of :mod:`lightning_ckptkd.teachers.schedules`; None: all.
        kd_from_epoch: The student's first epoch, from 0, with teachers; before it the labels teach alone.
        kd_until_epoch: The first epoch without them again; None: to the end.
        teacher_weights: What each teacher counts, in the order of the choice; ``score``: its score in
            ``selection.json`` (of a single harvest); None: all the same.
        optimizer: Makes the optimiser; the default is the paper's.
        lr_scheduler: Makes the learning-rate schedule, stepped once an epoch; None keeps the rate.
        submodule: Part of the snapshots' weights to load, where ``teacher`` is only a part of what was harvested.
        cache: Run the teachers once, not once an epoch, and keep their logits on disk; see :class:`TeacherCache`.
        mix: ``Mixup`` or ``CutMix``, for the training batches. Live teachers see
            the mixed samples; the cache has their logits on the samples themselves, so that with it the loss must be
            ``KDLoss`` or ``MSELoss``.
        feature_matching: Match the student's features with the teachers' too; see :class:`FeatureMatching`. The
            teachers then run for their features also where ``alpha`` is 1, and always in the plain loop, whatever
            ``acceleration`` and ``bf16_teachers`` say. Adds ``train_feature_loss`` to the log, and the projectors to
            the module's parameters and checkpoints.
        acceleration: How the teachers may run: ``auto`` times on the first batch what gives the plain loop's logits
            to 1e-5 (BatchNorm folded, channels last, compiled code where ten minutes of their time are ahead) and
            keeps the fastest; ``compile`` compiles in any case; ``none`` is the plain loop.
        bf16_teachers: Whether they may run in bfloat16 too, where that is faster and gives their logits to 1e-2.
        logits_key: Where the logits are, if the teacher returns a tuple, mapping or object.
        student_logits_key: The same for the student.

    Raises:
        ArgumentError: If an option can't be used; before training starts, if schedule or weights do not suit the
            teachers.
        SnapshotError: Before training starts, if a file is missing, damaged or hostile.
        TeacherError: Before training starts, if a snapshot does not fit ``teacher``, or a resumed run would learn
            from other snapshots; at the first batch, if student and teachers have different numbers of classes, or a
            teacher gives NaN or infinity (on a GPU that is looked for in the first batch of each epoch only).
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | list[nn.Module],
        snapshots: str | Path | list[str] | list[Path],
        choice: str | list[int] | None = None,
        alpha: float = 0.5,
        temperature: float = 5.0,
        kd_loss: nn.Module | KDFunction | None = None,
        schedule: TeacherSchedule | None = None,
        kd_from_epoch: int = 0,
        kd_until_epoch: int | None = None,
        teacher_weights: list[float] | str | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(
            p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        ),
        lr_scheduler: LRSchedulerCallable | None = None,
        submodule: str | None = None,
        cache: TeacherCache | None = None,
        mix: Mix | None = None,
        feature_matching: FeatureMatching | None = None,
        acceleration: str = "auto",
        bf16_teachers: bool = False,
        logits_key: str | int | None = None,
        student_logits_key: str | int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ArgumentError(f"alpha should be in [0, 1], got {alpha}.")
        if not 0 <= kd_from_epoch < (math.inf if kd_until_epoch is None else kd_until_epoch):
            raise ArgumentError(
                f"kd_from_epoch={kd_from_epoch} should be 0 or more and before kd_until_epoch={kd_until_epoch}."
            )
        if teacher_weights is not None and kd_loss is not None and not isinstance(kd_loss, LogitLoss):
            raise ArgumentError(
                "teacher_weights need a loss that takes them: one of lightning_ckptkd.losses. Leave them out, or weigh "
                "the teachers in the function that kd_loss gives."
            )
        if mix is not None and cache is not None:
            check_cached_mix(kd_loss)
        if cache is not None and feature_matching is not None:
            raise ArgumentError(
                "feature_matching needs the teachers' features, but a cache holds their logits only. Leave cache or "
                "feature_matching out."
            )
        check_acceleration(acceleration)
        harvests = pair_harvests(snapshots, teacher, teacher_weights)
        self.save_hyperparameters(
            ignore=[
                "student",
                "teacher",
                "kd_loss",
                "schedule",
                "cache",
                "mix",
                "feature_matching",
                "optimizer",
                "lr_scheduler",
            ]
        )
        # a Path among the hyper-parameters, also one that a subclass was given, would bar weights_only loading
        self.hparams["snapshots"] = next(iter(harvests)) if len(harvests) == 1 else list(harvests)
        self.student = student
        self.alpha = alpha
        self.kd_loss = KDLoss(temperature) if kd_loss is None else kd_loss
        self._schedule = schedule
        self._cache_option = cache
        self._mix = mix
        self._feature_matching = feature_matching
        self.projectors = nn.ModuleList()  # one for each teacher, where features are matched
        self._matched: set[int] = set()  # places of the teachers that ran since the last optimiser step
        self._kd_epochs = range(kd_from_epoch, sys.maxsize if kd_until_epoch is None else kd_until_epoch)
        self.teachers: TeacherEnsemble | None = None
        self._teacher_files: list[dict[str, str]] = []
        self._teacher_path: TeacherPath | None = None  # None until they are calibrated
        self._known_path: TeacherPath | None = None
        self._teacher_epochs: list[int] = []
        self._network = ""
        self._teacher_weights: Tensor | None = None
        self._load_teachers = partial(
            load_teachers, harvests, choice, teacher_weights, submodule=submodule, logits_key=logits_key
        )
        self._student_logits_key = student_logits_key
        self._optimizer, self._lr_scheduler = optimizer, lr_scheduler
        self._labels_checked = False
        self._teacher_accuracy_logged: set[str] = set()

    def unpack_batch(self, batch: Any) -> tuple[Tensor, Tensor]:
        """X and Y of one batch; override it where a batch is not ``(x, y)``."""
        return inputs_and_labels(batch)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        """The student's logits, shape (N, K), of inputs (N, ...)."""
        name = type(self.student).__name__
        return get_logits(self.student(inputs), self._student_logits_key, name, "student_logits_key")

    @override
    def setup(self, stage: str) -> None:
        strategy = None if self._trainer is None else self._trainer.strategy
        if isinstance(strategy, ModelParallelStrategy) and not is_overridden("configure_model", self):
            # no method of the class, since WeightAveraging takes one for a sign of sharding and warns
            self.configure_model = self._shard_student  # type: ignore[method-assign]
        if self.teachers is not None or stage == "predict":
            return
        try:
            teachers, snapshots, self._teacher_weights = on_each_rank(self._load_teachers)
        except SnapshotError as error:
            if stage == "fit":
                raise
            rank_zero_warn(f"The student is evaluated without its teachers, who can't be read: {error}")
            return
        self._teacher_files = [{"file": snapshot.file, "sha256": snapshot.sha256} for snapshot in snapshots]
        self._teacher_epochs = [snapshot.epoch for snapshot in snapshots]
        if self._schedule is not None:
            self._schedule.check(self._teacher_epochs)
        if self._feature_matching is not None:
            check_layers(self._feature_matching, self.student, teachers)
            if stage == "fit":
                refuse_averaging(self._trainer)
            if len(self.projectors) != len(teachers):  # else they came from a checkpoint
                self.projectors = make_projectors(self._feature_matching, len(teachers)).to(self.device)
        self.teachers = teachers
        self._network = describe_network(teachers)  # before they are folded

    @override
    def on_fit_start(self) -> None:
        self._teacher_accuracy_logged.clear()
        self._place_teachers()

    @override
    def on_train_start(self) -> None:
        if self._cache_option is None or self.alpha == 1:
            return
        self._place_teachers()
        train_on_cache(
            self.trainer,
            self._cache_option,
            self._run_for_cache,
            tuple(item["sha256"] for item in self._teacher_files),
            f"{self._network} {self._dtype_of_student()}",
            self.unpack_batch,
        )

    @override
    def on_validation_start(self) -> None:
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._teacher_accuracy_logged.clear()
        self._place_teachers()

    @override
    def on_test_start(self) -> None:
        self._teacher_accuracy_logged.clear()
        self._place_teachers()

    @override
    def teardown(self, stage: str) -> None:
        if self.teachers is not None:
            self.teachers.to(torch.device("cpu"), self._dtype_of_student())

    @override
    def on_train_epoch_start(self) -> None:
        self._labels_checked = False

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        cached = None
        if isinstance(batch, CachedBatch):
            batch, cached = batch
        inputs, labels = self.unpack_batch(batch)
        pairs = None
        if self._mix is not None:
            inputs, pairs = self._mix(inputs, self.global_step, batch_idx, current_rank())
        matching = self._feature_matching
        learns = (self.alpha < 1 or matching is not None) and self.current_epoch in self._kd_epochs
        if learns and cached is None and self._teacher_path is None and self._trainer is not None:
            self._calibrate(inputs, self.trainer.estimated_stepping_batches * self.trainer.accumulate_grad_batches)
        which = self._which() if learns else None
        with catch_features(matching if learns else None, self.student, self.teachers, which) as features:
            student, teachers = self._logits(inputs, labels, which, cached, need_teachers=learns)
        loss = self._loss(student, teachers, labels, which)
        if pairs is not None:
            if teachers is not None and cached is not None:  # they are of the samples themselves
                teachers = teachers[:, pairs.permutation]
            loss = pairs.average(loss, self._loss(student, teachers, labels[pairs.permutation], which))
        if matching is not None:
            loss = loss + self._feature_term(features, matching.weight, len(labels))
        self.log(
            "train_loss",
            loss,
            prog_bar=True,
            on_step=False,
            on_epoch=True,
            batch_size=len(labels),
            sync_dist=True,
        )
        return loss

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        drop_gradients_of_others(self.projectors, self._matched)
        self._matched.clear()

    @override
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "val", dataloader_idx)

    @override
    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self._teacher_accuracy_logged.add("val")

    @override
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "test", dataloader_idx)

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs = batch if isinstance(batch, Tensor) else self.unpack_batch(batch)[0]
        logits: Tensor = self(inputs)
        return logits

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        return configure(nn.ModuleList([self.student, self.projectors]), self._optimizer, self._lr_scheduler)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "state_dict" in checkpoint:
            checkpoint["state_dict"] = plain_names(checkpoint["state_dict"])
        checkpoint[_CHECKPOINT_KEY] = self._teacher_files
        if self._teacher_path is not None:
            checkpoint[_PATH_KEY] = asdict(self._teacher_path)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "state_dict" in checkpoint:
            checkpoint["state_dict"] = names_of(self, checkpoint["state_dict"])
        saved = checkpoint.get(_CHECKPOINT_KEY)
        fitting = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        if not fitting:
            self.projectors = make_saved_projectors(self._feature_matching, checkpoint).to(self.device)
        if not fitting or saved is None:
            return
        hashes = [sorted(item["sha256"] for item in files) for files in (saved, self._teacher_files)]
        if hashes[0] != hashes[1]:
            names = [[item["file"] for item in files] for files in (saved, self._teacher_files)]
            raise TeacherError(
                f"The checkpoint's run learnt from {names[0]}, this one would from {names[1]} of "
                f"{self.hparams['snapshots']}. Select the same snapshots again, name their epochs with choice=, or "
                "start a new run."
            )
        check_resumed(
            self.projectors, checkpoint, *([item["sha256"] for item in files] for files in (saved, self._teacher_files))
        )
        if _PATH_KEY in checkpoint:  # a path that is timed anew could be another one, with other last digits
            self._known_path = TeacherPath(**checkpoint[_PATH_KEY])

    def _shard_student(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            shard(self.student, self.trainer.strategy)

    def _evaluate(self, batch: Any, stage: str, dataloader_idx: int) -> None:
        inputs, labels = self.unpack_batch(batch)
        student, teachers = self._logits(inputs, labels, None, None, need_teachers=self.teachers is not None)
        pairs = {"acc": (student, labels)}
        if teachers is not None:
            loss = self._loss(student, teachers, labels, None)
            self.log(f"{stage}_loss", loss, prog_bar=True, batch_size=len(labels), sync_dist=True)
            consensus = teachers.mean(0)
            pairs["agreement"] = student, consensus.argmax(1)
            if stage not in self._teacher_accuracy_logged:
                pairs["teacher_acc"] = consensus, labels
        for name, (logits, truth) in pairs.items():
            key = f"{stage}_{name}_{dataloader_idx}"
            if key not in self._modules:
                self.add_module(key, MulticlassAccuracy(average="micro").to(self.device))
            metric: Any = self.get_submodule(key)
            metric(logits, truth)
            self.log(
                f"{stage}_{name}", metric, prog_bar=name == "acc", on_step=False, on_epoch=True, metric_attribute=key
            )

    def _which(self) -> list[int] | None:
        """Places of the teachers of this step; None for all."""
        if self._schedule is None:
            return None
        steps = self.trainer.estimated_stepping_batches
        if self._schedule.needs_length and not math.isfinite(steps):
            raise ArgumentError(
                f"schedule={type(self._schedule).__name__} needs to know how long training is: give the Trainer "
                "max_epochs or max_steps."
            )
        part = self.global_step / steps
        return self._schedule.teachers(self._teacher_epochs, self.global_step, self.current_epoch, part)

    def _logits(
        self, inputs: Tensor, labels: Tensor, which: list[int] | None, cached: Tensor | None, *, need_teachers: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The student's logits (N, K) and the teachers' (M, N, K), checked against each other and the labels."""
        student: Tensor = self(inputs)
        check_rows(student, len(labels), f"the student ({type(self.student).__name__})")
        teachers = None
        if need_teachers:
            assert self.teachers is not None, "setup() loads the teachers"
            teachers = self.teachers(inputs, which) if cached is None else pick(cached, which)
            check_rows(teachers[0], len(labels), "a teacher")
            if teachers.shape[2] != student.shape[1]:
                raise TeacherError(
                    f"The student has {student.shape[1]} classes and the teachers ({', '.join(self.teachers.names)} of "
                    f"{self.hparams['snapshots']}) have {teachers.shape[2]}. Give the student the teachers' number."
                )
        if labels.device.type == "cpu" or not self._labels_checked:  # elsewhere a check waits for the device
            check_labels(labels, student.shape[1])
            if self.training and teachers is not None and cached is None:  # what is cached was checked
                assert self.teachers is not None
                names = self.teachers.names
                check_finite(teachers, names if which is None else [names[place] for place in which])
            self._labels_checked = True
        return student, teachers

    def _loss(self, student: Tensor, teachers: Tensor | None, labels: Tensor, which: list[int] | None) -> Tensor:
        if teachers is None or self.alpha == 1:
            return F.cross_entropy(student, labels)
        weights: tuple[Tensor, ...] = ()
        if self._teacher_weights is not None:
            own = self._teacher_weights if which is None else self._teacher_weights[which]
            weights = (own.to(student.device),)
        loss: Tensor = (1 - self.alpha) * self.kd_loss(student, teachers, labels, *weights)
        return loss + self.alpha * F.cross_entropy(student, labels) if self.alpha > 0 else loss

    def _feature_term(self, features: StepFeatures, weight: float, batch_size: int) -> Tensor | float:
        self._matched.update(features.teachers)
        rest = zero_of_others(self.projectors, features.teachers)
        if not features.teachers:
            return rest
        found = match_features(self.projectors, features, self._teacher_weights)
        self.log("train_feature_loss", found, on_step=False, on_epoch=True, batch_size=batch_size, sync_dist=True)
        return weight * found + rest

    def _run_for_cache(self, inputs: Tensor) -> Tensor:
        """The teachers' logits, as training would have them from batches that Lightning has converted."""
        assert self.teachers is not None and self._cache_option is not None
        inputs = inputs.to(self._dtype_of_student()) if inputs.is_floating_point() else inputs
        if self._teacher_path is None:
            self._calibrate(inputs, self._cache_option.views * self.trainer.num_training_batches)
        return self.teachers(inputs)

    def _calibrate(self, inputs: Tensor, batches: float) -> None:
        """Find the fastest path for so many batches."""
        assert self.teachers is not None
        options = self.hparams
        found = calibrate(
            self.teachers,
            inputs,
            options["acceleration"] if self._feature_matching is None else "none",  # others change what layers give
            bf16=options["bf16_teachers"],
            batches=batches if math.isfinite(batches) else 0,
            known=self._known_path,
        )
        self._teacher_path = found.path
        rank_zero_info(found.describe(self.teachers))

    def _place_teachers(self) -> None:
        if self.teachers is not None:
            self.teachers.to(self.device, self._dtype_of_student())

    def _dtype_of_student(self) -> torch.dtype:
        return next((p.dtype for p in self.student.parameters() if p.is_floating_point()), torch.float32)
