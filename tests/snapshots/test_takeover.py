from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_ckptkd import ArgumentError, CheckpointHarvester, SnapshotError, SnapshotStore, harvest_checkpoints
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
