from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch.utils.data import DataLoader, IterableDataset

from lightning_ckptkd import (
    ArgumentError,
    CheckpointHarvester,
    DistillationModule,
    MISelector,
    SnapshotError,
    SnapshotStore,
)
from lightning_ckptkd.snapshots import Selection, Snapshot
from lightning_ckptkd.snapshots.host_copy import HostCopy
from lightning_ckptkd.snapshots.recorder import Recorder
from lightning_ckptkd.trainer.strategies import check_strategy
from tests.projects import DigitsData, ManualProject, Project, digits, make_trainer, own_callbacks, to_write
from tests.reliability.faults import watched_disk


def fit(root: Path, *callbacks: Any, project: Project | None = None, **options: Any) -> Trainer:
    trainer = make_trainer(root, *callbacks, **options)
    trainer.fit(project or Project(), DigitsData())
    return trainer


def epochs_of(folder: Path) -> list[int]:
    return [snapshot.epoch for snapshot in SnapshotStore.open(folder).snapshots]


def entries(store: SnapshotStore) -> list[Snapshot]:
    """What the manifest says of each snapshot but for the file's name, which holds a mark of the run."""
    return [replace(snapshot, file="") for snapshot in store.snapshots]


def test_weights_equal_lightnings_own_checkpoints(tmp_path: Path) -> None:
    fit(tmp_path, CheckpointHarvester(dirpath=tmp_path / "h"), *own_callbacks(tmp_path), enable_checkpointing=True)
    store = SnapshotStore.open(tmp_path / "h")
    assert [snapshot.epoch for snapshot in store.snapshots] == [0, 1, 2, 3]
    assert [snapshot.global_step for snapshot in store.snapshots] == [4, 8, 12, 16]
    for snapshot in store.snapshots:
        own = torch.load(tmp_path / "own" / f"epoch={snapshot.epoch}.ckpt", weights_only=True)["state_dict"]
        ours = store.load(snapshot)
        assert ours.keys() == own.keys()
        assert all(torch.equal(ours[name], own[name]) for name in own)


def test_what_the_manifest_says(trained: tuple[Path, Project]) -> None:
    document = json.loads((trained[0] / "manifest.json").read_text())
    assert document["version"] == 1
    assert len(document["run_id"]) == 32
    assert document["source"] == {
        "class_path": "tests.projects.Project",
        "hyper_parameters": {"channels": 8, "lr": 0.1, "num_classes": 10},
        "submodule": None,
        "dtype": None,
        "averaged": False,
    }
    assert {"lightning", "torch", "lightning-ckptkd", "safetensors"} <= document["packages"].keys()
    for index, entry in enumerate(document["snapshots"]):
        assert set(entry) == {"epoch", "global_step", "file", "sha256", "size", "learning_rate", "metrics"}
        assert entry["size"] == (trained[0] / entry["file"]).stat().st_size
        assert entry["learning_rate"] == pytest.approx([0.1, 0.1, 0.01, 0.01][index])
        assert set(entry["metrics"]) == {"train_loss", "own_hook", "val_acc", "val_loss"}
        assert entry["metrics"]["own_hook"] == index + 0.5, "logged in the module's own epoch-end hook"


def test_metrics_of_an_epoch_without_validation_are_not_those_of_an_earlier_one(tmp_path: Path) -> None:
    fit(tmp_path, CheckpointHarvester(dirpath=tmp_path / "h"), check_val_every_n_epoch=2)
    has_validation = ["val_loss" in snapshot.metrics for snapshot in SnapshotStore.open(tmp_path / "h").snapshots]
    assert has_validation == [False, True, False, True]


def test_metrics_that_are_not_finite_become_null(tmp_path: Path) -> None:
    class Diverging(Project):
        def on_train_epoch_end(self) -> None:
            self.log("own_hook", float("nan"))

    fit(tmp_path, CheckpointHarvester(dirpath=tmp_path / "h"), project=Diverging(), max_epochs=1)
    assert SnapshotStore.open(tmp_path / "h").snapshots[0].metrics["own_hook"] is None
    assert "NaN" not in (tmp_path / "h" / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({"every_n_epochs": 3}, [2, 5]),
        ({"epochs": [0, 4, 99]}, [0, 4]),
        ({"window": (0.0, 0.5)}, [0, 1, 2]),
        ({"window": (0.5, 1.0)}, [3, 4, 5]),
    ],
)
def test_when(tmp_path: Path, options: dict[str, Any], epochs: list[int]) -> None:
    fit(tmp_path, CheckpointHarvester(dirpath=tmp_path / "h", **options), max_epochs=6)
    assert epochs_of(tmp_path / "h") == epochs


def test_every_n_steps(tmp_path: Path) -> None:
    fit(tmp_path, CheckpointHarvester(dirpath=tmp_path / "h", every_n_train_steps=3), max_epochs=3)
    snapshots = SnapshotStore.open(tmp_path / "h").snapshots
    assert [(snapshot.epoch, snapshot.global_step) for snapshot in snapshots] == [(0, 3), (1, 6), (2, 9), (2, 12)]
    assert "val_loss" not in snapshots[0].metrics


def test_steps_and_window_with_accumulation_and_max_steps(tmp_path: Path) -> None:
    harvester = CheckpointHarvester(dirpath=tmp_path / "h", every_n_train_steps=1, window=(0.5, 1.0))
    fit(tmp_path, harvester, max_epochs=-1, max_steps=6, accumulate_grad_batches=2)
    assert [snapshot.global_step for snapshot in SnapshotStore.open(tmp_path / "h").snapshots] == [4, 5, 6]


def test_manual_optimisation_counts_each_optimisers_steps(tmp_path: Path) -> None:
    harvester = CheckpointHarvester(dirpath=tmp_path / "h", every_n_train_steps=3)
    fit(tmp_path, harvester, project=ManualProject(), max_epochs=1)
    assert [snapshot.global_step for snapshot in SnapshotStore.open(tmp_path / "h").snapshots] == [4, 6]


def test_a_window_needs_the_length_of_training(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"window=\(0.0, 0.5\): the length of training is unknown"):
        fit(
            tmp_path,
            CheckpointHarvester(dirpath=tmp_path / "h", window=(0.0, 0.5)),
            max_epochs=-1,
            max_time={"hours": 1},
        )


def test_one_submodule(tmp_path: Path) -> None:
    fit(tmp_path, CheckpointHarvester(dirpath=tmp_path / "h", submodule="backbone"), max_epochs=1)
    store = SnapshotStore.open(tmp_path / "h")
    assert store.load(store.snapshots[0]).keys() == Project().backbone.state_dict().keys()
    with pytest.raises(ArgumentError, match=r"submodule='backbon'.*Near names: 'backbone'"):
        fit(tmp_path, CheckpointHarvester(dirpath=tmp_path / "other", submodule="backbon"))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("logger", "folder"),
    [
        (lambda root: False, "snapshots"),
        (lambda root: CSVLogger(root, name="mine", version=3), "mine/version_3/snapshots"),
        (lambda root: CSVLogger(root, name="mine", version="v"), "mine/v/snapshots"),
    ],
)
def test_the_folder_follows_lightning(tmp_path: Path, logger: Any, folder: str) -> None:
    harvester = CheckpointHarvester()
    fit(tmp_path, harvester, logger=logger(tmp_path), max_epochs=1)
    assert harvester.folder == str(tmp_path / folder)
    assert epochs_of(tmp_path / folder) == [0]


def test_another_run_in_the_same_folder(tmp_path: Path) -> None:
    harvester = CheckpointHarvester(dirpath=tmp_path / "h")
    fit(tmp_path, harvester, max_epochs=1)
    before = (tmp_path / "h" / "manifest.json").read_bytes()
    for again in (CheckpointHarvester(dirpath=tmp_path / "h"), harvester):
        with pytest.raises(SnapshotError, match="already holds 1 snapshots of another run"):
            fit(tmp_path, again, max_epochs=1)
    assert (tmp_path / "h" / "manifest.json").read_bytes() == before


def test_a_resumed_run_goes_on_in_its_own_harvest(tmp_path: Path) -> None:
    def callbacks(name: str) -> list[Any]:
        own = ModelCheckpoint(dirpath=tmp_path / name, filename="{epoch}", save_top_k=-1)
        return [own, CheckpointHarvester(dirpath=tmp_path / f"h_{name}")]

    def run(name: str, max_epochs: int, ckpt_path: Path | None = None) -> None:
        trainer = make_trainer(tmp_path, *callbacks(name), max_epochs=max_epochs, enable_checkpointing=True)
        trainer.fit(Project(), DigitsData(shuffle=False), ckpt_path=ckpt_path)

    torch.manual_seed(0)
    run("whole", 4)
    torch.manual_seed(0)
    run("cut", 2)
    run("cut", 4, tmp_path / "cut" / "epoch=0.ckpt")
    whole, cut = (SnapshotStore.open(tmp_path / f"h_{name}") for name in ("whole", "cut"))
    assert entries(cut) == entries(whole)
    assert len(list((tmp_path / "h_cut").glob("*.safetensors"))) == 4


def test_resuming_into_a_new_logger_folder_goes_on_in_the_old_harvest(tmp_path: Path) -> None:
    def run(max_epochs: int, ckpt_path: Path | None = None) -> CheckpointHarvester:
        own, harvester = ModelCheckpoint(dirpath=tmp_path / "own", filename="{epoch}"), CheckpointHarvester()
        trainer = make_trainer(
            tmp_path, own, harvester, max_epochs=max_epochs, logger=CSVLogger(tmp_path), enable_checkpointing=True
        )
        trainer.fit(Project(), DigitsData(), ckpt_path=ckpt_path)
        return harvester

    first = run(1)
    second = run(3, tmp_path / "own" / "epoch=0.ckpt")
    assert second.folder == first.folder == str(tmp_path / "lightning_logs" / "version_0" / "snapshots")
    assert epochs_of(second.folder) == [0, 1, 2]


def test_training_on_with_the_same_trainer(tmp_path: Path) -> None:
    project, trainer = Project(), make_trainer(tmp_path, CheckpointHarvester(dirpath=tmp_path / "h"), max_epochs=1)
    trainer.fit(project, DigitsData())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(project, DigitsData())
    assert epochs_of(tmp_path / "h") == [0, 1]


def test_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    fit(tmp_path, CheckpointHarvester(dirpath=tmp_path / "h"), fast_dev_run=True)
    assert not (tmp_path / "h").exists()


def test_an_exception_keeps_what_was_harvested(tmp_path: Path) -> None:
    class Crash(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 2:
                raise KeyError("crash")

    with pytest.raises(KeyError, match="crash"):
        fit(tmp_path, Crash(), CheckpointHarvester(dirpath=tmp_path / "h"))
    store = SnapshotStore.open(tmp_path / "h")
    assert [snapshot.epoch for snapshot in store.snapshots] == [0, 1]
    assert store.snapshots[1].metrics["own_hook"] == 1.5
    assert all(store.load(snapshot) for snapshot in store.snapshots)


def test_an_averaging_callback_does_not_change_the_last_snapshot(tmp_path: Path) -> None:
    """WeightAveraging puts averaged weights into the module at the end; a snapshot is what was trained."""
    last: dict[str, torch.Tensor] = {}

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            last.update({name: value.clone() for name, value in pl_module.state_dict().items()})

    averaging = WeightAveraging(avg_fn=lambda average, new, count: average)
    fit(tmp_path, averaging, Watch(), CheckpointHarvester(dirpath=tmp_path / "h"), max_epochs=2)
    store = SnapshotStore.open(tmp_path / "h")
    harvested = store.load(store.snapshots[-1])
    assert all(torch.equal(harvested[name], value) for name, value in last.items())


def test_several_harvesters_beside_each_other(tmp_path: Path) -> None:
    parts = [CheckpointHarvester(tmp_path / part, submodule=part) for part in ("backbone", "classifier")]
    assert parts[0].state_key != parts[1].state_key
    fit(tmp_path, *parts, max_epochs=1)
    assert all(epochs_of(tmp_path / part) == [0] for part in ("backbone", "classifier"))


def test_a_write_error_names_the_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SnapshotError, match=r"The folder .*file/h can't be made"):
        fit(tmp_path, CheckpointHarvester(dirpath=tmp_path / "file" / "h"))


class Stream(IterableDataset[Any]):
    """Training images without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(digits(0, 128))


def test_data_without_a_length(tmp_path: Path) -> None:
    def run(harvester: CheckpointHarvester) -> list[tuple[int, int]]:
        validation = DigitsData().val_dataloader()
        make_trainer(tmp_path, harvester, max_epochs=2).fit(Project(), DataLoader(Stream(), 32), validation)
        return [(s.epoch, s.global_step) for s in SnapshotStore.open(str(harvester.dirpath)).snapshots]

    steps = run(CheckpointHarvester(tmp_path / "h", every_n_train_steps=2))
    assert steps == [(0, 2), (0, 4), (1, 6), (1, 8)]
    assert run(CheckpointHarvester(tmp_path / "e", window=(0.5, 1.0))) == [(1, 8)]
    with pytest.raises(ArgumentError, match="the length of training is unknown"):
        run(CheckpointHarvester(tmp_path / "w", every_n_train_steps=2, window=(0.0, 0.5)))


def test_a_run_resumed_on_another_way_leaves_the_old_branch_behind(tmp_path: Path) -> None:
    def run(data: DigitsData, max_epochs: int, ckpt_path: Path | None = None) -> list[tuple[int, int]]:
        own = ModelCheckpoint(dirpath=tmp_path / "own", filename="{epoch}", save_top_k=-1)
        harvester = CheckpointHarvester(tmp_path / "h")
        trainer = make_trainer(tmp_path, own, harvester, max_epochs=max_epochs, enable_checkpointing=True)
        trainer.fit(Project(), data, ckpt_path=ckpt_path)
        return [(s.epoch, s.global_step) for s in SnapshotStore.open(tmp_path / "h").snapshots]

    assert run(DigitsData(), 5) == [(0, 4), (1, 8), (2, 12), (3, 16), (4, 20)]
    assert run(DigitsData(batch_size=64), 3, tmp_path / "own" / "epoch=0.ckpt") == [(0, 4), (1, 6), (2, 8)]
    assert len(list((tmp_path / "h").glob("*.safetensors"))) == 3


def test_a_resumed_epoch_without_a_step_adds_nothing(tmp_path: Path) -> None:
    class OnlyAtFirst(ManualProject):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            if self.current_epoch == 0:
                super().training_step(batch, batch_idx)

    def run(max_epochs: int, ckpt_path: Path | None = None) -> None:
        own = ModelCheckpoint(dirpath=tmp_path / "own", filename="{epoch}", save_top_k=-1)
        harvester = CheckpointHarvester(tmp_path / "h")
        trainer = make_trainer(tmp_path, own, harvester, max_epochs=max_epochs, enable_checkpointing=True)
        trainer.fit(OnlyAtFirst(), DigitsData(), ckpt_path=ckpt_path)

    run(1)
    run(2, tmp_path / "own" / "epoch=0.ckpt")
    assert [snapshot.global_step for snapshot in SnapshotStore.open(tmp_path / "h").snapshots] == [8]


def test_odd_hyper_parameters_and_relative_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(Project):
        def __init__(self) -> None:
            super().__init__()
            self.hparams.update({0: "zero", "call": print, "where": Path("here")})

    monkeypatch.chdir(tmp_path)
    assert CheckpointHarvester("h").state_key == CheckpointHarvester(tmp_path / "h").state_key
    fit(tmp_path, CheckpointHarvester("h"), project=Odd(), max_epochs=1)
    saved = SnapshotStore.open("h").manifest.source["hyper_parameters"]
    assert saved["0"] == "zero"
    assert "print" in saved["call"]


@contextlib.contextmanager
def full_disk(from_call: int) -> Iterator[None]:
    def fail(call: int, name: str) -> None:
        if call >= from_call and name == "write":
            raise OSError(28, "No space left on device")

    with watched_disk(fail):
        yield


def test_training_survives_a_full_disk_and_says_so(tmp_path: Path) -> None:
    with full_disk(from_call=70), pytest.warns(UserWarning, match="Training goes on") as warned:
        trainer = fit(tmp_path, CheckpointHarvester(tmp_path / "h"))
    assert trainer.current_epoch == 4
    message = next(str(item.message) for item in warned if "CheckpointHarvester" in str(item.message))
    assert "No space left on device" in message
    assert re.search(r"h/\S+ could not be written.* needs \d+ bytes, \d+ are free there\. Make room", message)
    store = SnapshotStore.open(tmp_path / "h")
    assert 1 <= len(store.snapshots) < 4
    assert all(store.load(snapshot) for snapshot in store.snapshots)


def test_a_full_disk_ends_the_run_where_that_is_asked_for(tmp_path: Path) -> None:
    harvester = CheckpointHarvester(tmp_path / "h", on_error="raise")
    with full_disk(from_call=70), pytest.raises(SnapshotError, match=r"No space left on device\. It needs \d+ bytes"):
        fit(tmp_path, harvester)
    store = SnapshotStore.open(tmp_path / "h")
    assert all(store.load(snapshot) for snapshot in store.snapshots)
    SnapshotStore.create(tmp_path / "h", store.manifest.run_id, {}).close()  # the lock was given back


def test_room_in_memory_that_can_not_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(HostCopy, "reserve", refuse)
    with pytest.warns(
        UserWarning, match=r"the (snapshot at step \d+ is not taken|.* is not stored): .*no memory\. Training goes on"
    ):
        trainer = fit(tmp_path, CheckpointHarvester(tmp_path / "h"))
    assert trainer.current_epoch == 4


def test_keep_and_dtype(tmp_path: Path) -> None:
    fit(
        tmp_path,
        CheckpointHarvester(tmp_path / "last", keep_last=2),
        CheckpointHarvester(tmp_path / "half", dtype="bf16"),
    )
    assert epochs_of(tmp_path / "last") == [2, 3]
    last, half = SnapshotStore.open(tmp_path / "last"), SnapshotStore.open(tmp_path / "half")
    assert half.manifest.source["dtype"] == "bf16"
    whole, narrow = last.load(last.snapshots[-1]), half.load(half.snapshots[-1])
    for name, value in whole.items():
        assert torch.equal(narrow[name], value.bfloat16() if value.is_floating_point() else value)
    budget = 3 * last.snapshots[0].size
    fit(tmp_path, CheckpointHarvester(tmp_path / "budget", keep_bytes=budget), max_epochs=7)
    assert epochs_of(tmp_path / "budget") == [0, 4, 6]
    assert sum(path.stat().st_size for path in (tmp_path / "budget").glob("*.safetensors")) <= budget
    with pytest.raises(ArgumentError, match=r"keep_bytes=10 is less than one snapshot needs"):
        fit(tmp_path, CheckpointHarvester(tmp_path / "tiny", keep_bytes=10))
    with pytest.raises(ArgumentError, match="dtype should be one of bf16, fp16 or None, got 'int8'"):
        CheckpointHarvester(dtype="int8")
    with pytest.raises(ArgumentError, match="on_error should be warn or raise, got 'ignore'"):
        CheckpointHarvester(on_error="ignore")


def test_averaged_weights(tmp_path: Path) -> None:
    seen: dict[int, dict[str, torch.Tensor]] = {}

    class FromSecondEpoch(EMAWeightAveraging):
        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            return step_idx is not None and step_idx >= 4

    class Watch(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            average = averaging._average_model.module.state_dict()
            seen[trainer.current_epoch] = {name: value.clone() for name, value in average.items()}

    averaging = FromSecondEpoch(decay=0.5)
    raw = CheckpointHarvester(tmp_path / "raw")
    fit(tmp_path, averaging, CheckpointHarvester(tmp_path / "ema", averaged=True), raw, Watch())
    ema, trained = SnapshotStore.open(tmp_path / "ema"), SnapshotStore.open(tmp_path / "raw")
    assert [snapshot.epoch for snapshot in ema.snapshots] == [1, 2, 3], "there is no average in the first epoch"
    assert ema.manifest.source["averaged"] is True
    for snapshot in ema.snapshots:
        weights = ema.load(snapshot)
        assert all(torch.equal(weights[name], value) for name, value in seen[snapshot.epoch].items())
    last, own = ema.load(ema.snapshots[-1]), trained.load(trained.snapshots[-1])
    assert not torch.equal(last["classifier.weight"], own["classifier.weight"])


def test_averaged_weights_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="averaged=True: the Trainer has no WeightAveraging"):
        fit(tmp_path, CheckpointHarvester(tmp_path / "h", averaged=True))
    with pytest.raises(ArgumentError, match="EMAWeightAveraging comes after CheckpointHarvester"):
        fit(tmp_path, CheckpointHarvester(tmp_path / "h", averaged=True), EMAWeightAveraging())
    assert not (tmp_path / "h").exists()


def test_tied_weights(tmp_path: Path) -> None:
    class Tied(Project):
        def __init__(self) -> None:
            super().__init__()
            self.same = self.classifier

    fit(tmp_path, CheckpointHarvester(tmp_path / "h"), project=Tied(), max_epochs=1)
    store = SnapshotStore.open(tmp_path / "h")
    weights = store.load(store.snapshots[0])
    assert weights["same.weight"] is weights["classifier.weight"]


def test_a_strategy_that_was_never_tested_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ArgumentError, match=r"strategy=DeepSpeedStrategy: weights are harvested on one device, under DDP"
    ):
        check_strategy(SimpleNamespace(strategy=DeepSpeedStrategy.__new__(DeepSpeedStrategy)))  # type: ignore[arg-type]
    check_strategy(make_trainer(tmp_path))


@pytest.mark.filterwarnings("ignore:memory.*its store has no conditional put")
def test_a_remote_folder(tmp_path: Path) -> None:
    url = "memory://harvests/run"
    fit(tmp_path, CheckpointHarvester(url))
    store = SnapshotStore.open(url)
    assert [snapshot.epoch for snapshot in store.snapshots] == [0, 1, 2, 3]
    MISelector(rule="spaced", num_teachers=2).select(url, progress=False)
    chosen = Selection.read(store).chosen
    assert len(chosen) == 2
    student = Project(channels=2)
    module = DistillationModule(student, Project(), url, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    make_trainer(tmp_path, max_epochs=1).fit(module, DigitsData())


def test_a_second_run_in_a_folder_that_is_being_written(tmp_path: Path) -> None:
    class Second(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 0:
                before = sorted((tmp_path / "h").iterdir())
                with pytest.raises(
                    SnapshotError, match="is being written by another CheckpointHarvester or Trainer of this process"
                ):
                    fit(tmp_path, CheckpointHarvester(tmp_path / "h"))
                assert sorted((tmp_path / "h").iterdir()) == before

    fit(tmp_path, CheckpointHarvester(tmp_path / "h"), Second(), max_epochs=2)
    assert epochs_of(tmp_path / "h") == [0, 1]


def test_weights_that_move_before_a_checkpoint_are_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint of a step holds other weights than its snapshot, so it must wait for the snapshot."""
    committed: list[int] = []

    class Moves(Project):
        def on_train_epoch_end(self) -> None:
            super().on_train_epoch_end()
            self.classifier.weight.data.add_(1)

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            committed.append(len(SnapshotStore.open(tmp_path / "h").snapshots))
            assert all(state["unstored"] is None for key, state in checkpoint["callbacks"].items() if "Harv" in key)

    real = SnapshotStore.commit
    monkeypatch.setattr(SnapshotStore, "commit", lambda *a, **k: (time.sleep(0.2), real(*a, **k))[1])
    own = ModelCheckpoint(dirpath=tmp_path / "own", save_top_k=-1, filename="{epoch}", save_on_train_epoch_end=True)
    fit(tmp_path, CheckpointHarvester(tmp_path / "h"), own, project=Moves(), max_epochs=2, enable_checkpointing=True)
    assert committed == [1, 2]


def test_a_checkpoint_tells_of_a_snapshot_that_is_still_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    class Watch(Project):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            told.extend(state["unstored"] for key, state in checkpoint["callbacks"].items() if "Harv" in key)

    real = SnapshotStore.commit
    monkeypatch.setattr(SnapshotStore, "commit", lambda *a, **k: (time.sleep(0.3), real(*a, **k))[1])
    own = ModelCheckpoint(dirpath=tmp_path / "own", filename="{epoch}", save_on_train_epoch_end=True)
    fit(tmp_path, CheckpointHarvester(tmp_path / "h"), own, project=Watch(), max_epochs=1, enable_checkpointing=True)
    (snapshot,) = SnapshotStore.open(tmp_path / "h").snapshots
    assert told[0]["sha256"] == snapshot.sha256
    assert (told[0]["epoch"], told[0]["global_step"], told[0]["metrics"]) == (0, 4, snapshot.metrics)


def test_a_checkpoint_that_tells_of_one_snapshot_waits_for_those_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[int], Any]] = []

    class Watch(Project):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            committed = [snapshot.global_step for snapshot in SnapshotStore.open(tmp_path / "h").snapshots]
            (unstored,) = (state["unstored"] for key, state in checkpoint["callbacks"].items() if "Harv" in key)
            seen.append((committed, unstored))

    real = SnapshotStore.commit
    monkeypatch.setattr(SnapshotStore, "commit", lambda *a, **k: (time.sleep(2), real(*a, **k))[1])
    own = ModelCheckpoint(dirpath=tmp_path / "own", every_n_epochs=2, save_on_train_epoch_end=True)
    fit(tmp_path, CheckpointHarvester(tmp_path / "h"), own, project=Watch(), max_epochs=2, enable_checkpointing=True)
    ((committed, unstored),) = seen
    assert committed == [4]
    assert unstored["global_step"] == 8


def test_a_snapshot_that_was_killed_before_its_metrics_gets_them(tmp_path: Path) -> None:
    own = ModelCheckpoint(dirpath=tmp_path / "own", filename="{epoch}", save_on_train_epoch_end=True)
    fit(tmp_path, CheckpointHarvester(tmp_path / "h"), own, max_epochs=1, enable_checkpointing=True)
    (whole,) = SnapshotStore.open(tmp_path / "h").snapshots
    manifest = json.loads((tmp_path / "h" / "manifest.json").read_text())
    manifest["snapshots"][0]["metrics"] = {}
    (tmp_path / "h" / "manifest.json").write_text(json.dumps(manifest))
    path = tmp_path / "own" / "epoch=0.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    (key,) = (key for key in checkpoint["callbacks"] if "Harvester" in key)
    entry = {"epoch": 0, "global_step": 4, "learning_rate": 0.1, "metrics": whole.metrics, "sha256": whole.sha256}
    checkpoint["callbacks"][key]["unstored"] = entry
    torch.save(checkpoint, path)
    trainer = make_trainer(tmp_path, CheckpointHarvester(tmp_path / "h"), own, max_epochs=2, enable_checkpointing=True)
    trainer.fit(Project(), DigitsData(), ckpt_path=path)
    assert SnapshotStore.open(tmp_path / "h").snapshots[0] == whole


def test_the_last_snapshot_is_made_up_for_though_training_is_complete(tmp_path: Path) -> None:
    own = ModelCheckpoint(dirpath=tmp_path / "own", filename="{epoch}", save_on_train_epoch_end=True)
    fit(tmp_path, CheckpointHarvester(tmp_path / "h"), own, max_epochs=2, enable_checkpointing=True)
    whole = SnapshotStore.open(tmp_path / "h").snapshots
    path = tmp_path / "own" / "epoch=1.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    (key,) = (key for key in checkpoint["callbacks"] if "Harvester" in key)
    fields = ("epoch", "global_step", "learning_rate", "metrics", "sha256")
    checkpoint["callbacks"][key]["unstored"] = {name: getattr(whole[1], name) for name in fields}
    torch.save(checkpoint, path)
    with to_write(tmp_path / "h") as store:
        store.forget_after(4)
    trainer = make_trainer(tmp_path, CheckpointHarvester(tmp_path / "h"), own, max_epochs=2, enable_checkpointing=True)
    trainer.fit(Project(), DigitsData(), ckpt_path=path)
    assert SnapshotStore.open(tmp_path / "h").snapshots == whole
    to_write(tmp_path / "h").close()  # the lock was given back


def test_a_checkpoint_without_the_snapshots_weights_does_not_make_a_wrong_one(tmp_path: Path) -> None:
    own = ModelCheckpoint(dirpath=tmp_path / "own", filename="{epoch}", save_on_train_epoch_end=True)
    fit(tmp_path, CheckpointHarvester(tmp_path / "h"), own, max_epochs=1, enable_checkpointing=True)
    store = SnapshotStore.open(tmp_path / "h")
    Path(store.folder / store.snapshots[0].file).unlink()
    (tmp_path / "h" / "manifest.json").unlink()
    path = tmp_path / "own" / "epoch=0.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    (key,) = (key for key in checkpoint["callbacks"] if "Harvester" in key)
    entry = {"epoch": 0, "global_step": 4, "learning_rate": 0.1, "metrics": {}, "sha256": "0" * 64}
    checkpoint["callbacks"][key]["unstored"] = entry
    torch.save(checkpoint, path)
    trainer = make_trainer(tmp_path, CheckpointHarvester(tmp_path / "h"), own, max_epochs=2, enable_checkpointing=True)
    with pytest.warns(UserWarning, match=r"the snapshot at step 4 is not stored: .*they are not those of the snapshot"):
        trainer.fit(Project(), DigitsData(), ckpt_path=path)
    assert epochs_of(tmp_path / "h") == [1]


def test_an_overflow_while_a_checkpoint_is_saved_does_not_end_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Overflows(Project):
        def on_train_batch_end(self, *_: Any) -> None:
            self.classifier.bias.data[0] = 1e30

    real = SnapshotStore.commit
    monkeypatch.setattr(SnapshotStore, "commit", lambda *a, **k: (time.sleep(0.2), real(*a, **k))[1])
    own = ModelCheckpoint(dirpath=tmp_path / "own", save_on_train_epoch_end=True)
    harvester = CheckpointHarvester(tmp_path / "h", dtype="fp16")
    with pytest.warns(UserWarning, match="holds values beyond fp16"):
        trainer = fit(tmp_path, harvester, own, project=Overflows(), max_epochs=2, enable_checkpointing=True)
    assert trainer.current_epoch == 2


def test_a_test_of_an_older_checkpoint_between_two_fits_changes_nothing(tmp_path: Path) -> None:
    class Tested(Project):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.validation_step(batch, batch_idx)

    own = ModelCheckpoint(dirpath=tmp_path / "own", filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    harvester = CheckpointHarvester(tmp_path / "h", keep_last=3)
    project, trainer = Tested(), make_trainer(tmp_path, harvester, own, max_epochs=4, enable_checkpointing=True)
    trainer.fit(project, DigitsData())
    assert epochs_of(tmp_path / "h") == [1, 2, 3]
    trainer.test(project, DigitsData(), ckpt_path=tmp_path / "own" / "epoch=0.ckpt", verbose=False)
    trainer.fit_loop.max_epochs = 5
    trainer.fit(project, DigitsData())
    assert epochs_of(tmp_path / "h") == [2, 3, 4]


def test_a_checkpoint_of_the_validation_before_the_epochs_end(tmp_path: Path) -> None:
    """Resumed from it, Lightning ends the epoch once more: what was recorded stays."""
    own = ModelCheckpoint(dirpath=tmp_path / "own", filename="{epoch}", save_on_train_epoch_end=False)
    fit(tmp_path, CheckpointHarvester(tmp_path / "h"), own, max_epochs=1, enable_checkpointing=True)
    (before,) = SnapshotStore.open(tmp_path / "h").snapshots
    trainer = make_trainer(tmp_path, CheckpointHarvester(tmp_path / "h"), own, max_epochs=2, enable_checkpointing=True)
    trainer.fit(Project(), DigitsData(), ckpt_path=tmp_path / "own" / "epoch=0.ckpt")
    after = SnapshotStore.open(tmp_path / "h").snapshots
    assert [snapshot.epoch for snapshot in after] == [0, 1]
    assert after[0] == before
    with to_write(tmp_path / "h") as store:
        store.forget_after(0)
    trainer = make_trainer(tmp_path, CheckpointHarvester(tmp_path / "h"), own, max_epochs=1, enable_checkpointing=True)
    trainer.fit(Project(), DigitsData(), ckpt_path=tmp_path / "own" / "epoch=0.ckpt")
    (again,) = SnapshotStore.open(tmp_path / "h").snapshots
    assert (again.sha256, again.learning_rate) == (before.sha256, before.learning_rate)
    assert again.metrics["val_loss"] == before.metrics["val_loss"]


def test_a_validation_within_the_epoch_counts_for_its_own_snapshot(tmp_path: Path) -> None:
    own = ModelCheckpoint(dirpath=tmp_path / "own", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    harvester = CheckpointHarvester(tmp_path / "h", every_n_train_steps=1)
    fit(tmp_path, harvester, own, max_epochs=1, val_check_interval=2, enable_checkpointing=True)
    snapshots = SnapshotStore.open(tmp_path / "h").snapshots
    assert [snapshot.global_step for snapshot in snapshots if "val_loss" in snapshot.metrics] == [2, 4]


def test_a_folder_that_is_gone_when_a_run_is_resumed_is_said(tmp_path: Path) -> None:
    def run(max_epochs: int, ckpt_path: Path | None = None) -> None:
        own = ModelCheckpoint(dirpath=tmp_path / "own", filename="{epoch}")
        logger = CSVLogger(tmp_path, name="l")
        options: dict[str, Any] = {"max_epochs": max_epochs, "logger": logger, "enable_checkpointing": True}
        make_trainer(tmp_path, CheckpointHarvester(), own, **options).fit(Project(), DigitsData(), ckpt_path=ckpt_path)

    run(1)
    (tmp_path / "l" / "version_0").rename(tmp_path / "moved")
    (tmp_path / "l" / "version_0").mkdir()  # so that the logger takes the next number
    with pytest.warns(UserWarning, match="does not hold the snapshots of the run that is resumed"):
        run(2, tmp_path / "own" / "epoch=0.ckpt")
    assert epochs_of(tmp_path / "l" / "version_1" / "snapshots")[-1] == 1


def test_an_error_at_the_end_does_not_lose_the_snapshot_that_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SnapshotStore.commit
    monkeypatch.setattr(SnapshotStore, "commit", lambda *a, **k: (time.sleep(0.2), real(*a, **k))[1])

    def fail(*_: Any) -> None:
        raise ValueError("an injected error")

    monkeypatch.setattr(Recorder, "forget_after", fail)
    harvester = CheckpointHarvester(tmp_path / "snapshots")
    with pytest.raises(ValueError, match="an injected error"):
        make_trainer(tmp_path, harvester, max_epochs=2).fit(Project(), DigitsData())
    assert [snapshot.epoch for snapshot in SnapshotStore.open(tmp_path / "snapshots").snapshots] == [0, 1]


class ByHand(Project):
    """Manual optimisation; ``raw`` steps the optimiser itself, so that Lightning does not count."""

    def __init__(self, raw: bool = True, accumulate: int = 1, counted_epochs: int = 0, lr: float = 0.1) -> None:
        super().__init__(lr=lr)
        self.automatic_optimization = False
        self.raw, self.accumulate, self.counted_epochs = raw, accumulate, counted_epochs

    def training_step(self, batch: Any, batch_idx: int) -> None:
        counted = not self.raw or self.current_epoch < self.counted_epochs
        optimizer = self.optimizers(use_pl_optimizer=counted)
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        if self.accumulate and (batch_idx + 1) % self.accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()


class Ends(Callback):
    """The weights at the end of each batch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *_: Any) -> None:
        self.weights.append({name: value.clone() for name, value in pl_module.state_dict().items()})


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(0, 4), (1, 8), (2, 12)]),
        ({"every_n_epochs": 2}, [(1, 8)]),
        ({"every_n_train_steps": 3}, [(0, 3), (1, 6), (2, 9), (2, 12)]),
        ({"keep_last": 2}, [(1, 8), (2, 12)]),
    ],
)
def test_an_optimiser_that_lightning_does_not_see(tmp_path: Path, options: Any, expected: Any) -> None:
    ends = Ends()
    trainer = make_trainer(tmp_path, ends, CheckpointHarvester(tmp_path / "h", **options), max_epochs=3)
    trainer.fit(ByHand(), DigitsData())
    assert trainer.global_step == 0
    store = SnapshotStore.open(tmp_path / "h")
    assert [(found.epoch, found.global_step) for found in store.snapshots] == expected
    for found in store.snapshots:  # four batches an epoch: the number says which
        weights = store.load(found)
        assert all(torch.equal(weights[name], value) for name, value in ends.weights[found.global_step - 1].items())
        assert "train_loss" in found.metrics or "every_n_train_steps" in options


def test_a_run_that_lightning_does_not_see_goes_on(tmp_path: Path) -> None:
    def fit(folder: Path, epochs: int, **options: Any) -> SnapshotStore:
        own = ModelCheckpoint(dirpath=folder / "own", save_top_k=-1, save_last=True)
        harvester = CheckpointHarvester(folder / "h")
        torch.manual_seed(0)
        trainer = make_trainer(folder, own, harvester, enable_checkpointing=True, max_epochs=epochs)
        trainer.fit(ByHand(), DigitsData(shuffle=False), **options)
        return SnapshotStore.open(folder / "h")

    whole = fit(tmp_path / "whole", 4)
    fit(tmp_path / "parts", 2)
    parts = fit(tmp_path / "parts", 4, ckpt_path=tmp_path / "parts" / "own" / "last.ckpt")
    assert [(a.epoch, a.global_step, a.sha256) for a in parts.snapshots] == [
        (b.epoch, b.global_step, b.sha256) for b in whole.snapshots
    ]
    assert [found.global_step for found in parts.snapshots] == [4, 8, 12, 16]


def test_a_second_fit_of_a_run_that_lightning_does_not_see(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, CheckpointHarvester(tmp_path / "h"), max_epochs=1)
    module = ByHand()
    trainer.fit(module, DigitsData())
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, DigitsData())
    assert [found.global_step for found in SnapshotStore.open(tmp_path / "h").snapshots] == [4, 8, 12]


@pytest.mark.parametrize("options", [{}, {"every_n_train_steps": 1}])
def test_steps_that_lightning_counts_are_its_own(tmp_path: Path, options: Any) -> None:
    """Gradients accumulated by hand: nothing is taken before the first step, and no batch is counted."""
    harvester = CheckpointHarvester(tmp_path / "h", **options)
    make_trainer(tmp_path, harvester, max_epochs=2).fit(ByHand(raw=False, accumulate=2), DigitsData())
    found = [(found.epoch, found.global_step) for found in SnapshotStore.open(tmp_path / "h").snapshots]
    assert found == ([(0, 1), (0, 2), (1, 3), (1, 4)] if options else [(0, 2), (1, 4)])


def test_numbers_go_on_where_lightning_counts_a_part(tmp_path: Path) -> None:
    harvester = CheckpointHarvester(tmp_path / "h")
    make_trainer(tmp_path, harvester, max_epochs=3).fit(ByHand(counted_epochs=1), DigitsData())
    assert [found.global_step for found in SnapshotStore.open(tmp_path / "h").snapshots] == [4, 8, 12]


def test_a_snapshot_that_is_left_out_is_told_once(tmp_path: Path) -> None:
    harvester = CheckpointHarvester(tmp_path / "h")
    trainer = make_trainer(tmp_path, harvester, max_epochs=3)
    with pytest.warns(
        UserWarning, match="no snapshot is taken in epoch 0, where one is due: no optimiser step"
    ) as told:
        trainer.fit(ByHand(accumulate=0), DigitsData())
    assert len([warning for warning in told if "no snapshot" in str(warning.message)]) == 1
    with pytest.raises(SnapshotError, match=r"has no manifest\.json"):
        SnapshotStore.open(tmp_path / "h")


@pytest.mark.parametrize("options", [{"epochs": [7]}, {"every_n_train_steps": 100}])
def test_a_training_without_a_due_snapshot_is_told(tmp_path: Path, options: Any) -> None:
    trainer = make_trainer(tmp_path, CheckpointHarvester(tmp_path / "h", **options), max_epochs=1)
    with pytest.warns(UserWarning, match=r"training has ended without a snapshot, since none was due \(Cadence\("):
        trainer.fit(Project(), DigitsData())
