"""The teachers that a student meets, as one object that its module owns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_ckptkd.errors import ArgumentError, SnapshotError
from lightning_ckptkd.snapshots.manifest import SoupSnapshot
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.teachers.calibration import Acceleration, calibrate
from lightning_ckptkd.teachers.ensemble import TeacherEnsemble, TeacherPath, dtype_of
from lightning_ckptkd.teachers.feature_matcher import FeatureMatcher, StepFeatures
from lightning_ckptkd.teachers.feature_matching import FeatureMatching
from lightning_ckptkd.teachers.loading import check_same_teachers, load_teachers, pair_harvests
from lightning_ckptkd.teachers.logit_checks import check_finite, pick
from lightning_ckptkd.teachers.remembered import WayMemory, way_key
from lightning_ckptkd.teachers.scales import as_tensor, resumed_scales
from lightning_ckptkd.teachers.schedules import AllTeachers, Route, TeacherSchedule
from lightning_ckptkd.teachers.teacher_cache import TeacherCache, describe_network, train_on_cache
from lightning_ckptkd.trainer.length import share_done, step_number
from lightning_ckptkd.trainer.ranks import on_each_rank

_FILES_KEY, _PATH_KEY = "lightning_ckptkd_teachers", "lightning_ckptkd_teacher_path"
_SCALES_KEY = "lightning_ckptkd_teacher_scales"


class TeacherPanel:
    """Loads, places, times, caches and asks the teachers of one student, and knows which of them teach when.

    It is no ``nn.Module``, as :class:`TeacherEnsemble` is none: nothing of it is found by an optimiser, a checkpoint or
    DDP. What a checkpoint needs of it is in :meth:`save`.

    Args:
        snapshots: Folder of a harvest, or of several.
        teacher: The architecture of all, or one for each harvest.
        choice: Which snapshots of each harvest teach.
        weights: What each teacher counts: numbers, or ``score``; None: the same.
        submodule: Part of the snapshots' weights to load.
        logits_key: Where the logits are in a teacher's output.
        schedule: Which of them teach when; None: all, always.
        acceleration: How they may run.
        cache: Where their logits on the training samples are kept; None: they run in each step.
        feature_matching: Which features are matched.

    Attributes:
        ensemble: The teachers; None until they are loaded, or where the harvest is gone.
        features: What is matched.
        schedule: Which teach when.
        acceleration: How they may run.
        where: The harvest's folder, or a list of several.
        is_weighted: Whether they count differently.
        scale: Of a loss that may need their fitted temperatures, ``fitted`` or ``auto``; else None.
        tasks: Harvest to the task that its selection read the targets as, where one chose the teachers.

    Raises:
        ArgumentError: If the arguments don't go together.
    """

    def __init__(
        self,
        snapshots: str | Path | Sequence[str | Path],
        teacher: nn.Module | Sequence[nn.Module],
        choice: str | Sequence[int] | None = None,
        weights: Sequence[float] | str | None = None,
        submodule: str | None = None,
        logits_key: str | int | None = None,
        schedule: TeacherSchedule | None = None,
        acceleration: str | Acceleration = "auto",
        cache: TeacherCache | None = None,
        feature_matching: FeatureMatching | None = None,
    ) -> None:
        if cache is not None and feature_matching is not None:
            raise ArgumentError(
                "feature_matching needs the teachers' features, but a cache holds their logits only. Leave cache or "
                "feature_matching out."
            )
        harvests = pair_harvests(snapshots, teacher, weights)
        self.where: str | list[str] = next(iter(harvests)) if len(harvests) == 1 else list(harvests)
        self.ensemble: TeacherEnsemble | None = None
        self.features = FeatureMatcher(feature_matching)
        self.is_weighted = weights is not None
        self.scale: str | None = None
        self._load = partial(load_teachers, harvests, choice, weights, submodule=submodule, logits_key=logits_key)
        self.schedule = AllTeachers() if schedule is None else schedule
        # folding and compiling change what layers give
        self.acceleration = Acceleration.of(acceleration) if feature_matching is None else Acceleration("none")
        self._cache = cache
        self._files: list[dict[str, str]] = []
        self._epochs: list[int] = []
        self._weights: Tensor | None = None
        self._scales: Tensor | None = None
        self.tasks: dict[str, str] = {}
        self._network = ""
        self._path: TeacherPath | None = None  # None until they are calibrated
        self._known_path: TeacherPath | None = None
        self._first: tuple[Batch, Tensor] | None = None  # the batch that they were calibrated on, and its logits

    def __len__(self) -> int:
        return 0 if self.ensemble is None else len(self.ensemble)

    @property
    def is_calibrated(self) -> bool:
        """Whether it is known how the teachers run."""
        return self._path is not None

    def load(self, student: nn.Module, device: torch.device, *, fitting: bool) -> None:
        """Read and verify the teachers, on every rank; nothing happens where that was done.

        Args:
            student: Whose features are matched.
            device: Of the projectors.
            fitting: Whether the student is going to be trained; else a harvest that can't be read is a warning.

        Raises:
            ArgumentError: If choice, weights, schedule or layers do not suit the teachers.
            SnapshotError: If a file is missing, damaged or hostile.
            TeacherError: If a snapshot does not fit its teacher, or holds NaN or infinity.
        """
        if self.ensemble is not None:
            return
        try:
            loaded = on_each_rank(partial(self._load, scale=self.scale))
        except SnapshotError as error:
            if fitting:
                raise
            rank_zero_warn(f"The student is evaluated without its teachers, who can't be read: {error}")
            return
        self._weights, self._scales, self.tasks = loaded.weights, loaded.scales, loaded.tasks
        self._files = [{"file": snapshot.file, "sha256": snapshot.sha256} for snapshot in loaded.snapshots]
        self._epochs = [snapshot.epoch for snapshot in loaded.snapshots]
        soup = next((snapshot for snapshot in loaded.snapshots if isinstance(snapshot, SoupSnapshot)), None)
        if soup is not None and isinstance(self.schedule, Route):
            raise ArgumentError(
                f"stages={self.schedule.stages} names epochs, but {soup.file} teaches, a soup of several epochs. Name "
                f"the teachers, too: choice={sorted(set(self.schedule.stages.values()))}."
            )
        self.schedule.check(self._epochs)
        self.features.prepare(student, loaded.ensemble, device)
        self._network = describe_network(loaded.ensemble)  # before they are folded
        self.ensemble = loaded.ensemble

    @property
    def take_whole(self) -> bool:
        """Whether a teacher takes the batch as the loader gave it."""
        return self.ensemble is not None and self.ensemble.take_whole

    def place(self, device: torch.device, student: nn.Module) -> None:
        """Put the teachers on a device, in the student's type; nothing happens where they are already there."""
        if self.ensemble is not None:
            self.ensemble.to(device, dtype_of(student))

    def train_on_cache(self, trainer: Trainer, read: Callable[[Any], Batch], student: nn.Module) -> None:
        """Where there is a cache, fill it and let the training dataloader give its logits; on every rank.

        Args:
            trainer: When training starts.
            read: Unpacks a batch.
            student: In whose type Lightning's batches will come.

        Raises:
            ArgumentError: If the data can't be cached; says why.
            CacheError: If the cache is of something else, or damaged.
            SnapshotError: If it can't be written.
        """
        if self._cache is None:
            return
        dtype, views = dtype_of(student), self._cache.views

        def teachers(batch: Batch) -> Tensor:
            batch = batch.cast(dtype)
            if not self.is_calibrated:
                self.calibrate(batch, views * trainer.num_training_batches)
            return self.logits(batch, range(len(self)))

        def plain(batch: Batch) -> Tensor:
            return self.logits(batch.cast(dtype), range(len(self)))

        hashes = tuple(item["sha256"] for item in self._files)
        train_on_cache(trainer, self._cache, teachers, hashes, f"{self._network} {dtype}", read, plain)

    def places(self, module: LightningModule) -> list[int]:
        """Places of the teachers of a module's current training step; none where nobody teaches.

        Raises:
            ArgumentError: If the schedule needs to know how long training is, and the Trainer does not.
        """
        assert self.ensemble is not None, "load() comes first"
        schedule, epoch = self.schedule, module.current_epoch
        if not schedule.teaches(epoch):
            return []
        if type(schedule) is AllTeachers:  # which asks nothing of the Trainer
            return list(range(len(self)))
        part = share_done(module.trainer)
        if schedule.needs_length and part is None:
            raise ArgumentError(
                f"schedule={type(schedule).__name__} needs to know how long training is: give the Trainer "
                "max_epochs or max_steps (the latter if the data has no length)."
            )
        return schedule.teachers(self._epochs, step_number(module), epoch, part or 0.0)

    def calibrate(self, batch: Batch, batches: float) -> None:
        """Find the fastest way to run the teachers on so many batches like this one, or remember it.

        Ranks need not agree on it: an exact way gives the same logits to 1e-5, and what ranks share is their gradients.
        """
        assert self.ensemble is not None, "load() comes first"
        ahead = batches if math.isfinite(batches) else 0
        option, memory = self.acceleration, None
        if option.mode != "none":
            memory = WayMemory.of_user(way_key(self.ensemble, batch, [option.bf16, option.fp16]))
        found = calibrate(self.ensemble, batch, option, batches=ahead, known=self._known_path, memory=memory)
        self._path, self._first = found.path, None if found.logits is None else (batch, found.logits)
        rank_zero_info(found.describe(self.ensemble))

    def logits(self, batch: Batch, places: Sequence[int], cached: Tensor | None = None) -> Tensor:
        """The logits of some teachers on a batch, shape (M, N, ...), without gradient.

        Args:
            batch: On the teachers' device.
            places: Which teachers.
            cached: Those of all teachers, where they are known.

        Raises:
            ArgumentError: If a teacher's output holds no tensor of logits.
            TeacherError: If teachers differ in shape.
        """
        assert self.ensemble is not None, "load() comes first"
        if cached is not None:
            return pick(cached, places)
        first, self._first = self._first, None
        return pick(first[1], places) if first is not None and first[0] is batch else self.ensemble(batch, places)

    def check_finite(self, logits: Tensor, places: Sequence[int]) -> None:
        """Check that no logit of some teachers, (M, N, ...), is NaN or infinite; on a GPU, this waits for it.

        Raises:
            TeacherError: If one is; names the teacher and the sample.
        """
        assert self.ensemble is not None, "load() comes first"
        check_finite(logits, [self.ensemble.names[place] for place in places])

    def weights(self, places: Sequence[int], device: torch.device) -> Tensor | None:
        """What some teachers count, shape (M,); None: the same."""
        return None if self._weights is None else pick(self._weights, places).to(device)

    def scales(self, places: Sequence[int], device: torch.device) -> Tensor | None:
        """What the logits of some teachers are multiplied by, shape (M,); None: nothing."""
        return None if self._scales is None else pick(self._scales, places).to(device)

    def match(self, features: StepFeatures) -> tuple[Tensor | None, Tensor | float | None]:
        """The mean feature loss of a step's teachers, shape (), and what the step's loss gets of it.

        Both are None where they are not: the mean where nobody taught, the term where no features are matched.
        """
        return self.features.term(features, self._weights)

    def describe(self) -> str:
        """Whose logits they are, in words."""
        assert self.ensemble is not None, "load() comes first"
        return f"{', '.join(self.ensemble.names)} of {self.where}"

    @property
    def _scale_of_each(self) -> dict[str, float]:
        """What the logits of each teacher are multiplied by, by its SHA-256."""
        scales = [1.0] * len(self._files) if self._scales is None else self._scales.tolist()
        return dict(zip((item["sha256"] for item in self._files), scales, strict=True))

    def save(self, checkpoint: dict[str, Any]) -> None:
        """Write into a checkpoint which teachers they are, and how they run."""
        checkpoint[_FILES_KEY] = self._files
        if self.scale is not None:
            checkpoint[_SCALES_KEY] = self._scale_of_each
        if self._path is not None:
            checkpoint[_PATH_KEY] = asdict(self._path)

    def resume(self, checkpoint: Mapping[str, Any]) -> None:
        """Check that a run goes on with the teachers it had, and let them run as they did.

        Raises:
            TeacherError: If teachers or projectors are others; says what to change.
        """
        saved = checkpoint.get(_FILES_KEY)
        if saved is None:
            return
        theirs, own = ([item["sha256"] for item in files] for files in (saved, self._files))
        check_same_teachers(saved, self._files, self.where)
        self.features.check_resumed(checkpoint, theirs, own)
        if self.scale is not None and _SCALES_KEY in checkpoint:
            self._scales = as_tensor(resumed_scales(checkpoint[_SCALES_KEY], self._scale_of_each), self.scale)
        if _PATH_KEY in checkpoint:  # a path that is timed anew could be another one, with other last digits
            self._known_path = TeacherPath(**checkpoint[_PATH_KEY])
