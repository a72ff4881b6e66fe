"""The second door: a callback that ranks the harvested snapshots when fitting ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.harvester import CheckpointHarvester
from lightning_ckptkd.selecting import (
    SelectionSettings,
    StudentProxy,
    TrainingData,
    check_model,
    report,
    select_snapshots,
)
from lightning_ckptkd.selecting.probe import collect_probe, first_samples
from lightning_ckptkd.snapshots import Selection, SnapshotStore
from lightning_ckptkd.snapshots.host_copy import is_sharded
from lightning_ckptkd.snapshots.weights import get_submodule
from lightning_ckptkd.tasks.legacy import inputs_and_labels
from lightning_ckptkd.trainer.ranks import current_rank, num_ranks, on_all_ranks, on_each_rank, on_rank_zero
from lightning_ckptkd.trainer.seeding import seed_all

SPLITS = ("val", "train", "test")
_TRIED_SAMPLES = 8


class MISelector(Callback):
    """Rank the harvested snapshots by mutual information when fitting ends, and choose the teachers.

    For each snapshot, F being a layer's features: I(X;F), what they tell of the input, and I(Y;F), what they tell
    of the label. Both are normalised over the snapshots and added; the largest sums are chosen (Wang et al.,
    NeurIPS 2022). Both are lower bounds of *decodable* information, in nats: they depend on the estimator, which is
    the same for each snapshot. Of scores that are within one standard error of each other, the later snapshot's counts
    as the better one. Into the harvest's folder go ``selection.json`` and ``selection.png`` (and ``scores.json``, so
    that no snapshot is scored twice), to the terminal a table, to the loggers the numbers of each snapshot at its
    global step.

    Args:
        snapshots: The harvest's folder. None takes the one of the :class:`CheckpointHarvester` in the same Trainer.
        rule: ``mi``; ``mcmi``, what the predictions tell of the input beyond the label (arXiv 2401.08732); or a
            baseline: ``accuracy`` on the probe set, ``full`` (the last snapshot), ``half`` (the one half-way through
            training), ``spaced`` (evenly over training, the last included).
        num_teachers: How many to choose. None is 1 for ``full`` and ``half``; for ``ensemble="greedy"`` as many as
            add more than the standard error of what they add, 8 at most; else 3 or all where there are fewer.
        ensemble: How a set is chosen from the scores: ``top``, the best; ``spaced``, the best that are no neighbours,
            each 1 / (2 num_teachers) of training away from the others; ``greedy``, one after another by what the set
            tells jointly, I(X; F1..Fk) and I(Y;F) of the mean logits.
        feature: What F is: the output of a ``layer``, the ``logits``, or the ``probabilities`` at ``temperature``,
            which is what a student sees.
        layer: Name of the module whose output is F, within what was harvested. None is the input of the last
            ``nn.Linear`` that runs (and the last feature map for the convolutional networks).
        temperature: The student's T, for ``feature="probabilities"``.
        input_estimator: For I(X;F): ``gaussian``, a linear-Gaussian decoder in closed form, or ``convolutional``,
            the paper's decoder.
        label_estimator: For I(Y;F): ``head``, the teacher's own last layer with a fitted temperature (what a student
            of its logits sees), ``logistic``, a multinomial logistic probe of the features, or ``convolutional``, the
            paper's small classifier.
        given_label: Whether to take I(X;F|Y), what F tells of X beyond the label, for I(X;F).
        input_weight: Weight of the normalised I(X;F).
        label_weight: Weight of the normalised I(Y;F).
        normalisation: ``entropy`` divides each term by the most that it could be, ``max`` by its largest value,
            ``minmax`` maps it to [0, 1].
        label_floor: Share of the largest I(Y;F), in [0, 1], below which a snapshot's I(X;F) does not count.
        probe: Dataloader of the probe set. None takes it from the run's data.
        probe_split: Which of the run's dataloaders: ``val``, ``train`` or ``test``; of several the first.
        probe_size: Number of probe samples, drawn with ``seed``.
        likelihood: Of the convolutional decoder: the paper's ``bce``, ``continuous_bernoulli`` or ``gaussian``.
        decoder_steps: Training steps of a convolutional network, at most.
        logits_key: Where the logits are, if the harvested module returns a tuple, mapping or object.
        batch_size: Probe samples a forward pass.
        seed: Seed of the draw, the folds, the decoder and the proxy's batches.
        student_proxy: Tries the best snapshots on the student, and ranks them by it; see :class:`StudentProxy`. It
            trains on the run's training data.

    Raises:
        ArgumentError: If an argument can't be used. That there is a harvest and data to probe with is checked when
            fitting starts, not when it ends.
        SelectionError: When fitting ends, if fewer snapshots can be chosen than were asked for.
    """

    def __init__(
        self,
        snapshots: str | Path | None = None,
        rule: str = "mi",
        num_teachers: int | None = None,
        ensemble: str = "top",
        feature: str = "layer",
        layer: str | None = None,
        temperature: float = 5.0,
        input_estimator: str = "gaussian",
        label_estimator: str = "head",
        given_label: bool = False,
        input_weight: float = 1.0,
        label_weight: float = 1.0,
        normalisation: str = "entropy",
        label_floor: float = 0.95,
        probe: DataLoader[Any] | None = None,
        probe_split: str = "val",
        probe_size: int = 2000,
        likelihood: str = "bce",
        decoder_steps: int = 300,
        logits_key: str | int | None = None,
        batch_size: int = 256,
        seed: int = 0,
        student_proxy: StudentProxy | None = None,
    ) -> None:
        self.snapshots = snapshots
        self.settings = SelectionSettings(
            rule=rule,
            num_teachers=num_teachers,
            ensemble=ensemble,
            feature=feature,
            layer=layer,
            temperature=temperature,
            input_estimator=input_estimator,
            label_estimator=label_estimator,
            given_label=given_label,
            input_weight=input_weight,
            label_weight=label_weight,
            normalisation=normalisation,
            label_floor=label_floor,
            likelihood=likelihood,
            decoder_steps=decoder_steps,
            logits_key=logits_key,
            batch_size=batch_size,
            seed=seed,
        )
        if probe_split not in SPLITS:
            raise ArgumentError(f"probe_split should be one of {', '.join(SPLITS)}, got {probe_split!r}.")
        if probe_size < 1:
            raise ArgumentError(f"probe_size should be 1 or more, got {probe_size}.")
        if student_proxy is not None and not self.settings.needs_probe:
            raise ArgumentError(
                f"student_proxy tries the best by a score, and rule={rule!r} has none. Use rule='mi', 'mcmi' or "
                "'accuracy', or leave student_proxy out."
            )
        self.student_proxy = student_proxy
        self.probe = probe
        self.probe_split = probe_split
        self.probe_size = probe_size
        self.selection: Selection | None = None

    def unpack_batch(self, batch: Any) -> tuple[Tensor, Tensor]:
        """X and Y of one probe batch; override it where a batch is not ``(x, y)``."""
        return inputs_and_labels(batch)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._find_folder(trainer)
        if self.settings.needs_probe and self.probe is None and not self._has_split(trainer, pl_module):
            raise ArgumentError(
                f"probe_split={self.probe_split!r}: the run has no such data to score the snapshots on. Give the "
                "Trainer or DataModule a validation dataloader, MISelector a probe= dataloader, or another probe_split."
            )
        if self.settings.needs_probe and is_sharded(dict(pl_module.named_parameters())):
            raise ArgumentError(
                "MISelector can't run a sharded module when fitting ends. Leave it out, or give a rule that goes by "
                "position, and select afterwards on one device: `ckptkd select` on the folder of the harvest."
            )
        if self.settings.needs_probe and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            with isolate_rng():
                on_each_rank(lambda: self._try_model(trainer, pl_module))

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = self._find_folder(trainer)
        loader: Iterable[Any] | None = self.probe
        if loader is None and self.settings.needs_probe:
            loader = self._loader_of(trainer, pl_module, self.probe_split)
        bar = trainer.progress_bar_callback
        self.selection = self.select(
            folder,
            pl_module,
            loader,
            self._loader_of(trainer, pl_module, "train") if self.student_proxy is not None else None,
            device=trainer.strategy.root_device,
            progress=bar is not None and bool(getattr(bar, "is_enabled", True)),
        )
        for logger in trainer.loggers:
            for step, numbers in report.numbers_by_step(self.selection):
                logger.log_metrics(numbers, step)

    def select(
        self,
        snapshots: str | Path,
        model: nn.Module | None = None,
        probe: Iterable[Any] | None = None,
        train: Iterable[Any] | None = None,
        *,
        device: torch.device | str = "cpu",
        progress: bool = True,
    ) -> Selection:
        """Choose among the snapshots of a harvest, with or without a training run.

        Where several processes train together, call it in each of them: they share the work.

        Args:
            snapshots: The harvest's folder.
            model: The module that was trained (its ``submodule``, if only that was harvested, is found in it or is
                the model itself); its weights are left as they are. Not needed for a rule that goes by position.
            probe: Dataloader of the probe set; likewise. None takes the selector's own.
            train: Dataloader of the training data; only a ``student_proxy`` needs it.
            device: Where the model runs.
            progress: Whether to show a progress bar.

        Returns:
            The choice, which is also written into the folder.

        Raises:
            CkptKDError: One of its kinds, as :func:`lightning_ckptkd.selecting.select_snapshots` says.
        """
        store = on_each_rank(lambda: SnapshotStore.open(snapshots))
        submodule = store.manifest.source.get("submodule")
        if model is not None and isinstance(submodule, str) and submodule in dict(model.named_modules()):
            model = get_submodule(model, submodule, "submodule")
        with isolate_rng():
            seed_all(self.settings.seed)  # random transforms of the probe set draw from it
            samples = None
            loader = self.probe if probe is None else probe
            if loader is not None and self.settings.needs_probe:
                samples = on_each_rank(
                    lambda: collect_probe(
                        loader,
                        self.probe_size,
                        self.settings.seed,
                        self.unpack_batch,
                        progress=progress and current_rank() == 0,
                    )
                )
                if num_ranks() > 1 and len(set(on_all_ranks(samples.digest))) > 1:
                    raise ArgumentError(
                        "The ranks have different probe samples, so snapshots can't be compared. Give probe= a "
                        "dataloader that yields the same samples on each rank: no random transforms, no sharded stream."
                    )
            selection = select_snapshots(
                store,
                self.settings,
                model,
                samples,
                proxy=self.student_proxy,
                data=None if train is None else TrainingData(train, self.unpack_batch),
                device=device,
                progress=progress,
            )
        on_rank_zero(lambda: _publish(store, selection))
        return selection

    def _try_model(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out on a few samples, before days of training, what could go wrong after them."""
        plain = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
        if not plain or any(is_lazy(parameter) for parameter in pl_module.parameters()) or self.probe_split == "test":
            return  # sharded or unmade weights can't be run here, and test data are not set up yet
        harvester = self._find_harvester(trainer)
        submodule = harvester.submodule if harvester is not None else None
        loader = self._loader_of(trainer, pl_module, self.probe_split) if self.probe is None else self.probe
        samples = first_samples(loader, _TRIED_SAMPLES, self.unpack_batch)
        if samples is not None:
            module = get_submodule(pl_module, submodule, "submodule")
            check_model(self.settings, module, samples, self.student_proxy, whole=submodule is None)

    def _find_harvester(self, trainer: Trainer) -> CheckpointHarvester | None:
        if self.snapshots is not None:
            return None
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, CheckpointHarvester) and callback.folder is not None:
                return callback
        return None

    def _find_folder(self, trainer: Trainer) -> str | Path:
        if self.snapshots is not None:
            return self.snapshots
        harvester = self._find_harvester(trainer)
        if harvester is not None and harvester.folder is not None:
            return harvester.folder
        raise ArgumentError(
            "MISelector(snapshots=None) has nothing to select from: add a CheckpointHarvester to the Trainer's "
            "callbacks, or give the folder of a harvest."
        )

    def _has_split(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        if self.probe_split == "train":
            return True
        if self.probe_split == "val" and trainer.enable_validation:
            return True
        return _hook_owner(trainer, pl_module, f"{self.probe_split}_dataloader") is not None

    def _loader_of(self, trainer: Trainer, pl_module: LightningModule, split: str) -> Iterable[Any]:
        loaders: Any = None
        if split == "train":
            loaders = trainer.train_dataloader
        elif split == "val":
            loaders = trainer.val_dataloaders
        hook = f"{split}_dataloader"
        owner = _hook_owner(trainer, pl_module, hook)
        if loaders is None and owner is None and split != "test":  # given to fit() and not run yet
            loop = trainer.fit_loop if split == "train" else trainer.fit_loop.epoch_loop.val_loop
            loaders = loop._data_source.instance
        if loaders is None and owner is not None:
            if isinstance(owner, LightningDataModule) and split == "test":
                owner.setup("test")
            loaders = getattr(owner, hook)()
        return first_loader(loaders, hook)


def first_loader(loaders: Any, name: str) -> Iterable[Any]:
    """The dataloader itself, or the first of a sequence or mapping of them.

    Raises:
        ArgumentError: If there is none.
    """
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, Sequence):
        loaders = loaders[0] if loaders else None
    if loaders is None:
        raise ArgumentError(f"{name}: there is no dataloader to probe with. Give probe= or another probe_split.")
    found: Iterable[Any] = loaders
    return found


def _hook_owner(
    trainer: Trainer, pl_module: LightningModule, hook: str
) -> LightningDataModule | LightningModule | None:
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    for owner in (datamodule, pl_module):
        if owner is not None and is_overridden(hook, owner):
            found: LightningDataModule | LightningModule = owner
            return found
    return None


def _publish(store: SnapshotStore, selection: Selection) -> None:
    selection.write(store)
    report.draw_selection(selection, store)
    print(report.format_selection(selection, store))
