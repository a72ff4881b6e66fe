"""The second door: a callback that ranks the harvested snapshots when fitting ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.harvester import CheckpointHarvester
from lightning_ckptkd.selecting import (
    Harvested,
    ScoreFiles,
    SelectionSettings,
    StudentProxy,
    TrainingData,
    Trial,
    check_model,
    make_selection,
    read_items,
    report,
    select_by_position,
    select_by_score,
)
from lightning_ckptkd.selecting.picture import draw_selection
from lightning_ckptkd.selecting.probe import collect_on_ranks, first_samples
from lightning_ckptkd.selecting.rules import (
    PositionRule,
    Rule,
    ScoringRule,
    make_rule,
    names_of_rules,
    no_such_option,
)
from lightning_ckptkd.snapshots import Selection, SnapshotStore
from lightning_ckptkd.snapshots.fields import shown
from lightning_ckptkd.snapshots.host_copy import is_sharded
from lightning_ckptkd.snapshots.weights import get_submodule
from lightning_ckptkd.tasks.base import Task
from lightning_ckptkd.tasks.calling import takes_whole
from lightning_ckptkd.tasks.reading import BatchReader, Key
from lightning_ckptkd.trainer.ranks import on_each_rank, on_rank_zero
from lightning_ckptkd.trainer.run_data import SPLITS, has_split, loader_of
from lightning_ckptkd.trainer.seeding import seed_all

_TRIED_SAMPLES = 8


class MISelector(Callback):
    """Rank the harvested snapshots by mutual information when fitting ends, and choose the teachers.

    For each snapshot, F being a layer's features: I(X;F), what they tell of the input, and I(Y;F), what they tell
    of the label. Both are normalised over the snapshots and added; the largest sums are chosen (Wang et al.,
    NeurIPS 2022); or another rule of :mod:`lightning_ckptkd.selecting.rules` scores them. Of scores that are within
    one standard error of each other, the later snapshot's counts as the better one. Into the harvest's folder go
    ``selection.json`` and ``selection.png`` (and ``scores.json``, so that no snapshot is scored twice), to the
    terminal a table, to the loggers the numbers of each snapshot at its global step.

    Args:
        snapshots: The harvest's folder. None takes the one of the :class:`CheckpointHarvester` in the same Trainer.
        rule: A rule with its own options, such as ``MI(normalisation="max")``, or the short name of one: ``mi``;
            ``mcmi``, what the predictions tell of the input beyond the label (arXiv 2401.08732); or a baseline:
            ``accuracy`` and ``loss`` on the probe set, ``full`` (the last snapshot), ``half`` (the one half-way
            through training), ``spaced`` (evenly over training, the last included). A rule of your own is an object
            or, from a config or the command line, a class path.
        num_teachers: How many to choose. None is what the rule says, 1 for ``full`` and ``half`` and 3 for the others,
            or all where there are fewer; for ``ensemble="greedy"`` as many as add more than the standard error of
            what they add, 8 at most.
        ensemble: How a set is chosen from the scores: ``top``, the best; ``spaced``, the best that are no neighbours,
            each 1 / (2 num_teachers) of training away from the others; ``greedy``, one after another by what the set
            tells jointly, I(X; F1..Fk) and I(Y;F) of the mean logits.
        probe: Dataloader of the probe set. None takes it from the run's data.
        probe_split: Which of the run's dataloaders: ``val``, ``train`` or ``test``; of several the first.
        probe_size: Number of probe samples, drawn with ``seed``.
        batch_size: Probe samples a forward pass, where batches can be cut.
        seed: Seed of the draw, the folds, the decoder and the proxy's batches.
        student_proxy: Tries the best snapshots on the student, and ranks them by it; see :class:`StudentProxy`. It
            trains on the run's training data.
        logits_key: Where the logits are, if the harvested module returns a tuple, mapping or object.
        task: What outputs and targets are: a name, or a :class:`.Task` by class path; ``auto`` sees it on the first
            batch.
        input_keys: What of a batch the network is called with; see :class:`.BatchReader`.
        target_key: Which part of a batch is the target; likewise.
        unpack_batch: A function of the batch that returns (inputs, targets), instead of both. A subclass may override
            the method of that name.
        ignore_index: Targets of this value count as none.
        **moved: None; options that are the rule's are refused with what to write instead.

    Raises:
        ArgumentError: If an argument can't be used. That there is a harvest and data to probe with is checked when
            fitting starts, not when it ends.
        SelectionError: When fitting ends, if fewer snapshots can be chosen than were asked for.
    """

    def __init__(
        self,
        snapshots: str | Path | None = None,
        rule: Rule | str = "mi",
        num_teachers: int | None = None,
        ensemble: str = "top",
        probe: DataLoader[Any] | None = None,
        probe_split: str = "val",
        probe_size: int = 2000,
        batch_size: int = 256,
        seed: int = 0,
        student_proxy: StudentProxy | None = None,
        logits_key: str | int | None = None,
        task: Task | str = "auto",
        input_keys: Key | Sequence[Key] | None = None,
        target_key: Key | None = None,
        unpack_batch: Callable[[Any], tuple[Any, Any]] | None = None,
        ignore_index: int = -100,
        **moved: Any,
    ) -> None:
        if moved:
            raise ArgumentError(no_such_option(MISelector, moved))
        self.settings = SelectionSettings(
            rule=make_rule(rule),
            num_teachers=num_teachers,
            ensemble=ensemble,
            logits_key=logits_key,
            task=task,
            ignore_index=ignore_index,
            batch_size=batch_size,
            seed=seed,
        )
        if probe_split not in SPLITS:
            raise ArgumentError(f"probe_split should be one of {', '.join(SPLITS)}, got {probe_split!r}.")
        if probe_size < 1:
            raise ArgumentError(f"probe_size should be 1 or more, got {probe_size}.")
        if student_proxy is not None and self.settings.scoring is None:
            scored = " or ".join(map(repr, names_of_rules(by_position=False)))
            raise ArgumentError(
                f"student_proxy tries the best by a score, and rule={self.settings.rule.name!r} has none. Use "
                f"rule={scored}, or leave student_proxy out."
            )
        self.snapshots = snapshots
        self._reader = BatchReader(input_keys, target_key, unpack_batch)
        self.student_proxy = student_proxy
        self.probe = probe
        self.probe_split = probe_split
        self.probe_size = probe_size
        self.selection: Selection | None = None

    def unpack_batch(self, batch: Any) -> tuple[Any, Any]:
        """X and Y of one batch, by the options; override it where these can't say it."""
        unpacked = self._reader(batch)
        return unpacked.inputs, unpacked.targets

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._find_folder(trainer)
        if (
            self.settings.scoring is not None
            and self.probe is None
            and not has_split(trainer, pl_module, self.probe_split)
        ):
            raise ArgumentError(
                f"probe_split={self.probe_split!r}: the run has no such data to score the snapshots on. Give the "
                "Trainer or DataModule a validation dataloader, MISelector a probe= dataloader, or another probe_split."
            )
        if self.settings.scoring is not None and is_sharded(dict(pl_module.named_parameters())):
            raise ArgumentError(
                "MISelector can't run a sharded module when fitting ends. Leave it out, or give a rule that goes by "
                "position, and select afterwards on one device: `ckptkd select` on the folder of the harvest."
            )
        rule = self.settings.scoring
        if rule is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            with isolate_rng():
                on_each_rank(lambda: self._try_model(trainer, pl_module, rule))

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = self._find_folder(trainer)
        loader: Iterable[Any] | None = self.probe
        if loader is None and self.settings.scoring is not None:
            loader = loader_of(trainer, pl_module, self.probe_split)
        bar = trainer.progress_bar_callback
        self.selection = self.select(
            folder,
            pl_module,
            loader,
            loader_of(trainer, pl_module, "train") if self.student_proxy is not None else None,
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
            CkptKDError: One of its kinds, as :func:`.select_by_score` says.
        """
        store = on_each_rank(lambda: SnapshotStore.open(snapshots))
        submodule = store.manifest.source.get("submodule")
        if model is not None and isinstance(submodule, str) and submodule in dict(model.named_modules()):
            model = get_submodule(model, submodule, "submodule")
        harvested = Harvested(read_items(store), ScoreFiles(store), str(store.folder), whole=submodule is None)
        rule, scoring = self.settings.rule, self.settings.scoring
        with isolate_rng():
            seed_all(self.settings.seed)  # random transforms of the probe set draw from it
            if scoring is None:
                assert isinstance(rule, PositionRule)
                outcome = select_by_position(harvested, self.settings, rule, progress=progress)
            else:
                loader = self.probe if probe is None else probe
                if model is None or loader is None:
                    raise ArgumentError(self._what_is_missing(store, model))
                outcome = select_by_score(
                    harvested,
                    self.settings,
                    scoring,
                    model,
                    collect_on_ranks(
                        loader, self.probe_size, self.settings.seed, self._make_reader(model), progress=progress
                    ),
                    trial=self._make_trial(store, model, train),
                    device=device,
                    progress=progress,
                )
        selection = make_selection(store.manifest.run_id, self.settings, outcome)
        on_rank_zero(lambda: _publish(store, selection, rule))
        return selection

    def _make_reader(self, model: nn.Module) -> BatchReader:
        """What unpacks batches for these networks."""
        student = None if self.student_proxy is None else self.student_proxy.student
        whole = any(takes_whole(network) for network in (model, student) if network is not None)
        overridden = type(self).unpack_batch is not MISelector.unpack_batch
        given = self._reader
        return replace(given, unpack_batch=self.unpack_batch if overridden else given.unpack_batch, whole=whole)

    def _make_trial(self, store: SnapshotStore, model: nn.Module, train: Iterable[Any] | None) -> Trial | None:
        if self.student_proxy is None:
            return None
        if train is None:
            raise ArgumentError("student_proxy trains students and needs training data. Give a train= dataloader.")
        run_id, settings = store.manifest.run_id, self.settings
        return Trial(
            self.student_proxy,
            TrainingData(train, self._make_reader(model)),
            before=lambda outcome: make_selection(run_id, settings, outcome).write(store),
        )

    def _what_is_missing(self, store: SnapshotStore, model: nn.Module | None) -> str:
        named = store.manifest.source.get("class_path")
        source = shown(named) if named else "a class that the manifest does not name"
        missing = f"the model that was trained, {source}" if model is None else "data to probe it with"
        return (
            f"rule={self.settings.rule.name!r} runs the snapshots and needs {missing}. Give both (`ckptkd select` "
            f"takes --model and --data, or --fit_config), or a rule that goes by position: "
            f"{', '.join(names_of_rules(by_position=True))}."
        )

    def _try_model(self, trainer: Trainer, pl_module: LightningModule, rule: ScoringRule) -> None:
        """Find out on a few samples, before days of training, what could go wrong after them."""
        plain = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
        if not plain or any(is_lazy(parameter) for parameter in pl_module.parameters()) or self.probe_split == "test":
            return  # sharded or unmade weights can't be run here, and test data are not set up yet
        harvester = self._find_harvester(trainer)
        submodule = harvester.submodule if harvester is not None else None
        loader = loader_of(trainer, pl_module, self.probe_split) if self.probe is None else self.probe
        module = get_submodule(pl_module, submodule, "submodule")
        samples = first_samples(loader, _TRIED_SAMPLES, self._make_reader(module))
        if samples is not None:
            check_model(self.settings, rule, module, samples, self.student_proxy, whole=submodule is None)

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


def _publish(store: SnapshotStore, selection: Selection, rule: Rule) -> None:
    selection.write(store)
    draw_selection(selection, rule.words, store)
    print(report.format_selection(selection, rule.words, store))
