"""The second door: a callback that ranks the harvested snapshots when fitting ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_ckptkd.checks import check_batches, check_device, check_types
from lightning_ckptkd.errors import ArgumentError, CkptKDError, SelectionError
from lightning_ckptkd.harvester import CheckpointHarvester
from lightning_ckptkd.selecting import (
    SelectionSettings,
    Soup,
    StudentProxy,
    TrainingData,
    Trial,
    make_selection,
    select_by_score,
)
from lightning_ckptkd.selecting.batch_hooks import HookedBatches
from lightning_ckptkd.selecting.batch_norm import batch_norms
from lightning_ckptkd.selecting.by_hand import SavedConfig, changed_options, command_by_hand, saved_config
from lightning_ckptkd.selecting.foresight import check_number, check_probe
from lightning_ckptkd.selecting.logged import log_selection
from lightning_ckptkd.selecting.on_disk import choose_by_place, harvested, publish
from lightning_ckptkd.selecting.probe import Transfer, collect_on_ranks
from lightning_ckptkd.selecting.rules import (
    Rule,
    ScoringRule,
    make_rule,
    names_of_rules,
    no_such_option,
)
from lightning_ckptkd.snapshots import Selection, SnapshotStore
from lightning_ckptkd.snapshots.fields import shown
from lightning_ckptkd.snapshots.folders import Folder, open_folder
from lightning_ckptkd.snapshots.host_copy import is_sharded
from lightning_ckptkd.snapshots.weights import check_made, find_unmade, get_submodule
from lightning_ckptkd.tasks.base import Task
from lightning_ckptkd.tasks.calling import takes_whole
from lightning_ckptkd.tasks.reading import BatchReader, Key
from lightning_ckptkd.trainer.namespaces import TakesDataOfOneName, is_kind
from lightning_ckptkd.trainer.ranks import on_each_rank, on_rank_zero
from lightning_ckptkd.trainer.run_data import SPLITS, has_split, loader_of, loader_without_run
from lightning_ckptkd.trainer.seeding import seed_all


class MISelector(TakesDataOfOneName):
    """Rank the harvested snapshots by mutual information when fitting ends, and choose the teachers.

    For each snapshot, F being a layer's features: I(X;F), what they tell of the input, and I(Y;F), what they tell
    of the label. Both are normalised over the snapshots and added; the largest sums are chosen (Wang et al.,
    NeurIPS 2022); or another rule of :mod:`lightning_ckptkd.selecting.rules` scores them. Scores
    within one standard error of each other are equal for all that the probe set can say; the rule's ``ties`` says which
    comes first, by default the higher. Into the harvest's folder go ``selection.json`` and ``selection.png`` (and
    ``scores.json``, so that no snapshot is scored twice), to the terminal a table, to the loggers the numbers of each
    snapshot at its global step and, of TensorBoard, W&B and MLflow, the table and the picture.

    Batches come as the Trainer's validation would have them, through the batch hooks of DataModule and module.

    Args:
        snapshots: The harvest's folder. None takes the one of the :class:`CheckpointHarvester` in the same Trainer.
        rule: A rule with its own options, such as ``MI(normalisation="max")``, or the short name of one: ``mi``;
            ``mcmi``, what the predictions tell of the input beyond the label (arXiv 2401.08732); or a baseline:
            ``accuracy`` and ``loss`` on the probe set, ``full`` (the last snapshot), ``half`` (the one half-way
            through training), ``spaced`` (evenly over training, the last included). A rule of your own is an object
            or, from a config or the command line, a class path.
        num_teachers: How many to choose. ``auto`` is as many of the best as tell jointly what the best number of them
            tells, within its standard error, 8 at most (of a rule that can tell it). A number asks for a set, no soup.
            None: a soup where ``ensemble`` says so; of a set what the rule says, 1 for ``full`` and ``half`` and 3 for
            the others, or all where there are fewer; for ``ensemble="greedy"`` as many as add more than the standard
            error of what they add, 8 at most.
        ensemble: How a set is chosen from the scores: ``top``, the best; ``spaced``, the best that are no neighbours,
            each 1 / (2 num_teachers) of training away from the others; ``greedy``, one after another by what the set
            tells jointly, I(X; F1..Fk) and I(Y;F) of the mean logits; ``soup``, one network, the mean of the weights
            of several, or a :class:`Soup`. It is a snapshot of its own in the harvest; where averaging loses, ``top``.
            None is ``soup`` where the rule measures held-out labels and neither ``num_teachers``, ``student_proxy`` nor
            ``race`` asks for something else, and ``top`` elsewhere.
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
        on_error: What a selection that goes wrong when fitting ends does: ``warn`` says why and how to select by hand,
            ``raise`` ends the run. The harvest stays in any case.
        race: Whether snapshots that can't be among the best, by their errors, leave after a part of the probe samples,
            so that only the others are run on all of them. True: where rule, ensemble and probe set allow it, and one
            line where they don't; None: likewise, without the line. False: all are scored on all samples.
        **moved: None; options that are the rule's are refused with what to write instead.

    Raises:
        ArgumentError: If an argument can't be used; when fitting starts, if it shows then that the selection could not
            be made: harvest, data, their labels, the module, or the number of snapshots to come.
        CkptKDError: When fitting ends, with ``on_error="raise"``, whatever went wrong.
    """

    def __init__(
        self,
        snapshots: str | Path | None = None,
        rule: Rule | str = "mi",
        num_teachers: int | Literal["auto"] | None = None,
        ensemble: str | Soup | None = None,
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
        on_error: str = "warn",
        race: bool | None = False,
        **moved: Any,
    ) -> None:
        if moved:
            raise ArgumentError(no_such_option(MISelector, moved))
        check_types(MISelector.__init__, locals())
        self.settings = SelectionSettings(
            rule=make_rule(rule),
            num_teachers=num_teachers,
            ensemble="top" if ensemble is None and student_proxy is not None else ensemble,
            logits_key=logits_key,
            task=task,
            ignore_index=ignore_index,
            batch_size=batch_size,
            seed=seed,
            race=race,
        )
        if probe_split not in SPLITS:
            raise ArgumentError(f"probe_split should be one of {', '.join(SPLITS)}, got {probe_split!r}.")
        if on_error not in ("warn", "raise"):
            raise ArgumentError(f"on_error should be warn or raise, got {on_error!r}.")
        if probe_size < 1:
            raise ArgumentError(f"probe_size should be 1 or more, got {probe_size}.")
        if student_proxy is not None and self.settings.scoring is None:
            scored = " or ".join(map(repr, names_of_rules(by_position=False)))
            raise ArgumentError(
                f"student_proxy tries the best by a score, and rule={self.settings.rule.name!r} has none. Use "
                f"rule={scored}, or leave student_proxy out."
            )
        check_batches("probe", probe)
        self.snapshots = snapshots
        self._reader = BatchReader(input_keys, target_key, unpack_batch)
        self.student_proxy = student_proxy
        self.probe = probe
        self.probe_split = probe_split
        self.probe_size = probe_size
        self.on_error = on_error
        self.selection: Selection | None = None
        self._fit_config: SavedConfig | None = None

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
        self._check_number(trainer, pl_module)
        self._fit_config = saved_config(trainer)
        rule = self.settings.scoring
        if rule is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            with isolate_rng():
                on_each_rank(lambda: self._try_model(trainer, pl_module, rule))

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        try:
            self._select_at_end(trainer, pl_module)
        except Exception as error:  # training is done, and whatever is wrong with the selection does not undo it
            if self.on_error == "raise":
                raise
            self._say_how_to_select(trainer, pl_module, error)

    def _select_at_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        split = self.probe_split if self.settings.scoring is not None and self.probe is None else None

        def loaders() -> tuple[Any, Any]:
            return (
                None if split is None else loader_of(trainer, pl_module, split),
                loader_of(trainer, pl_module, "train") if self._needs_training_data(pl_module) else None,
            )

        probe, train = on_each_rank(loaders)
        bar = trainer.progress_bar_callback
        self.selection = self.select(
            self._find_folder(trainer),
            pl_module,
            probe,
            train,
            datamodule=trainer.datamodule,  # type: ignore[attr-defined]
            device=trainer.strategy.root_device,
            progress=bar is not None and bool(getattr(bar, "is_enabled", True)),
        )
        log_selection(trainer.loggers, self.selection, open_folder(self._find_folder(trainer)), trainer.global_step)

    def _say_how_to_select(self, trainer: Trainer, pl_module: LightningModule, error: Exception) -> None:
        reason = str(error) if isinstance(error, CkptKDError) else f"{type(error).__name__}: {error}"
        options = self._options_in_words()
        if isinstance(error, SelectionError):  # there are fewer, and without the option all of them are taken
            options.pop("num_teachers", None)
        command = command_by_hand(
            str(self._find_folder(trainer)),
            options,
            pl_module,
            trainer.datamodule,  # type: ignore[attr-defined]
            self._fit_config,
            runs=self.settings.scoring is not None,
        )
        rank_zero_warn(
            f"MISelector: training is done and its snapshots are kept, but none was chosen: {reason.rstrip('.')}. "
            f"Select by hand: {command}. on_error='raise' would have ended the run."
        )

    def _options_in_words(self) -> dict[str, Any]:
        """Options that are not the defaults, as ``ckptkd select`` names them."""
        named = {**vars(self), **vars(self._reader), **vars(self.settings)}
        return changed_options(MISelector.__init__, named)

    def select(
        self,
        snapshots: str | Path | Folder,
        model: nn.Module | None = None,
        probe: Iterable[Any] | None = None,
        train: Iterable[Any] | None = None,
        *,
        datamodule: LightningDataModule | None = None,
        device: torch.device | str = "cpu",
        progress: bool = True,
    ) -> Selection:
        """Choose among the snapshots of a harvest, with or without a training run.

        Where several processes train together, call it in each of them: they share the work.

        Args:
            snapshots: The harvest's folder.
            model: The module that was trained (its ``submodule``, if only that was harvested, is found in it or is
                the model itself); its weights are left as they are. Not needed for a rule that goes by position.
            probe: Dataloader of the probe set; likewise. None takes the selector's own, or that of ``probe_split`` of
                ``datamodule`` or of the model.
            train: Dataloader of the training data; only a ``student_proxy`` and a soup of networks with BatchNorm need
                it. None takes that of either.
            datamodule: Whose batch hooks are run, as the Trainer runs them in validation, beside the model's.
            device: Where the model runs.
            progress: Whether to show a progress bar.

        Returns:
            The choice, which is also written into the folder.

        Raises:
            CkptKDError: One of its kinds, as :func:`.select_by_score` says.
        """
        check_types(MISelector.select, locals())
        check_batches("probe", probe)
        check_batches("train", train)
        if datamodule is not None and not is_kind(datamodule, LightningDataModule):
            raise ArgumentError(f"datamodule should be a LightningDataModule or None, got {datamodule!r:.80}.")
        check_device(device)
        store = on_each_rank(lambda: SnapshotStore.open(snapshots))
        submodule, whole = store.manifest.source.get("submodule"), model
        if model is not None and isinstance(submodule, str) and submodule in dict(model.named_modules()):
            model = get_submodule(model, submodule, "submodule")
        rule, scoring = self.settings.rule, self.settings.scoring
        with isolate_rng():
            seed_all(self.settings.seed)  # random transforms of the probe set draw from it
            if scoring is None:
                return choose_by_place(store, self.settings, progress=progress)

            def loaders() -> tuple[Any, Any]:
                given = self.probe if probe is None else probe
                own = partial(loader_without_run, datamodule, whole)
                needs_train = train is None and self._needs_training_data(model)
                return (
                    own(self.probe_split, "probe") if given is None else given,
                    self._training_data(own) if needs_train else train,
                )

            loader, training = on_each_rank(loaders)
            if model is None or loader is None:
                raise ArgumentError(self._what_is_missing(store, model))
            check_made(model, "model")
            transfer = HookedBatches(model if whole is None else whole, datamodule)
            samples = collect_on_ranks(
                loader, self.probe_size, self.settings.seed, self._make_reader(model), transfer, progress=progress
            )
            outcome = select_by_score(
                harvested(store),
                self.settings,
                scoring,
                model,
                samples,
                trial=self._make_trial(store, model, training, transfer),
                training=self._soup_data(model, training, transfer),
                device=device,
                progress=progress,
            )
        selection = make_selection(store.manifest.run_id, self.settings, outcome)
        on_rank_zero(lambda: publish(store, selection, rule))
        return selection

    def _make_reader(self, model: nn.Module) -> BatchReader:
        """What unpacks batches for these networks."""
        student = None if self.student_proxy is None else self.student_proxy.student
        whole = any(takes_whole(network) for network in (model, student) if network is not None)
        overridden = type(self).unpack_batch is not MISelector.unpack_batch
        given = self._reader
        return replace(given, unpack_batch=self.unpack_batch if overridden else given.unpack_batch, whole=whole)

    def _make_trial(
        self, store: SnapshotStore, model: nn.Module, train: Iterable[Any] | None, transfer: Transfer
    ) -> Trial | None:
        if self.student_proxy is None:
            return None
        if train is None:
            raise ArgumentError("student_proxy trains students and needs training data. Give a train= dataloader.")
        run_id, settings = store.manifest.run_id, self.settings
        return Trial(
            self.student_proxy,
            TrainingData(train, self._make_reader(model), transfer),
            before=lambda outcome: make_selection(run_id, settings, outcome).write(store),
        )

    def _training_data(self, own: Callable[[str, str], Iterable[Any] | None]) -> Iterable[Any] | None:
        """Those of DataModule or model; of a soup that nobody asked for only where they can be had."""
        try:
            return own("train", "train")
        except Exception:  # of the user's DataModule, whatever it is: the line of the soup says that there are none
            if self.settings.ensemble is not None:
                raise
            return None

    def _needs_training_data(self, model: nn.Module | None) -> bool:
        soup = self.settings.soup is not None and model is not None and bool(batch_norms(model))
        return soup or self.student_proxy is not None

    def _soup_data(self, model: nn.Module, train: Iterable[Any] | None, transfer: Transfer) -> TrainingData | None:
        if train is None or self.settings.soup is None:
            return None
        return TrainingData(train, self._make_reader(model), transfer, asked_by="ensemble='soup'")

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
        plain = is_kind(trainer.strategy, SingleDeviceStrategy, DDPStrategy)
        if not plain or find_unmade(pl_module) is not None or self.probe_split == "test":
            return  # sharded or unmade weights can't be run here, and test data are not set up yet
        harvester = self._find_harvester(trainer)
        submodule = harvester.submodule if harvester is not None else None
        loader = loader_of(trainer, pl_module, self.probe_split) if self.probe is None else self.probe
        module = get_submodule(pl_module, submodule, "submodule")
        check_probe(
            loader,
            self.probe_size,
            self.settings,
            rule,
            module,
            self._make_reader(module),
            HookedBatches(pl_module, trainer.datamodule),  # type: ignore[attr-defined]
            self.student_proxy,
            whole=submodule is None,
        )

    def _check_number(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the run gives as many snapshots as are to be chosen, where that can be reckoned."""
        harvester, wanted = self._find_harvester(trainer), self.settings.least
        if harvester is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        epochs, steps = (
            limit if limit is not None and limit > 0 else None for limit in (trainer.max_epochs, trainer.max_steps)
        )
        if not pl_module.automatic_optimization:  # Lightning may not count all steps
            steps = None
        check_number(wanted, harvester.cadence, harvester.retention.last, epochs, steps)

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
