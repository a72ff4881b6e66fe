"""What the loggers of a run are told of a selection, read back from what they wrote."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from lightning_ckptkd import ArgumentError, CheckpointHarvester, MISelector, SnapshotError
from lightning_ckptkd.trainer.loggers import log_folder, log_picture, log_table
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


def test_a_logger_that_takes_no_number_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice stands, the warning does not say that there is none, and the logger after it is told."""
    full, other = CSVLogger(tmp_path, name="full"), CSVLogger(tmp_path, name="other")
    log = full.log_metrics

    def fail(metrics: dict[str, float], step: int | None = None) -> None:
        if any(key.startswith("selection/") for key in metrics):
            raise OSError("No space left on device\nwith a traceback\nof many lines")
        log(metrics, step)

    monkeypatch.setattr(full, "log_metrics", fail)
    with pytest.warns(UserWarning) as caught:
        folder = run(tmp_path, [full, other])
    (told,) = (str(item.message) for item in caught if "selection" in str(item.message))
    assert told == (
        "selection/numbers was not given to CSVLogger: OSError: No space left on device. It is in the harvest's folder."
    )
    assert chosen_row(folder)
    assert "selection/score" in (Path(other.log_dir) / "metrics.csv").read_text()
    assert "train_loss" in (Path(full.log_dir) / "metrics.csv").read_text()


def test_loggers_without_the_method(tmp_path: Path) -> None:
    """A writer that lacks it is one line; a logger of another kind is left alone."""

    class Numbers(TensorBoardLogger):
        experiment = SimpleNamespace(add_scalar=print)

    class Own(Logger):
        name, version = "own", 0

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None: ...

        def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    png = io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "png")
    for give, method in (
        (lambda logger: log_table([logger], TABLE, ["a"], [[1]], 1), "add_text"),
        (lambda logger: log_picture([logger], PICTURE, png.getvalue(), 1), "add_image"),
    ):
        with pytest.warns(UserWarning, match=rf"not given to Numbers: AttributeError: .* '{method}'\. It is in the"):
            give(Numbers(tmp_path))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            give(Own())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_folder([Own(), Numbers(tmp_path)], "harvest", tmp_path)


def test_wandb_offline_whose_folder_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for the table and one for the picture; the harvest and the choice are where they were."""
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    logger = WandbLogger(project="p", save_dir=tmp_path, offline=True)
    assert Path(logger.experiment.dir).is_dir()
    (tmp_path / "wandb").rename(tmp_path / "elsewhere")
    (tmp_path / "wandb").write_text("no folder")  # as root, rights keep nobody from writing
    with pytest.warns(UserWarning) as caught:
        folder = run(tmp_path, logger, as_artifact=True)
    wandb.finish()
    told = [str(item.message) for item in caught if "not given" in str(item.message)]
    assert [line.split(":")[0] for line in told] == [
        f"{name} was not given to WandbLogger" for name in (TABLE, PICTURE)
    ]
    assert all("\n" not in line and line.endswith("It is in the harvest's folder.") for line in told)
    assert chosen_row(folder) and (folder / "selection.png").exists()


def test_wandb_offline_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B itself goes to the folder for temporary files; a harvest does not follow, and says so before training."""
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").write_text("no folder")
    logger = WandbLogger(project="p", save_dir=tmp_path / "file" / "sub", offline=True)
    trainer = make_trainer(tmp_path, CheckpointHarvester(), max_epochs=1, logger=logger)
    with pytest.raises(SnapshotError, match=r"/file/sub/.* can't be made: Not a directory"):
        trainer.fit(Project(), DigitsData())
    assert trainer.global_step == 0
    wandb.finish()


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
