"""Pictures, tables and folders for those of Lightning's loggers that have a place for them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.trainer.namespaces import is_kind

_QUOTED = 300  # characters of an error, of which some loggers' hold a whole traceback


@rank_zero_only
def log_numbers(loggers: Sequence[Any], name: str, by_step: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    """Give numbers to all of them; every logger of Lightning's has a place for these.

    Args:
        loggers: As for :func:`log_picture`.
        name: Of the numbers together, for the warning.
        by_step: Numbers by name, at each global step.
    """

    def give(logger: Any) -> None:
        for step, numbers in by_step:
            logger.log_metrics(numbers, step)

    _each(loggers, name, give)


@rank_zero_only
def log_picture(loggers: Sequence[Any], name: str, png: bytes, step: int) -> None:
    """Give a picture to TensorBoard, W&B and MLflow; other loggers have no place for one.

    Args:
        loggers: Of a run. One that fails is a warning: what it was to be told is done, and lies on disk.
        name: Of the picture, with a slash between its group and itself.
        png: The file's bytes.
        step: Global step at which it was made.
    """
    import numpy as np
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")

    def give(logger: Any) -> None:
        if is_kind(logger, TensorBoardLogger):
            logger.experiment.add_image(name, np.asarray(image), step, dataformats="HWC")
        elif is_kind(logger, WandbLogger):
            logger.log_image(name, [image])
        elif is_kind(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, image, f"{name}.png")

    _each(loggers, name, give)


@rank_zero_only
def log_table(
    loggers: Sequence[Any], name: str, header: Sequence[str], rows: Sequence[Sequence[Any]], step: int
) -> None:
    """Give a table to them: as text to TensorBoard and MLflow, as a table to W&B.

    Args:
        loggers: As for :func:`log_picture`.
        name: Likewise.
        header: A name for each column.
        rows: Their values; None where there is none.
        step: Likewise.
    """
    cells = [["" if value is None else str(value) for value in row] for row in rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *cells))

    def give(logger: Any) -> None:
        if is_kind(logger, TensorBoardLogger):
            logger.experiment.add_text(name, text, step)
        elif is_kind(logger, WandbLogger):
            logger.log_table(name, columns=list(header), data=[list(row) for row in rows])
        elif is_kind(logger, MLFlowLogger):
            logger.experiment.log_text(logger.run_id, text + "\n", f"{name}.md")

    _each(loggers, name, give)


def check_artifact(loggers: Sequence[Any], folder: str) -> None:
    """Check that a harvest can be given to a logger when it is done.

    Args:
        loggers: Of a run.
        folder: Where the harvest is.

    Raises:
        ArgumentError: If it is behind a URL, or no logger keeps folders.
    """
    if "://" in folder:
        raise ArgumentError(
            f"as_artifact=True gives a folder of this machine to loggers, and {folder} is none. Leave as_artifact out, "
            "or give a path as dirpath."
        )
    if not any(is_kind(logger, WandbLogger, MLFlowLogger) for logger in loggers):
        found = ", ".join(type(logger).__name__ for logger in loggers) or "it has none"
        raise ArgumentError(
            f"as_artifact=True: none of the Trainer's loggers ({found}) keeps artifacts. Give it a WandbLogger or an "
            "MLFlowLogger, or leave as_artifact out."
        )


@rank_zero_only
def log_folder(loggers: Sequence[Any], name: str, path: Path) -> None:
    """Give a folder to those that keep folders, as an artifact.

    Args:
        loggers: As for :func:`log_picture`.
        name: Of the artifact, and its kind.
        path: The folder; all files in it.
    """

    def give(logger: Any) -> None:
        if is_kind(logger, WandbLogger):
            import wandb

            run = logger.experiment
            artifact = wandb.Artifact(f"{name}-{run.id}", type=name)
            artifact.add_dir(str(path))
            run.log_artifact(artifact)
        elif is_kind(logger, MLFlowLogger):
            logger.experiment.log_artifacts(logger.run_id, str(path), name)

    _each(loggers, name, give)


def _each(loggers: Sequence[Any], name: str, give: Callable[[Any], None]) -> None:
    for logger in loggers:
        try:
            give(logger)
        except Exception as error:  # of theirs, of many kinds: a network that is down, a disk that is full
            kind, reason = type(logger).__name__, (str(error).strip() or "no reason given").splitlines()[0][:_QUOTED]
            rank_zero_warn(
                f"{name} was not given to {kind}: {type(error).__name__}: {reason}. It is in the harvest's folder."
            )
