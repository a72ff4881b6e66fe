from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_ckptkd import ArgumentError, SnapshotStore
from lightning_ckptkd.commands.cli import main
from lightning_ckptkd.commands.run import run
from lightning_ckptkd.losses import DKDLoss
from lightning_ckptkd.snapshots import Selection
from tests.projects import DigitsData, Project, make_trainer

COMMANDS = ("fit", "validate", "test", "predict", "distill", "select", "harvest", "export")
NETWORK = {"class_path": "lightning_ckptkd.zoo.CIFARResNet"}
TEACHER = {**NETWORK, "init_args": {"depth": 8, "num_classes": 10, "width": 4, "in_channels": 1}}
STUDENT = {**NETWORK, "init_args": {"depth": 8, "num_classes": 10, "width": 2, "in_channels": 1}}
DATA = {"class_path": "lightning_ckptkd.zoo.DigitsDataModule", "init_args": {"train_size": 128, "val_size": 100}}


def config(root: Path, name: str, model: dict[str, Any], **trainer: Any) -> str:
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(root), "name": name}}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    document = {
        "seed_everything": 0,
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "logger": logger, **quiet, **trainer},
        "model": model,
        "data": DATA,
    }
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run of ``ckptkd fit`` with both callbacks leaves behind."""
    root = tmp_path_factory.mktemp("cli")
    callbacks = [
        {"class_path": "lightning_ckptkd.CheckpointHarvester", "init_args": {"submodule": "network"}},
        {"class_path": "lightning_ckptkd.MISelector", "init_args": {"num_teachers": 1}},
    ]
    model = {"class_path": "lightning_ckptkd.zoo.Classifier", "init_args": {"network": TEACHER}}
    main(["fit", "--config", config(root, "fit", model, callbacks=callbacks)])
    return root / "fit" / "version_0"


@pytest.fixture
def distill_config(fitted: Path, tmp_path: Path) -> str:
    model = {"init_args": {"student": STUDENT, "teacher": TEACHER, "snapshots": str(fitted / "snapshots")}}
    return config(tmp_path, "distill", {"class_path": "lightning_ckptkd.DistillationModule", **model})


def test_losses_and_schedules_in_yaml(distill_config: str, fitted: Path) -> None:
    words = ["--model.kd_loss=lightning_ckptkd.losses.DKDLoss", "--model.kd_loss.beta=2"]
    words += ["--model.schedule=lightning_ckptkd.teachers.Route", "--model.schedule.stages={0: 1}"]
    module = main(["distill", "--config", distill_config, "--model.choice=[0, 1]", *words]).model
    assert isinstance(module.kd_loss, DKDLoss) and module.kd_loss.beta == 2
    assert module.panel.schedule.stages == {0: 1}
    by_function = ["--model.kd_loss=torch.nn.functional.mse_loss"]
    with pytest.raises(SystemExit) as printed:
        main(["distill", "--config", distill_config, *by_function, "--print_config"])
    assert printed.value.code == 0


def test_several_harvests_in_yaml(distill_config: str, fitted: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(fitted / "snapshots", other)
    harvests = [f"--model.snapshots={json.dumps([str(fitted / 'snapshots'), str(other)])}", "--model.choice=full"]
    for teacher in ([], [f"--model.teacher={json.dumps([TEACHER, TEACHER])}"]):
        module = main(["distill", "--config", distill_config, *harvests, *teacher, "--trainer.max_epochs=1"]).model
        assert [name.split(": ")[0] for name in module.teachers.names] == [str(fitted / "snapshots"), str(other)]


def test_fit_in_yaml(fitted: Path) -> None:
    store = SnapshotStore.open(fitted / "snapshots")
    assert [snapshot.epoch for snapshot in store.snapshots] == [0, 1]
    assert len(Selection.read(store).chosen) == 1
    assert store.manifest.source["class_path"] == "lightning_ckptkd.zoo.classifier.Classifier"


@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")  # each run has a logger folder of its own
def test_distill_validate_test_predict_and_resume(distill_config: str, tmp_path: Path) -> None:
    cli = main(["distill", "--config", distill_config])
    assert type(cli.model).__name__ == "DistillationModule"
    assert cli.trainer.current_epoch == 2
    checkpoint = str(next((tmp_path / "distill" / "version_0" / "checkpoints").iterdir()))
    accuracy = float(cli.trainer.callback_metrics["val_acc"])
    validated = main(["validate", "--config", distill_config, "--ckpt_path", checkpoint])
    assert float(validated.trainer.callback_metrics["val_acc"]) == accuracy
    assert "test_acc" in main(["test", "--config", distill_config, "--ckpt_path", checkpoint]).trainer.callback_metrics
    main(["predict", "--config", distill_config, "--ckpt_path", checkpoint])
    words = ["--trainer.max_epochs=3", "--ckpt_path", checkpoint, "--model.alpha=0.9"]
    resumed = main(["distill", "--config", distill_config, *words])
    assert resumed.trainer.current_epoch == 3
    assert resumed.model.alpha == 0.9, "what was given overrules the checkpoint's hyper-parameters"


def test_a_config_that_a_run_wrote_reruns_it(fitted: Path, distill_config: str, tmp_path: Path) -> None:
    again = main(["fit", "--config", str(fitted / "config.yaml"), f"--trainer.logger.save_dir={tmp_path}"])
    first, second = SnapshotStore.open(fitted / "snapshots"), SnapshotStore.open(tmp_path / "fit/version_0/snapshots")
    assert [s.sha256 for s in first.snapshots] == [s.sha256 for s in second.snapshots]
    # else the teachers' path is found by a time, and the last digits go with it
    one = main(["distill", "--config", distill_config, "--trainer.deterministic=true"])
    two = main(["distill", "--config", str(tmp_path / "distill" / "version_0" / "config.yaml")])
    for a, b in zip(one.model.student.parameters(), two.model.student.parameters(), strict=True):
        assert torch.equal(a, b)
    assert again.trainer.current_epoch == 2


def test_select_on_a_harvest_alone(fitted: Path) -> None:
    folder = fitted / "snapshots"
    at_fit_end = Selection.read(SnapshotStore.open(folder))
    chosen = main(["select", str(folder), "--fit_config", str(fitted / "config.yaml"), "--num_teachers=2"])
    assert len(chosen.chosen) == 2
    assert [c.input_information for c in chosen.candidates] == [c.input_information for c in at_fit_end.candidates]
    again = main(["select", "--config", str(folder / "select.yaml")])
    assert (again.candidates, again.chosen) == (chosen.candidates, chosen.chosen)
    words = ["--model", "lightning_ckptkd.zoo.CIFARResNet", "--model.depth=8", "--model.num_classes=10"]
    words += ["--model.width=4", "--model.in_channels=1", "--data", "DigitsDataModule", "--data.val_size=100"]
    explicit = main(["select", str(folder), *words, "--rule=accuracy", "--data.train_size=128"])
    assert [c.accuracy for c in explicit.candidates] == [c.accuracy for c in chosen.candidates]


def test_a_soup_from_the_command_line_and_yaml(fitted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(fitted / "snapshots", tmp_path / "snapshots"))
    words = ["select", str(folder), "--fit_config", str(fitted / "config.yaml"), "--rule=loss"]
    short = main([*words, "--ensemble", "soup"])
    assert short.settings["ensemble"] == "soup" and short.soup["kind"] == "greedy"
    own = main([*words, "--ensemble=soup", "--ensemble.kind=window", "--ensemble.batch_norm_samples=64"])
    assert own.settings["ensemble"]["kind"] == own.soup["kind"] == "window"
    assert own.soup["batch_norm"]["samples"] == 64 and own.soup["batch_norm"]["of"] == "training"
    again = main(["select", "--config", str(folder / "select.yaml")])
    for key in own.soup:
        assert again.soup[key] == own.soup[key], key
    assert again.chosen == own.chosen
    with pytest.raises(ArgumentError, match="needs a rule that measures"):
        main(["select", str(folder), "--rule=half", "--ensemble=soup"])
    callback = {"class_path": "lightning_ckptkd.MISelector", "init_args": {"ensemble": {"kind": "window", "margin": 2}}}
    harvester = {"class_path": "lightning_ckptkd.CheckpointHarvester", "init_args": {"submodule": "network"}}
    model = {"class_path": "lightning_ckptkd.zoo.Classifier", "init_args": {"network": TEACHER}}
    main(["fit", "--config", config(tmp_path, "fit", model, callbacks=[harvester, callback], max_epochs=2)])
    selection = Selection.read(SnapshotStore.open(tmp_path / "fit" / "version_0" / "snapshots"))
    assert selection.settings["ensemble"]["margin"] == 2 and selection.soup["kind"] == "window"


def test_the_scale_of_logits_in_yaml(distill_config: str) -> None:
    words = ["--model.kd_loss=lightning_ckptkd.losses.KDLoss", "--trainer.max_epochs=1"]
    for scale in ("fitted", "standardised", 2.5):
        module = main(["distill", "--config", distill_config, *words, f"--model.kd_loss.scale={scale}"]).model
        assert module.kd_loss.scale == scale


def test_select_without_a_model(fitted: Path) -> None:
    folder = str(fitted / "snapshots")
    assert main(["select", folder, "--rule=half"]).rule == "half"
    with pytest.raises(ArgumentError, match=r"needs the model that was trained, 'lightning_ckptkd\.zoo"):
        main(["select", folder])
    with pytest.raises(ArgumentError, match="give the folder of a harvest"):
        main(["select"])
    with pytest.raises(ArgumentError, match=r"fit_config='nowhere\.yaml' can't be read"):
        main(["select", folder, "--fit_config=nowhere.yaml"])


def test_harvest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ModelCheckpoint(dirpath=tmp_path / "checkpoints", save_top_k=-1)
    make_trainer(tmp_path, own, max_epochs=2, enable_checkpointing=True).fit(Project(), DigitsData())
    store = main(["harvest", str(tmp_path / "checkpoints")])
    assert str(store.folder) == str(tmp_path / "snapshots")
    assert "2 snapshots in" in capsys.readouterr().out
    assert main(["harvest", "--config", str(tmp_path / "snapshots" / "harvest.yaml")]).snapshots == store.snapshots
    part = main(["harvest", str(tmp_path / "checkpoints"), str(tmp_path / "part"), "--submodule=backbone"])
    assert str(part.folder) == str(tmp_path / "part")
    with pytest.raises(ArgumentError, match=r"give the folder with the \.ckpt files"):
        main(["harvest"])


def test_timm_by_class_path(fitted: Path, tmp_path: Path) -> None:
    """torchvision's functions are in configs/imagenet, which test_configs.py runs."""
    student = {"class_path": "timm.models.resnet.resnet10t", "dict_kwargs": {"num_classes": 10, "in_chans": 1}}
    init = {"student": student, "teacher": TEACHER, "snapshots": str(fitted / "snapshots")}
    model = {"class_path": "lightning_ckptkd.DistillationModule", "init_args": init}
    cli = main(["distill", "--config", config(tmp_path, "timm", model, max_epochs=1)])
    assert cli.trainer.global_step == 2
    assert type(cli.model.student).__module__ == "timm.models.resnet"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_and_print_config(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [command] if command else []
    with pytest.raises(SystemExit) as left:
        main([*words, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "--config" in text
    if not command:
        assert all(name in text for name in COMMANDS)
        return
    assert f"CKPTKD_{command.upper()}__" in text, "its environment variables"
    with pytest.raises(SystemExit) as left:
        main([*words, "--print_config"])
    assert left.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    if command == "distill":
        assert printed["model"]["init_args"]["alpha"] == 0.5


def test_environment_variables(fitted: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CKPTKD_SELECT__SNAPSHOTS", str(fitted / "snapshots"))
    monkeypatch.setenv("CKPTKD_SELECT__RULE", "full")
    assert main(["select"]).rule == "full"
    monkeypatch.setenv("CKPTKD_FIT__TRAINER__MAX_EPOCHS", "1")
    monkeypatch.setenv("CKPTKD_FIT__CONFIG", str(fitted / "config.yaml"))
    assert main(["fit", f"--trainer.logger.save_dir={tmp_path}", "--trainer.callbacks=null"]).trainer.max_epochs == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_shell_completion(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--print_completion", shell])
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS)
    if shell == "bash":
        (tmp_path / "complete").write_text(
            f"{script}\ncomplete_function=$(complete -p ckptkd | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n"
            "COMP_WORDS=(ckptkd select --num) COMP_CWORD=2\n$complete_function\necho ${COMPREPLY[@]}"
        )
        done = subprocess.run(["bash", tmp_path / "complete"], capture_output=True, text=True, check=True, timeout=30)
        assert done.stdout.strip() == "--num_teachers"


def test_one_message_and_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ckptkd", "select", str(tmp_path), "--rule=full"])
    with pytest.raises(SystemExit, match=r"^ckptkd: error: .* has no manifest\.json"):
        run()


def test_the_console_script(fitted: Path) -> None:
    script = Path(sys.executable).with_name("ckptkd")
    words = [script, "select", fitted / "snapshots", "--rule", "spaced", "--num_teachers", "2"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert "2 of 2 snapshots chosen by rule 'spaced'" in done.stdout
    assert "Warning" not in done.stderr
    assert len(json.loads((fitted / "snapshots" / "selection.json").read_text())["chosen"]) == 2
