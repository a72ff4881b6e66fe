from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_ckptkd import ArgumentError, CheckpointHarvester, SnapshotError, SnapshotStore, harvest_checkpoints
from lightning_ckptkd.commands.cli import main
from tests.projects import DigitsData, Project, make_trainer


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own folder of checkpoints, and beside it what the harvester made of the same run."""
    root = tmp_path_factory.mktemp("run")
    own = ModelCheckpoint(dirpath=root / "checkpoints", monitor="val_loss", save_top_k=-1, save_last="link")
    harvester = CheckpointHarvester(dirpath=root / "harvest")
    make_trainer(root, own, harvester, enable_checkpointing=True, max_epochs=3).fit(Project(), DigitsData())
    return root / "checkpoints"


def test_takes_over_what_the_harvester_would_have_written(checkpoints: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in checkpoints.iterdir()}
    taken = harvest_checkpoints(checkpoints, tmp_path / "taken")
    harvested = SnapshotStore.open(checkpoints.parent / "harvest")
    assert len(taken.snapshots) == 3
    for a, b in zip(taken.snapshots, harvested.snapshots, strict=True):
        assert (a.epoch, a.global_step, a.sha256, a.size) == (b.epoch, b.global_step, b.sha256, b.size)
        assert a.metrics == pytest.approx({"val_loss": b.metrics["val_loss"]})
    assert taken.manifest.source["hyper_parameters"] == {"channels": 8, "lr": 0.1, "num_classes": 10}
    assert {path.name: path.read_bytes() for path in checkpoints.iterdir()} == before


def test_takes_a_part_and_goes_on_when_called_again(checkpoints: Path, tmp_path: Path) -> None:
    taken = harvest_checkpoints(checkpoints, tmp_path / "part", submodule="classifier")
    assert set(taken.load(taken.snapshots[0])) == {"weight", "bias"}
    again = harvest_checkpoints(checkpoints, tmp_path / "part", submodule="classifier")
    assert again.snapshots == taken.snapshots
    with pytest.raises(SnapshotError, match="already holds 3 snapshots of another run"):
        harvest_checkpoints(checkpoints, tmp_path / "part")


def test_a_hostile_pickle_runs_no_code(checkpoints: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    folder = tmp_path / "hostile"
    folder.mkdir()
    state = {"state_dict": {"a": torch.ones(1)}, "epoch": 0, "global_step": 1, "hyper_parameters": Hostile()}
    torch.save(state, folder / "bad.ckpt")
    taken = harvest_checkpoints(folder, tmp_path / "out")
    assert taken.manifest.source["hyper_parameters"] == {}
    assert not (tmp_path / "executed").exists()
    torch.load(folder / "bad.ckpt", weights_only=False)
    assert (tmp_path / "executed").exists(), "the pickle does run code where it is not guarded against"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "it has no 'state_dict'"),
        ({"weight": torch.ones(1)}, "it has no 'state_dict'"),
        ({"state_dict": {"a": torch.ones(1)}, "epoch": 0}, r"its 'global_step' is None\. Move it out"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(SnapshotError, match=rf"other\.ckpt is not a Lightning checkpoint: .*{message}"):
        harvest_checkpoints(tmp_path, tmp_path / "out")


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"holds no .ckpt files"):
        harvest_checkpoints(tmp_path, tmp_path / "out")
    (tmp_path / "cut.ckpt").write_bytes(pickle.dumps({"state_dict": {}})[:-3])
    with pytest.raises(SnapshotError, match=r"cut.ckpt can't be read"):
        harvest_checkpoints(tmp_path, tmp_path / "out")


def save(folder: Path, name: str, epoch: int, step: int, value: float, **others: Any) -> None:
    """A checkpoint as of the end of an epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    progress = {"total": {"ready": others.pop("batches", step)}, "is_last_batch": others.pop("ended", True)}
    loops = {"fit_loop": {"epoch_loop.batch_progress": progress}}
    state = others.pop("state_dict", {"a": torch.full((2,), value)})
    torch.save({"state_dict": state, "epoch": epoch, "global_step": step, "loops": loops, **others}, folder / name)


def steps(store: SnapshotStore) -> list[tuple[int, int, float]]:
    return [(found.epoch, found.global_step, float(store.load(found)["a"][0])) for found in store.snapshots]


def refused(folder: Path, message: str, **options: Any) -> str:
    with pytest.raises(SnapshotError, match=message) as caught:
        harvest_checkpoints(folder, folder.parent / "harvest", progress=False, **options)
    assert not (folder.parent / "harvest").exists(), "nothing is written"
    return str(caught.value)


def train_into(folder: Path, seed: int, epochs: int) -> LightningModule:
    torch.manual_seed(seed)
    module = Project()
    own = ModelCheckpoint(dirpath=folder, save_top_k=-1)
    make_trainer(folder, own, enable_checkpointing=True, max_epochs=epochs).fit(module, DigitsData())
    return module


def test_a_restarted_run(tmp_path: Path) -> None:
    """Epochs 0 and 1 of a run that was stopped, 0 to 2 of the one that was started anew in the same folder."""
    folder = tmp_path / "own"
    train_into(folder, 0, 2)
    final = train_into(folder, 1, 3).state_dict()
    names = sorted(path.name for path in folder.glob("*.ckpt"))
    assert [name for name in names if "-v1" in name] == ["epoch=0-step=4-v1.ckpt", "epoch=1-step=8-v1.ckpt"]
    told = refused(folder, r"epoch=0-step=4-v1\.ckpt and epoch=0-step=4\.ckpt: both are of step 4 and their weights")
    assert "epoch=2-step=12.ckpt could as well be of another" in told
    second = ["*-v1.ckpt", "epoch=2-step=12.ckpt"]
    taken = harvest_checkpoints(folder, tmp_path / "harvest", progress=False, files=second)
    assert [snapshot.global_step for snapshot in taken.snapshots] == [4, 8, 12]
    last = taken.load(taken.snapshots[-1])
    assert all(torch.equal(last[name], value) for name, value in final.items())
    with pytest.raises(SnapshotError, match="already holds 3 snapshots of another run"):
        harvest_checkpoints(folder, tmp_path / "harvest", progress=False, files="!*-v1.ckpt")


def test_the_remedy_for_versions(tmp_path: Path) -> None:
    for epoch in range(3):
        save(tmp_path / "own", f"epoch={epoch}.ckpt", epoch, 5 * epoch + 5, epoch)
        save(tmp_path / "own", f"epoch={epoch}-v1.ckpt", epoch, 5 * epoch + 5, 10 + epoch)
    told = refused(tmp_path / "own", "more than one run")
    for pattern, start in (("!*-v1.ckpt", 0), ("*-v1.ckpt", 10)):
        assert f"files={pattern!r} takes it" in told
        store = harvest_checkpoints(tmp_path / "own", tmp_path / f"h{start}", progress=False, files=pattern)
        assert steps(store) == [(epoch, 5 * epoch + 5, start + epoch) for epoch in range(3)]


@pytest.mark.parametrize("lengths", [(10, 10), (10, 12)], ids=["of one size", "of two sizes"])
def test_two_folds(tmp_path: Path, lengths: tuple[int, int]) -> None:
    for fold, length in enumerate(lengths):
        for epoch in range(3):
            save(tmp_path / "own", f"fold{fold}-{epoch}.ckpt", epoch, length * (epoch + 1), 10 * fold + epoch)
    refused(
        tmp_path / "own", r"both are of step 10" if lengths[0] == lengths[1] else r"epoch 0 ends at step 10 and at "
    )
    store = harvest_checkpoints(tmp_path / "own", tmp_path / "harvest", progress=False, files="fold1-*")
    assert [value for _, _, value in steps(store)] == [10, 11, 12]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("epochs go back", "steps 15 and 20 are of epochs 3 and 2"),
        ("batches go back", "steps 15 and 20 come after 40 and 20 batches"),
        ("other shapes", "names or shapes"),
        ("other names", "names or shapes"),
    ],
)
def test_runs_whose_steps_interleave(tmp_path: Path, kind: str, message: str) -> None:
    save(tmp_path / "own", "a.ckpt", 1, 10, 1)
    other: dict[str, Any] = {
        "epochs go back": {"epoch": 3},
        "batches go back": {"batches": 40},
        "other shapes": {"state_dict": {"a": torch.ones(3)}},
        "other names": {"state_dict": {"b": torch.ones(2)}},
    }[kind]
    save(tmp_path / "own", "b.ckpt", **{"epoch": 1, "step": 15, "value": 2, "ended": False, **other})
    save(tmp_path / "own", "c.ckpt", 2, 20, 3)
    refused(tmp_path / "own", message)
    refused(tmp_path / "own", message, files="*")
    store = harvest_checkpoints(tmp_path / "own", tmp_path / "harvest", progress=False, files=["a.ckpt", "c.ckpt"])
    assert steps(store) == [(1, 10, 1), (2, 20, 3)]


@pytest.mark.parametrize("sign", ["hyper-parameters", "data's hyper-parameters", "folder", "run that CheckpointHarv"])
def test_runs_that_only_their_settings_tell_apart(tmp_path: Path, sign: str) -> None:
    """Epochs 0 to 2 of one run, 3 and 4 of another: nothing in them contradicts."""
    for epoch in range(5):
        fold = int(epoch > 2)
        others: dict[str, Any] = {
            "hyper-parameters": {"hyper_parameters": {"lr": 0.1, "fold": fold}},
            "data's hyper-parameters": {"datamodule_hyper_parameters": {"fold": fold}},
            "folder": {"callbacks": {"ModelCheckpoint": {"dirpath": f"version_{fold}/checkpoints"}}},
            "run that CheckpointHarv": {"callbacks": {"CheckpointHarvester{}": {"run_id": f"run {fold}"}}},
        }[sign]
        save(tmp_path / "own", f"epoch={epoch}.ckpt", epoch, 5 * epoch + 5, epoch, **others)
    told = refused(tmp_path / "own", rf"epoch=0\.ckpt and epoch=3\.ckpt differ in the\w* {sign}.*files='\*' takes them")
    assert "Group 2: epoch=3.ckpt, epoch=4.ckpt; files=['epoch=3.ckpt', 'epoch=4.ckpt'] takes it." in told
    store = harvest_checkpoints(tmp_path / "own", tmp_path / "harvest", progress=False, files="*")
    assert [value for _, _, value in steps(store)] == [0, 1, 2, 3, 4]


def test_equal_weights_at_an_equal_step_are_one(tmp_path: Path) -> None:
    save(tmp_path / "own", "epoch=0.ckpt", 0, 5, 1)
    save(tmp_path / "own", "last.ckpt", 0, 5, 1)
    save(tmp_path / "own", "saved after training.ckpt", 1, 5, 1)
    store = harvest_checkpoints(tmp_path / "own", tmp_path / "harvest", progress=False)
    assert steps(store) == [(0, 5, 1)]


def test_another_run_under_the_same_names(tmp_path: Path) -> None:
    """The folder is harvested again after another run has written over its files."""
    save(tmp_path / "own", "epoch=0.ckpt", 0, 5, 1)
    harvest_checkpoints(tmp_path / "own", tmp_path / "harvest", progress=False)
    save(tmp_path / "own", "epoch=0.ckpt", 0, 5, 2)
    save(tmp_path / "own", "epoch=1.ckpt", 1, 10, 3)
    with pytest.raises(SnapshotError, match=r"epoch=0\.ckpt has other weights at step 5 than .*Give another folder"):
        harvest_checkpoints(tmp_path / "own", tmp_path / "harvest", progress=False)
    assert steps(SnapshotStore.open(tmp_path / "harvest")) == [(0, 5, 1)]
    assert len(steps(harvest_checkpoints(tmp_path / "own", tmp_path / "other", progress=False))) == 2


def test_a_run_whose_optimiser_steps_nobody_counted(tmp_path: Path) -> None:
    for epoch in range(2):
        save(tmp_path / "own", f"epoch={epoch}.ckpt", epoch, 0, epoch, batches=7 * epoch + 7)
    store = harvest_checkpoints(tmp_path / "own", tmp_path / "harvest", progress=False)
    assert steps(store) == [(0, 7, 0), (1, 14, 1)]


def test_files_that_are_not_there(tmp_path: Path) -> None:
    save(tmp_path / "own", "epoch=0.ckpt", 0, 5, 1)
    with pytest.raises(ArgumentError, match=r"files=\['\*-v1\.ckpt'\]: none of the 1 .ckpt files.*epoch=0\.ckpt"):
        harvest_checkpoints(tmp_path / "own", tmp_path / "harvest", progress=False, files="*-v1.ckpt")


def test_the_command_takes_some_files(tmp_path: Path) -> None:
    for epoch in range(2):
        save(tmp_path / "own", f"epoch={epoch}.ckpt", epoch, 5 * epoch + 5, epoch)
        save(tmp_path / "own", f"epoch={epoch}-v1.ckpt", epoch, 5 * epoch + 5, 10 + epoch)
    with pytest.raises(SnapshotError, match="more than one run"):
        main(["harvest", str(tmp_path / "own"), str(tmp_path / "harvest")])
    main(["harvest", str(tmp_path / "own"), str(tmp_path / "harvest"), "--files", "epoch=*", "!*-v1.ckpt"])
    assert steps(SnapshotStore.open(tmp_path / "harvest")) == [(0, 5, 0), (1, 10, 1)]
