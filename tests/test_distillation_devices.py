"""DistillationModule under what Lightning offers: FSDP2, precisions, accumulation, clipping, unusual students."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn

from lightning_ckptkd import DistillationModule, SnapshotError, TeacherCache, export_student
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.teachers import RandomTeacher
from tests.processes import sharded_student
from tests.processes.two_ranks import network
from tests.projects import DigitsData, Project, convolutions, digits, make_trainer

REPOSITORY = Path(__file__).parent.parent


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.2, momentum=0.9)


def module_of(harvest: Path, student: nn.Module | None = None, **options: Any) -> DistillationModule:
    torch.manual_seed(0)
    options = {"choice": [1, 3], "acceleration": "none", "optimizer": sgd, **options}
    return DistillationModule(network(8) if student is None else student, Project(), harvest, **options)


def fit(module: DistillationModule, root: Path, *callbacks: Callback, batch_size: int = 32, **options: Any) -> Trainer:
    checkpoints = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    ckpt_path = options.pop("ckpt_path", None)
    settings = {"max_epochs": 1, "limit_val_batches": 0, "enable_checkpointing": checkpoints, **options}
    trainer = make_trainer(root, *callbacks, **settings)
    trainer.fit(module, DigitsData(batch_size=batch_size, shuffle=False), ckpt_path=ckpt_path)
    return trainer


def every_epoch(root: Path) -> ModelCheckpoint:
    return ModelCheckpoint(dirpath=root, filename="{epoch}", save_top_k=-1)


def assert_same(found: Any, expected: Any, **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **{"rtol": 0.0, "atol": 0.0, **tolerance}, msg=name)


@pytest.fixture(scope="module")
def roots(trained: tuple[Path, Project], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """What one process and two under FSDP2 made of the same harvest."""
    roots = {devices: tmp_path_factory.mktemp(f"devices_{devices}") for devices in (1, 2)}
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.processes.sharded_student", "2", str(roots[2]), str(trained[0])]
    log = roots[2] / "log.txt"
    with log.open("w") as out:
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=out, stderr=out, timeout=240)
    assert done.returncode == 0, log.read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sharded_student.main(1, roots[1], trained[0])
    return roots


def found(root: Path, rank: int = 0) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / f"found_{rank}.json").read_text())
    return content


@pytest.mark.parametrize("name", ["fitted", "resumed", "cached"])
def test_a_sharded_student_is_that_of_one_process(roots: dict[int, Path], name: str) -> None:
    one, two = (torch.load(roots[devices] / f"{name}.pt", weights_only=True) for devices in (1, 2))
    assert_same(two, one, atol=1e-5)
    network(8).load_state_dict(two)
    tested = [found(roots[devices])["tested"] for devices in (1, 2)]
    assert tested[1] == pytest.approx(tested[0], abs=1e-4)


def test_the_student_is_sharded_and_the_teachers_are_whole(roots: dict[int, Path]) -> None:
    alone, *ranks = found(roots[1]), found(roots[2], 0), found(roots[2], 1)
    size = sum(value.numel() for value in network(8).parameters())
    assert (alone["sharded"], alone["local"]) == (0, size)
    assert all(rank["sharded"] == size for rank in ranks)
    assert sum(rank["local"] for rank in ranks) == size
    for rank in ranks:
        assert rank["whole_teachers"]
        assert rank["teachers"] == alone["teachers"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_teachers_are_never_broadcast(roots: dict[int, Path], strategy: str) -> None:
    """Each rank's teachers were made its own before training, weights and buffers, and still are."""
    for rank in (0, 1):
        differences = found(roots[2], rank)[strategy]
        assert len(differences) == 2 * len(Project().state_dict())
        assert differences == pytest.approx([float(rank)] * len(differences), abs=1e-5)


def test_tensor_parallelism_is_refused(roots: dict[int, Path]) -> None:
    for rank in (0, 1):
        message = found(roots[2], rank)["tensor_parallel"]
        assert "tensor_parallel_size=2, but the student is sharded over data_parallel ranks only" in message
        assert "Give data_parallel_size=2 and tensor_parallel_size=1" in message


def test_a_compiled_student_is_sharded_too(roots: dict[int, Path]) -> None:
    plain, compiled = (torch.load(roots[2] / f"{name}.pt", weights_only=True) for name in ("fitted", "compiled"))
    assert_same({name.removeprefix("_orig_mod."): value for name, value in compiled.items()}, plain, atol=1e-6)


def test_checkpoints_of_a_sharded_student(
    roots: dict[int, Path], harvest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = torch.load(roots[2] / "fitted.pt", weights_only=True)
    one_file = roots[2] / "file" / "epoch=0.ckpt"
    options = {"student": network(8), "teacher": Project(), "snapshots": harvest}
    loaded = DistillationModule.load_from_checkpoint(one_file, weights_only=True, **options)
    assert_same(loaded.student.state_dict(), trained)
    assert_same(export_student(one_file, tmp_path / "student.pt"), trained)

    parted = roots[2] / "parted" / "epoch=0.ckpt"
    remedy = f"python -m lightning.fabric.utilities.consolidate_checkpoint {parted}"
    with pytest.raises(SnapshotError, match="is a folder, as sharded checkpoints are") as refused:
        export_student(parted, tmp_path / "parted.safetensors")
    assert f"`{remedy}`" in str(refused.value)
    consolidated = tmp_path / "consolidated.ckpt"
    monkeypatch.setattr(sys, "argv", [*remedy.split()[2:], "--output_file", str(consolidated)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runpy.run_module(remedy.split()[2], run_name="__main__")
    assert_same(export_student(consolidated, tmp_path / "parted.safetensors"), trained)


class Precisions(Callback):
    """The types that teachers compute in."""

    def __init__(self) -> None:
        self.logits: set[torch.dtype] = set()
        self.weights: set[torch.dtype] = set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        teachers: Any = pl_module.teachers
        for member in teachers.members:
            self.weights |= {parameter.dtype for parameter in member.parameters()}
            member.register_forward_hook(lambda _, __, output: self.logits.add(output.dtype))


def train_in(precision: str, module: DistillationModule, root: Path, **options: Any) -> tuple[Precisions, Trainer]:
    seen = Precisions()
    trainer = fit(module, root, seen, precision=precision, **options)
    assert torch.isfinite(trainer.callback_metrics["train_loss"])
    assert all(bool(torch.isfinite(value).all()) for value in module.student.parameters())
    return seen, trainer


@pytest.mark.parametrize(
    ("precision", "weights", "logits"),
    [
        ("32-true", torch.float32, torch.float32),
        ("bf16-mixed", torch.float32, torch.bfloat16),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
    ],
)
def test_precisions(tmp_path: Path, harvest: Path, precision: str, weights: torch.dtype, logits: torch.dtype) -> None:
    """Teachers run in the Trainer's precision, and are again what they were where the student's weights are float32."""
    module = module_of(harvest)
    seen, _ = train_in(precision, module, tmp_path)
    assert seen.weights == {weights} and seen.logits == {logits}
    x = digits(0, 64).tensors[0]
    untouched = module_of(harvest)
    untouched.setup("fit")
    assert module.teachers is not None and untouched.teachers is not None
    for mine, whole in zip(module.teachers.members, untouched.teachers.members, strict=True):
        expected = {name: v.to(weights) if v.is_floating_point() else v for name, v in whole.state_dict().items()}
        assert_same(mine.state_dict(), expected)
    exact = untouched.teachers(Batch(x))
    rounded = module.teachers(Batch(x.to(weights))).float()
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.03 * float(exact.abs().max()))
    if weights == torch.float32:
        assert torch.equal(rounded, exact)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="16-mixed scales the loss on CUDA only")
def test_half_precision(tmp_path: Path, harvest: Path) -> None:
    seen, trainer = train_in("16-mixed", module_of(harvest), tmp_path, accelerator="gpu", devices=1)
    assert seen.weights == {torch.float32} and seen.logits == {torch.float16}
    assert trainer.global_step > 0


def test_a_cache_holds_float32_logits_under_mixed_precision(tmp_path: Path, harvest: Path) -> None:
    module = module_of(harvest, cache=TeacherCache(tmp_path / "cache", dtype="fp32"))
    seen, _ = train_in("bf16-mixed", module, tmp_path)
    assert seen.logits == {torch.float32}


def test_accumulated_half_batches_are_whole_batches(tmp_path: Path, harvest: Path) -> None:
    """The schedule picks by the optimiser's step, so that both halves have the same teacher."""
    students = []
    for batch_size, halves in ((32, 1), (16, 2)):
        module = module_of(harvest, choice=[0, 1, 2, 3], schedule=RandomTeacher(1))
        trainer = fit(module, tmp_path, batch_size=batch_size, accumulate_grad_batches=halves, max_epochs=2)
        assert trainer.global_step == 8
        students.append(module.student.state_dict())
    assert_same(students[1], students[0], atol=1e-6)


@pytest.mark.parametrize("clip", [None, 0.01])
def test_the_gradient_is_clipped(tmp_path: Path, harvest: Path, clip: float | None) -> None:
    """One step of plain SGD with a rate of 1 moves the weights by the gradient's norm."""
    module = module_of(harvest, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    before = nn.utils.parameters_to_vector(module.student.parameters()).detach().clone()
    fit(module, tmp_path, max_steps=1, gradient_clip_val=clip)
    after = nn.utils.parameters_to_vector(module.student.parameters()).detach()
    moved = float((after - before).norm())
    assert moved > 0.1 if clip is None else moved == pytest.approx(clip, rel=1e-3)


class CompiledLate(DistillationModule):
    def configure_model(self) -> None:
        if not hasattr(self.student, "_orig_mod"):
            self.student = torch.compile(self.student, backend="eager")


def uncompiled(harvest: Path) -> DistillationModule:
    return module_of(harvest)


def compiled_before(harvest: Path) -> DistillationModule:
    torch.manual_seed(0)
    return module_of(harvest, torch.compile(network(8), backend="eager"))


def compiled_late(harvest: Path) -> DistillationModule:
    torch.manual_seed(0)
    return CompiledLate(network(8), Project(), harvest, choice=[1, 3], acceleration="none", optimizer=sgd)


@pytest.mark.parametrize("make", [compiled_before, compiled_late])
def test_a_compiled_student(tmp_path: Path, harvest: Path, make: Any) -> None:
    """Its checkpoint is that of the plain student, and each resumes the other's."""
    plain, module = uncompiled(harvest), make(harvest)
    fit(plain, tmp_path, every_epoch(tmp_path / "plain"), max_epochs=2)
    fit(module, tmp_path, every_epoch(tmp_path / "compiled"), max_epochs=2)
    whole = plain.student.state_dict()
    assert all(name.startswith("_orig_mod.") for name in module.student.state_dict())
    checkpoint = torch.load(tmp_path / "compiled" / "epoch=1.ckpt", weights_only=True)
    saved = {name.removeprefix("student."): value for name, value in checkpoint["state_dict"].items()}
    assert_same(saved, whole, atol=1e-6)
    network(8).load_state_dict(saved)
    for made, name in ((make, "plain"), (make, "compiled"), (uncompiled, "compiled")):
        resumed = made(harvest)
        fit(resumed, tmp_path, every_epoch(tmp_path / name), max_epochs=2, ckpt_path=tmp_path / name / "epoch=0.ckpt")
        weights = {name.removeprefix("_orig_mod."): value for name, value in resumed.student.state_dict().items()}
        assert_same(weights, whole, atol=1e-6)
    exported = export_student(tmp_path / "compiled" / "epoch=1.ckpt", tmp_path / "student.safetensors")
    assert_same(exported, saved)


def test_an_average_of_a_compiled_student_resumes(tmp_path: Path, harvest: Path) -> None:
    """The callback keeps weights of its own in checkpoints, and does not take the module for a sharded one."""
    for epochs, ckpt_path in ((1, None), (2, tmp_path / "own" / "epoch=0.ckpt")):
        module = compiled_before(harvest)
        fit(
            module,
            tmp_path,
            EMAWeightAveraging(),
            every_epoch(tmp_path / "own"),
            max_epochs=epochs,
            ckpt_path=ckpt_path,
        )
    averaged = export_student(tmp_path / "own" / "epoch=1.ckpt", tmp_path / "average.pt")
    network(8).load_state_dict(averaged)


class Late(DistillationModule):
    """A student that is made under the Trainer."""

    def __init__(self, teacher: nn.Module, snapshots: str | Path, width: int = 4, **options: Any) -> None:
        super().__init__(nn.Sequential(), teacher, snapshots, **options)
        self.width = width

    def configure_model(self) -> None:
        if not len(self.student):
            self.student = nn.Sequential(convolutions(self.width), nn.Linear(16, 10))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")  # no ModelCheckpoint in a test
def test_a_student_that_is_made_late(tmp_path: Path, harvest: Path) -> None:
    def late(**options: Any) -> Late:
        torch.manual_seed(0)
        return Late(Project(), harvest, choice=[1, 3], acceleration="none", optimizer=sgd, **options)

    def run(name: str, epochs: int, ckpt_path: Path | None = None) -> Late:
        module = late()
        fit(module, tmp_path, every_epoch(tmp_path / name), max_epochs=epochs, ckpt_path=ckpt_path)
        return module

    whole = run("whole", 2)
    run("cut", 1)
    resumed = run("cut", 2, tmp_path / "cut" / "epoch=0.ckpt")
    assert_same(resumed.student.state_dict(), whole.student.state_dict())
    x = digits(0, 16).tensors[0]
    checkpoint = tmp_path / "whole" / "epoch=1.ckpt"
    loaded = Late.load_from_checkpoint(checkpoint, teacher=Project(), snapshots=harvest, weights_only=True)
    assert torch.equal(loaded.eval()(x), whole.eval()(x))
    (tested,) = make_trainer(tmp_path).test(late(), DigitsData(), ckpt_path=checkpoint, verbose=False)
    (expected,) = make_trainer(tmp_path).test(whole, DigitsData(), verbose=False)
    assert tested == expected
    shutil.rmtree(harvest)
    plain = nn.Sequential(convolutions(4), nn.Linear(16, 10))
    plain.load_state_dict(export_student(checkpoint, tmp_path / "student.safetensors"))
    assert torch.equal(plain.eval()(x), loaded(x))
