"""What the loggers of a run are told of a selection, read back from what they wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lightning_ckptkd import ArgumentError, CheckpointHarvester, MISelector
from tests.projects import DigitsData, Project, make_trainer

TABLE, PICTURE = "selection/table", "selection/picture"


def run(root: Path, logger: Any, **options: Any) -> Path:
    """A run of two epochs; returns the harvest's folder."""
    folder = root / "harvest"
    callbacks = [MISelector(rule="accuracy", num_teachers=1), CheckpointHarvester(dirpath=folder, **options)]
    make_trainer(root, *reversed(callbacks), max_epochs=2, logger=logger).fit(Project(), DigitsData())
    return folder


def chosen_row(folder: Path) -> tuple[str, float]:
    found = json.loads((folder / "selection.json").read_text())
    (row,) = (item for item in found["snapshots"] if item["file"] in found["chosen"])
    return row["file"], row["accuracy"]


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="l")
    folder = run(tmp_path, logger)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    (image,) = events.Images(PICTURE)
    assert image.encoded_image_string[:4] == b"\x89PNG" and image.width > 100 and image.step == 8
    (text,) = events.Tensors(f"{TABLE}/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    name, accuracy = chosen_row(folder)
    (line,) = (line for line in table.splitlines() if line.endswith("| True |"))
    assert name in line and str(accuracy) in line and len(table.splitlines()) == 4
    assert [item.step for item in events.Scalars("selection/score")] == [4, 8]


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    given: list[Any] = []
    logger = WandbLogger(project="p", save_dir=tmp_path, offline=True)
    log = logger.experiment.log_artifact
    monkeypatch.setattr(
        logger.experiment, "log_artifact", lambda artifact, *others: given.append(artifact) or log(artifact, *others)
    )
    folder = run(tmp_path, logger, as_artifact=True)
    files = Path(logger.experiment.dir)
    wandb.finish()
    (picture,) = (files / "media" / "images" / "selection").glob("picture_*.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    (table,) = (files / "media" / "table" / "selection").glob("table_*.table.json")
    found = json.loads(table.read_text())
    rows = [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]
    assert [(row["file"], row["accuracy"]) for row in rows if row["chosen"]] == [chosen_row(folder)]
    # offline an artifact is kept in the run's log, which only W&B's server reads; tables are artifacts, too
    (artifact,) = (artifact for artifact in given if artifact.type == "harvest")
    assert (
        set(artifact.manifest.entries)
        == {path.name for path in folder.iterdir()}
        >= {"manifest.json", "selection.json"}
    )


def test_mlflow_in_a_local_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger("e", tracking_uri=f"file:{tmp_path / 'store'}")
    folder = run(tmp_path, logger, as_artifact=True)
    root = tmp_path / "store" / str(logger.experiment_id) / str(logger.run_id) / "artifacts"
    assert (root / f"{PICTURE}.png").read_bytes()[:4] == b"\x89PNG"
    name, accuracy = chosen_row(folder)
    (line,) = (line for line in (root / f"{TABLE}.md").read_text().splitlines() if line.endswith("| True |"))
    assert name in line and str(accuracy) in line
    kept = {path.name: path.read_bytes() for path in (root / "harvest").iterdir()}
    assert kept == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_logger_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a warning, and the choice stands."""
    logger = TensorBoardLogger(tmp_path, name="l")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logger.experiment, "add_image", fail)
    with pytest.warns(
        UserWarning, match=r"selection/picture was not given to TensorBoardLogger: OSError: .*No space left"
    ):
        folder = run(tmp_path, logger)
    assert chosen_row(folder)


def test_loggers_without_a_place(tmp_path: Path) -> None:
    """Numbers alone go to CSV; an artifact that nobody keeps is an error before training."""
    logger = CSVLogger(tmp_path, name="l")
    run(tmp_path, logger)
    assert "selection/score" in (Path(logger.log_dir) / "metrics.csv").read_text()
    other = tmp_path / "other"
    for kept, message in (
        (
            CSVLogger(other),
            r"none of the Trainer's loggers \(CSVLogger\) keeps artifacts\. Give it a WandbLogger or an",
        ),
        (False, r"loggers \(it has none\) keeps artifacts"),
    ):
        with pytest.raises(ArgumentError, match=message):
            run(other, kept, as_artifact=True)
    harvester = CheckpointHarvester(dirpath="memory://harvest", as_artifact=True)
    with pytest.raises(ArgumentError, match=r"memory://harvest is none\. Leave as_artifact out, or give a path"):
        make_trainer(other, harvester, max_epochs=1, logger=CSVLogger(other)).fit(Project(), DigitsData())
    assert not (other / "harvest").exists()
