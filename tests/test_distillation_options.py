"""The options of the door: what moved says where it went, and what stands in YAML is what Python gives."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_ckptkd import ArgumentError, DistillationModule
from lightning_ckptkd.commands.cli import main
from lightning_ckptkd.teachers import Acceleration, AllTeachers, RandomTeacher, TeacherPanel
from tests.projects import DigitsData, Project, convolutions, digits, make_trainer, write_distill_config

OPTIONS = (
    "student teacher snapshots choice alpha temperature kd_loss optimizer lr_scheduler cache mix feature_matching "
    "schedule teacher_weights submodule acceleration logits_key student_logits_key task input_keys target_key "
    "unpack_batch ignore_index"
)


def student() -> nn.Module:
    return nn.Sequential(convolutions(4), nn.Linear(16, 10))


class Subclass(DistillationModule):
    def __init__(self, student: nn.Module, **options: Any) -> None:
        super().__init__(student, Project(), **options)


def test_these_are_all() -> None:
    assert " ".join(list(inspect.signature(DistillationModule.__init__).parameters)[1:]) == OPTIONS


MOVED = [
    ("kd_from_epoch", 1, "schedule=lightning_ckptkd.teachers.AllTeachers(from_epoch=1)"),
    ("kd_until_epoch", 9, "schedule=lightning_ckptkd.teachers.AllTeachers(until_epoch=9)"),
    ("bf16_teachers", True, "acceleration=lightning_ckptkd.teachers.Acceleration(bf16=True)"),
]


@pytest.mark.parametrize(("name", "value", "remedy"), MOVED)
def test_an_option_that_moved(harvest: Path, name: str, value: Any, remedy: str) -> None:
    for kind in (DistillationModule, Subclass):
        with pytest.raises(ArgumentError) as told:
            kind(student=student(), snapshots=harvest, **{name: value})
        assert str(told.value).startswith(f"{name} is no option of {kind.__name__} any more: give ")
        assert str(told.value).endswith(f"as in {remedy}.")
    import lightning_ckptkd.teachers

    option, made = remedy.split("=", 1)
    given = eval(made, {"lightning_ckptkd": lightning_ckptkd})  # the remedy as it stands there
    module = DistillationModule(student(), Project(), harvest, **{option: given})
    assert isinstance(given, (AllTeachers, Acceleration)) and given in (
        module.panel.schedule,
        module.panel.acceleration,
    )


REMEDIES = {
    "kd_from_epoch": "schedule: {class_path: lightning_ckptkd.teachers.AllTeachers, init_args: {from_epoch: 1}}",
    "kd_until_epoch": "schedule: {class_path: lightning_ckptkd.teachers.AllTeachers, init_args: {until_epoch: 9}}",
    "bf16_teachers": "acceleration: {class_path: lightning_ckptkd.teachers.Acceleration, init_args: {bf16: true}}",
}


@pytest.mark.parametrize(("name", "value", "remedy"), MOVED)
def test_an_option_that_moved_in_yaml_and_on_the_command_line(
    tmp_path: Path, harvest: Path, name: str, value: Any, remedy: str
) -> None:
    plain = str(write_distill_config(tmp_path, harvest, ""))
    with pytest.raises(ArgumentError, match=f"^{name} is no option of DistillationModule any more: give "):
        main(["distill", "--config", plain, f"--model.{name}={value}"])
    config = str(write_distill_config(tmp_path, harvest, f"{name}: {str(value).lower()}"))
    with pytest.raises(ArgumentError) as told:
        main(["distill", "--config", config])
    assert remedy in str(told.value)
    module = main(["distill", "--config", str(write_distill_config(tmp_path, harvest, REMEDIES[name]))]).model
    schedule = module.panel.schedule
    found = {"kd_from_epoch": schedule.from_epoch, "kd_until_epoch": schedule.until_epoch}
    assert {**found, "bf16_teachers": module.panel.acceleration.bf16}[name] == value


def test_a_name_that_never_was_ends_as_before(
    tmp_path: Path, harvest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["distill", "--config", str(write_distill_config(tmp_path, harvest, "kd_from_epochs: 1"))])
    assert "Option 'kd_from_epochs' is not accepted" in capsys.readouterr().err
    with pytest.raises(TypeError, match="kd_from_epochs"):
        DistillationModule(student(), Project(), harvest, kd_from_epochs=1)


def test_objects_on_the_command_line(tmp_path: Path, harvest: Path) -> None:
    words = ["--model.acceleration=lightning_ckptkd.teachers.Acceleration", "--model.acceleration.mode=none"]
    words += [
        "--model.schedule=lightning_ckptkd.teachers.RandomTeacher",
        "--model.schedule.until_epoch=3",
        "--model.choice=[2, 3]",
    ]
    module = main(["distill", "--config", str(write_distill_config(tmp_path, harvest, "")), *words]).model
    assert module.panel.acceleration == Acceleration("none")
    assert isinstance(module.panel.schedule, RandomTeacher) and module.panel.schedule.until_epoch == 3
    assert DistillationModule(student(), Project(), harvest, acceleration="none").panel.acceleration.mode == "none"


@pytest.mark.parametrize("acceleration", ["none", Acceleration("none")])
def test_a_checkpoint_holds_plain_values(tmp_path: Path, harvest: Path, acceleration: Any) -> None:
    own = ModelCheckpoint(dirpath=tmp_path / "own", filename="{epoch}")
    module = DistillationModule(student(), Project(), harvest, [3], acceleration=acceleration, schedule=AllTeachers())
    make_trainer(tmp_path, own, max_epochs=1, enable_checkpointing=True).fit(module, DigitsData())
    checkpoint = torch.load(tmp_path / "own" / "epoch=0.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"].get("acceleration", "none") == "none"
    networks = {"student": student(), "teacher": Project(), "weights_only": True}
    loaded = DistillationModule.load_from_checkpoint(tmp_path / "own" / "epoch=0.ckpt", **networks)
    x = digits(0, 8).tensors[0]
    assert torch.equal(loaded.eval()(x), module.eval()(x))


def test_a_checkpoint_of_before_the_options_moved(tmp_path: Path, harvest: Path) -> None:
    """Its hyper-parameters have them."""
    own = ModelCheckpoint(dirpath=tmp_path / "own", filename="{epoch}")
    module = DistillationModule(student(), Project(), harvest, [3], acceleration="none")
    make_trainer(tmp_path, own, max_epochs=1, enable_checkpointing=True).fit(module, DigitsData())
    path = tmp_path / "own" / "epoch=0.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    hparams = {key: checkpoint["hyper_parameters"][key] for key in ("snapshots", "choice", "alpha", "temperature")}
    hparams |= {"kd_from_epoch": 1, "kd_until_epoch": None, "teacher_weights": None, "submodule": None}
    hparams |= {"acceleration": "none", "bf16_teachers": False, "logits_key": None, "student_logits_key": None}
    torch.save({**checkpoint, "hyper_parameters": hparams}, path)
    networks = {"student": student(), "teacher": Project(), "weights_only": True}
    loaded = DistillationModule.load_from_checkpoint(path, **networks)
    x = digits(0, 8).tensors[0]
    assert torch.equal(loaded.eval()(x), module.eval()(x))
    resumed = DistillationModule(student(), Project(), harvest, [3], acceleration="none")
    trainer = make_trainer(tmp_path, own, max_epochs=2, enable_checkpointing=True)
    trainer.fit(resumed, DigitsData(), ckpt_path=path)
    assert trainer.global_step == 8


def test_the_panel_is_no_part_of_the_module(harvest: Path) -> None:
    module = DistillationModule(student(), Project(), harvest, [3, 1])
    module.setup("fit")
    assert isinstance(module.panel, TeacherPanel) and not isinstance(module.panel, nn.Module)
    assert len(module.panel) == 2 and module.teachers is module.panel.ensemble
    assert {name.split(".")[0] for name, _ in module.named_modules()} == {"", "student", "projectors"}
    assert all(name.startswith("student.") for name in module.state_dict())
