"""Projects from configs: fitted, selected again by hand, distilled and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from torch import nn

from lightning_ckptkd.commands.cli import main
from tests.real_projects.test_images import SEGMENTED, fcn
from tests.real_projects.test_tables import REGRESSED, mlp
from tests.real_projects.test_transformers import CLASSIFIED, bert
from tests.real_projects.whole_way import Way

HERE = "tests.real_projects"


def text_classifier(size: int = 32) -> nn.Module:
    return bert(size=size)


def segmenter(width: int = 8) -> nn.Module:
    return fcn(width)


def small_regressor() -> nn.Module:
    return mlp(10, 1, 8)


def named(name: str, /, **options: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": options} if options else {"class_path": name}


def write(path: Path, model: dict[str, Any], data: str, **trainer: Any) -> str:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1, "accelerator": "cpu"}
    logger = named("lightning.pytorch.loggers.CSVLogger", save_dir=str(path.parent), name=path.stem)
    settings = {**quiet, "logger": logger, **trainer}
    path.write_text(yaml.safe_dump({"seed_everything": 0, "trainer": settings, "model": model, "data": named(data)}))
    return str(path)


TEXT = f"{HERE}.test_transformers"
IMAGES = f"{HERE}.test_images"
TABLES = f"{HERE}.test_tables"
SAID = {"ignore_index": 255}


@pytest.mark.parametrize(
    ("way", "module", "student", "data", "selector", "words", "options"),
    [
        (
            CLASSIFIED,
            named(f"{TEXT}.Finetuning", network=named(f"{HERE}.test_yaml.text_classifier")),
            named(f"{HERE}.test_yaml.text_classifier", size=16),
            f"{TEXT}.TextData",
            {},
            [],
            {},
        ),
        (
            SEGMENTED,
            named(f"{IMAGES}.Segmentation", network=named(f"{HERE}.test_yaml.segmenter")),
            named(f"{IMAGES}.small_segmenter"),
            f"{IMAGES}.MaskedData",
            SAID,
            ["--ignore_index=255"],
            SAID,
        ),
        (
            REGRESSED,
            named(f"{TABLES}.Regression"),
            named(f"{HERE}.test_yaml.small_regressor"),
            f"{TABLES}.DiabetesData",
            {},
            [],
            {},
        ),
    ],
    ids=["text", "segmentation", "regression"],
)
def test_the_whole_way_from_configs(
    tmp_path: Path,
    way: Way,
    module: dict[str, Any],
    student: dict[str, Any],
    data: str,
    selector: dict[str, Any],
    words: list[str],
    options: dict[str, Any],
) -> None:
    callbacks = [named("lightning_ckptkd.CheckpointHarvester"), named("lightning_ckptkd.MISelector", **selector)]
    main(["fit", "--config", write(tmp_path / "fit.yaml", module, data, max_epochs=way.epochs, callbacks=callbacks)])
    run = tmp_path / "fit" / "version_0"
    first = way.check_selection(run / "snapshots")

    main(["select", str(run / "snapshots"), "--fit_config", str(run / "config.yaml"), "--num_teachers=1", *words])
    again = way.check_selection(run / "snapshots")
    assert len(again["chosen"]) == 1
    assert [entry["score"] for entry in again["snapshots"]] == [entry["score"] for entry in first["snapshots"]]

    distilled = named(
        "lightning_ckptkd.DistillationModule",
        student=student,
        teacher=module,
        snapshots=str(run / "snapshots"),
        **options,
    )
    cli = main(["distill", "--config", write(tmp_path / "distill.yaml", distilled, data, max_epochs=1)])
    logged = float(cli.trainer.callback_metrics[way.metric])
    (checkpoint,) = (tmp_path / "distill" / "version_0").rglob("*.ckpt")
    main(["export", str(checkpoint), str(tmp_path / "student.safetensors")])
    network = way.student()
    network.load_state_dict(load_file(tmp_path / "student.safetensors"))
    assert way.measure(network, way.data()) == pytest.approx(logged, rel=1e-5, abs=1e-5)
