"""Every config is run for a few batches: fit with harvest and selection, then distil from what it chose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_ckptkd import SnapshotStore
from lightning_ckptkd.commands.cli import main
from tests.projects import write_fashion_mnist

CONFIGS = Path(__file__).parents[2] / "configs"
PAIRS = sorted(path.parent.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("fit.yaml"))


def shortened(path: Path, root: Path, images: Path) -> str:
    """The config with its own networks, callbacks and transforms, on few images and for one epoch."""
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    trainer, data = document["trainer"], document["data"]
    trainer.update(
        accelerator="cpu", max_epochs=1, limit_train_batches=2, limit_val_batches=2, log_every_n_steps=1,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer["logger"]["init_args"]["save_dir"] = str(root)
    for callback in trainer.get("callbacks", []):
        if "every_n_epochs" in callback.get("init_args", {}):
            callback["init_args"]["every_n_epochs"] = 1
        if callback["class_path"] == "lightning_ckptkd.MISelector":
            callback.setdefault("init_args", {})["probe_size"] = 50
    kind = data["class_path"].rsplit(".", 1)[1]
    data["init_args"].update(batch_size=4)
    if kind == "FashionMNISTDataModule":
        data["init_args"].update(root=str(images / "fashion"), num_workers=0, train_size=64, val_size=60)
    elif kind != "DigitsDataModule":
        data["init_args"].update(root=str(images), num_workers=0)
    if data["init_args"].get("image_size", 0) > 64:
        data["init_args"].update(image_size=64)  # the networks take any size, in a twelfth of the time
    if kind == "CIFAR100DataModule":
        data["init_args"].update(val_size=60, test_size=20)
    if path.name == "distill.yaml":
        snapshots = document["model"]["init_args"]["snapshots"]
        document["model"]["init_args"]["snapshots"] = str(root / Path(snapshots).relative_to("logs"))
    short = root / path.name
    short.write_text(yaml.safe_dump(document))
    return str(short)


@pytest.mark.filterwarnings("ignore:Units .* of F are almost always the same")  # rectified ones, on 50 samples
@pytest.mark.filterwarnings("ignore:The probe set has no sample")  # a few classes stand in for the data sets' own
@pytest.mark.parametrize("pair", PAIRS)
def test_fit_and_distill(pair: str, tmp_path: Path, image_folder: Path) -> None:
    images = image_folder
    if pair == "fashion_mnist":
        images = tmp_path
        write_fashion_mnist(images / "fashion")
    main(["fit", "--config", shortened(CONFIGS / pair / "fit.yaml", tmp_path, images)])
    name = yaml.safe_load((CONFIGS / pair / "fit.yaml").read_text())["trainer"]["logger"]["init_args"]["name"]
    folder = tmp_path / name / "version_0" / "snapshots"
    assert len(SnapshotStore.open(folder).snapshots) == 1
    assert (folder / "selection.json").exists()
    cli = main(["distill", "--config", shortened(CONFIGS / pair / "distill.yaml", tmp_path, images)])
    assert cli.trainer.global_step == 2
    assert len(cli.model.teachers) == 1


def test_the_papers_settings() -> None:
    for pair in (pair for pair in PAIRS if pair.startswith("cifar100")):
        for name in ("fit", "distill"):
            document = yaml.safe_load((CONFIGS / pair / f"{name}.yaml").read_text())
            init = document["model"]["init_args"]
            assert document["trainer"]["max_epochs"] == 200
            assert document["data"]["init_args"]["batch_size"] == 128
            sgd = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
            assert init["optimizer"] == {"class_path": "torch.optim.SGD", "init_args": sgd}
            assert init["lr_scheduler"]["init_args"] == {"step_size": 60, "gamma": 0.1}
        assert (init["alpha"], init["temperature"]) == (0.5, 5.0)
    assert len(PAIRS) == 8
    assert len(list(CONFIGS.rglob("*.yaml"))) == 2 * len(PAIRS)
