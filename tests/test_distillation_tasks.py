"""Batches, outputs and tasks other than an image with its class, through DistillationModule."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_ckptkd import (
    ArgumentError,
    CheckpointHarvester,
    CkptKDError,
    DistillationModule,
    MISelector,
    TeacherCache,
)
from lightning_ckptkd.commands.cli import main
from lightning_ckptkd.losses import DKDLoss, KDLoss
from lightning_ckptkd.snapshots.seal import sealed
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.multiclass import Multiclass
from lightning_ckptkd.teachers import CachedBatch, Mixup
from tests.pixels import CLASSES, IGNORED, Pixels, PixelsData, Segmenter, pixels
from tests.projects import DigitsData, Project, convolutions, digits, make_trainer, write_distill_config

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


def student() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(convolutions(4), nn.Linear(16, 10))


def small(width: int = 2, classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, classes, 1))


def ready(module: DistillationModule) -> DistillationModule:
    module.setup("fit")
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    return module


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("segmented")
    torch.manual_seed(0)
    make_trainer(root, CheckpointHarvester(root / "harvest"), max_epochs=3).fit(Segmenter(), PixelsData())
    return root / "harvest"


def distil(harvest: Path, **options: Any) -> DistillationModule:
    settings = {"choice": [2, 1], "acceleration": "none", "task": Pixels(), **options}
    return DistillationModule(settings.pop("student", None) or small(), Segmenter(), harvest, **settings)


def test_the_loss_of_pixels_that_have_a_label(segmented: Path) -> None:
    module = ready(distil(segmented, alpha=0.3, temperature=4.0))
    x, y = pixels(0, 16).tensors
    assert module.teachers is not None
    teachers = module.teachers(Batch(x))
    assert teachers.shape == (2, 16, CLASSES, 8, 8)
    p, q = (F.softmax(logits / 4, 1).movedim(1, -1)[y != IGNORED] for logits in (teachers.mean(0), module.student(x)))
    expected = 0.3 * F.cross_entropy(module.student(x), y, ignore_index=IGNORED)
    expected = expected + 0.7 * 16 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(module.training_step((x, y), 0), expected)


def test_pixels_are_learnt_and_logged_as_the_student_has_them(tmp_path: Path, segmented: Path) -> None:
    module = distil(segmented, optimizer=lambda p: torch.optim.Adam(p, lr=5e-2))
    trainer = make_trainer(tmp_path, max_epochs=10)
    trainer.fit(module, PixelsData())
    (result,) = trainer.test(module, PixelsData(), verbose=False)
    assert result.keys() == {"test_loss", "test_acc", "test_agreement", "test_teacher_acc"}
    x, y = pixels(1200, 1264).tensors
    found, consensus = module.eval()(x).argmax(1), module.teachers(Batch(x)).mean(0).argmax(1)
    labelled = y != IGNORED
    assert result["test_acc"] == pytest.approx(float((found == y)[labelled].float().mean()))
    assert result["test_teacher_acc"] == pytest.approx(float((consensus == y)[labelled].float().mean()))
    assert result["test_agreement"] == pytest.approx(float((found == consensus)[labelled].float().mean()))
    assert result["test_acc"] > 0.8


def test_pixels_from_a_cache_and_mixed(tmp_path: Path, segmented: Path) -> None:
    found = []
    for cache in (None, TeacherCache(tmp_path / "cache", dtype="fp32")):
        module = distil(segmented, cache=cache)
        make_trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(module, PixelsData())
        found.append(torch.cat([value.flatten() for value in module.student.state_dict().values()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    mixed = ready(distil(segmented, mix=Mixup(1.0)))
    x, y = pixels(0, 16).tensors
    inputs, pairs = Mixup(1.0)(x, 0, 0, 0)
    plain = ready(distil(segmented))
    losses = [plain.training_step((inputs, targets), 0) for targets in (y, y[pairs.permutation])]
    torch.testing.assert_close(mixed.training_step((x, y), 0), pairs.average(*losses))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("mix", [None, Mixup()])
def test_a_batch_without_a_label_is_no_step(segmented: Path, alpha: float, mix: Any) -> None:
    module = ready(distil(segmented, alpha=alpha, mix=mix))
    x, y = pixels(0, 16).tensors
    loss = module.training_step((x, torch.full_like(y, IGNORED)), 0)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(not bool(parameter.grad.any()) for parameter in module.student.parameters())


def test_evaluating_batches_without_a_label(tmp_path: Path, segmented: Path) -> None:
    x, y = pixels(1200, 1264).tensors
    y[:32] = IGNORED
    module, trainer = distil(segmented), make_trainer(tmp_path)
    (result,) = trainer.test(module, DataLoader(TensorDataset(x, y), 32), verbose=False)
    (half,) = trainer.test(module, DataLoader(TensorDataset(x[32:], y[32:]), 32), verbose=False)
    assert result == pytest.approx(half)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_samples_without_a_label(harvest: Path, alpha: float) -> None:
    """Teachers teach on them all the same; cross-entropy leaves them out, and is 0 where it leaves out all."""
    x, y = digits(0, 32).tensors
    some, none = y.clone(), torch.full_like(y, -1)
    some[::2] = -1
    for labels in (some, none):
        module = ready(DistillationModule(student(), Project(), harvest, choice=[3], alpha=alpha, ignore_index=-1))
        loss, logits = module.training_step((x, labels), 0), module.student(x)
        kept = labels >= 0
        expected = alpha * F.cross_entropy(logits[kept], labels[kept]) if kept.any() else torch.zeros(())
        if alpha < 1:
            expected = expected + (1 - alpha) * KDLoss(5.0)(logits, module.teachers(Batch(x)))
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert all(bool(p.grad.isfinite().all()) for p in module.student.parameters())
        assert any(bool(p.grad.any()) for p in module.student.parameters()) is (alpha < 1 or bool(kept.any()))


def test_a_loss_that_needs_labels_that_are_not_there(harvest: Path) -> None:
    x, y = digits(0, 32).tensors
    y[3] = -1
    module = ready(DistillationModule(student(), Project(), harvest, choice=[3], ignore_index=-1, kd_loss=DKDLoss(2.0)))
    with pytest.raises(ArgumentError, match=r"kd_loss=DKDLoss needs a label for each .* 1 of 32 .*=-1. Give KDLoss"):
        module.training_step((x, y), 0)
    module = ready(DistillationModule(student(), Project(), harvest, choice=[3], ignore_index=-1, kd_loss=KDLoss(2.0)))
    assert bool(module.training_step((x, y), 0).isfinite())


def test_outputs_that_do_not_meet(segmented: Path) -> None:
    x, y = pixels(0, 16).tensors
    half = nn.Sequential(small(), nn.AvgPool2d(2))
    for network, message in (
        (small(classes=4), r"The student has 4 classes and the teachers \(epoch 2 .* have 3. Give the student the"),
        (half, r"Pixels of the student \(Sequential\): \(16, 3, 4, 4\)"),
        (nn.Sequential(small(), nn.Flatten()), r"Pixels of the student \(Sequential\): \(16, 192\)"),
    ):
        with pytest.raises(CkptKDError, match=message):
            ready(distil(segmented, student=network)).training_step((x, y), 0)


def with_task(harvest: Path, task: Any) -> None:
    """What a selection that tells its task leaves behind."""
    MISelector(rule="full").select(harvest, progress=False)
    document = json.loads((harvest / "selection.json").read_text())
    document["settings"]["task"] = task
    (harvest / "selection.json").write_text(json.dumps(sealed(document)))


def test_another_task_than_that_of_the_selection(tmp_path: Path, harvest: Path, segmented: Path) -> None:
    with_task(harvest, {"name": "multilabel", "ignore_index": -100})
    told = r"student reads its targets as 'multiclass', but the teachers of .*harvest were selected by 'multilabel'"
    for task in ("auto", "multiclass"):
        module = DistillationModule(student(), Project(), harvest, task=task)
        with pytest.raises(ArgumentError, match=rf"{told}\. Give DistillationModule\(task='multilabel'\), or select"):
            make_trainer(tmp_path, max_epochs=1).fit(module, DigitsData())
    # nothing was selected by it, or it is the same, or it does not say
    make_trainer(tmp_path, max_epochs=1).fit(
        DistillationModule(student(), Project(), harvest, choice=[1]), DigitsData()
    )
    for task in ({"name": "multiclass"}, None, "multilabel", {"name": 3}):
        with_task(harvest, task)
        make_trainer(tmp_path, max_epochs=1).fit(DistillationModule(student(), Project(), harvest), DigitsData())


# ---- batches


class Masked(Project):
    """Takes its inputs by keyword: what the mask hides is not seen."""

    def forward(self, pixel_values: Tensor, mask: Tensor) -> Tensor:
        return super().forward(pixel_values * mask)


class MaskedStudent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = student()

    def forward(self, pixel_values: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"logits": self.network(pixel_values * mask)}


class Named(Dataset[Any]):
    """Mappings of an image, a mask, a number that is no input, and a label."""

    def __init__(self, size: int = 96) -> None:
        self.images, self.labels = digits(0, size).tensors

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        mask = torch.arange(64).view(1, 8, 8) % (2 + index % 3) > 0
        return {"pixel_values": self.images[index], "mask": mask, "index": index, "labels": self.labels[index]}


def masked(harvest: Path, **options: Any) -> DistillationModule:
    settings = {"choice": [3, 1], "acceleration": "none", **options}
    return DistillationModule(MaskedStudent(), Masked(), harvest, **settings)


def test_a_mask_reaches_student_and_teachers(harvest: Path) -> None:
    module = ready(masked(harvest, alpha=0.0))
    batch = next(iter(DataLoader(Named(), 32)))
    inputs = batch["pixel_values"] * batch["mask"]
    plain = ready(DistillationModule(student(), Project(), harvest, choice=[3, 1], alpha=0.0, acceleration="none"))
    torch.testing.assert_close(module.training_step(batch, 0), plain.training_step((inputs, batch["labels"]), 0))


@pytest.mark.parametrize("acceleration", ["none", "auto"])
def test_mappings_from_a_cache_are_as_live(tmp_path: Path, harvest: Path, acceleration: str) -> None:
    found = []
    for cache in (None, TeacherCache(tmp_path / "cache", dtype="fp32")):
        module = masked(harvest, cache=cache, acceleration=acceleration)
        trainer = make_trainer(tmp_path, max_epochs=2, limit_val_batches=0, deterministic=True)
        trainer.fit(module, DataLoader(Named(), 32))
        found.append(torch.cat([value.flatten().double() for value in module.student.state_dict().values()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    predicted = trainer.predict(module, DataLoader(Named(), 32))
    assert torch.cat(predicted).shape == (96, 10)


def test_the_one_floating_tensor_of_a_mapping_is_mixed(harvest: Path) -> None:
    batch = next(iter(DataLoader(Named(), 32)))
    mixed, pairs = Mixup(1.0)(batch["pixel_values"], 0, 0, 0)
    expected = ready(masked(harvest))
    losses = [
        expected.training_step({**batch, "pixel_values": mixed, "labels": labels}, 0)
        for labels in (batch["labels"], batch["labels"][pairs.permutation])
    ]
    loss = ready(masked(harvest, mix=Mixup(1.0))).training_step(batch, 0)
    torch.testing.assert_close(loss, pairs.average(*losses))
    two = {**batch, "mask": batch["mask"].float()}
    with pytest.raises(
        ArgumentError, match=r"mix=Mixup needs inputs that are one .* 'mask': float32 tensor.*leave mix"
    ):
        ready(masked(harvest, mix=Mixup(1.0))).training_step(two, 0)


@dataclass
class Sample:
    """A batch of its own kind."""

    picture: Tensor
    truth: Tensor


def collate(samples: Any) -> Sample:
    return Sample(*torch.utils.data.default_collate(samples))


def unpack(batch: Sample) -> tuple[Tensor, Tensor]:
    return batch.picture, batch.truth


class Whole(Project):
    def forward(self, batch: Sample) -> Tensor:
        return super().forward(batch.picture)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("how", ["option", "keys", "subclass", "whole"])
def test_what_is_what_in_a_batch(tmp_path: Path, harvest: Path, how: str, cached: bool) -> None:
    class Own(DistillationModule):
        def unpack_batch(self, batch: Any) -> tuple[Tensor, Tensor]:
            return unpack(batch)

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = student()

        def forward(self, batch: Sample) -> Tensor:
            return self.network(batch.picture)

    keys = {"input_keys": "picture", "target_key": "truth"}
    options: dict[str, Any] = {"option": {"unpack_batch": unpack}, "keys": keys, "whole": keys}.get(how, {})
    kind = Own if how == "subclass" else DistillationModule
    networks = (Student(), Whole()) if how == "whole" else (student(), Project())
    cache = TeacherCache(tmp_path / "cache", dtype="fp32") if cached else None
    module = kind(*networks, harvest, choice=[3], acceleration="none", cache=cache, **options)
    loader = DataLoader(digits(0, 96), 32, collate_fn=collate)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, loader, loader)
    plain = DistillationModule(student(), Project(), harvest, choice=[3], acceleration="none")
    make_trainer(tmp_path, max_epochs=1).fit(plain, DataLoader(digits(0, 96), 32))
    ours, theirs = (list(found.student.state_dict().values()) for found in (module, plain))
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if cached else {"rtol": 0.0, "atol": 0.0}
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **tolerance)
    assert float(trainer.callback_metrics["val_acc"]) > 0
    assert torch.cat(trainer.predict(module, loader)).shape == (96, 10)


def test_three_tensors_are_not_guessed(tmp_path: Path, harvest: Path) -> None:
    x, y = digits(0, 64).tensors
    loader = DataLoader(TensorDataset(x, torch.arange(64), y), 32)
    options: dict[str, Any] = {"choice": [3], "acceleration": "none"}
    with pytest.raises(ArgumentError, match=r"A batch of 3 tensors can't be told .*1: int64 .*target_key"):
        make_trainer(tmp_path, max_epochs=1).fit(DistillationModule(student(), Project(), harvest, **options), loader)
    module = DistillationModule(student(), Project(), harvest, input_keys=0, target_key=2, **options)
    make_trainer(tmp_path, max_epochs=1).fit(module, loader)


def test_a_teachers_output_that_is_not_the_tasks(harvest: Path) -> None:
    class Flat(Project):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).flatten()

    module = ready(DistillationModule(student(), Flat(), harvest, choice=[3], acceleration="none"))
    with pytest.raises(ArgumentError, match=r"shape \(N, K\), but those of a teacher have \(320,\).*with logits_key"):
        module.training_step(digits(0, 32).tensors, 0)


# ---- from the command line


def test_options_and_a_task_of_ones_own_in_yaml(tmp_path: Path, harvest: Path) -> None:
    words = ["--model.input_keys=0", "--model.target_key=1", "--model.ignore_index=-1"]
    words += [f"--trainer.default_root_dir={tmp_path / 'keys'}"]
    module = main(
        ["distill", "--config", str(write_distill_config(tmp_path, harvest, "task: multiclass")), *words]
    ).model
    assert isinstance(module.objective.task, Multiclass) and module.objective.task.ignore_index == -1
    option = "task: {class_path: tests.pixels.Pixels, init_args: {ignore_index: 9}}"
    with pytest.raises(ArgumentError, match=r"Pixels of the student \(Project\): \(32, 10\) and \(32,\)"):
        main(["distill", "--config", str(write_distill_config(tmp_path, harvest, option))])
    option = "unpack_batch: tests.test_distillation_tasks.first_two"
    root = f"--trainer.default_root_dir={tmp_path / 'function'}"
    main(["distill", "--config", str(write_distill_config(tmp_path, harvest, option)), root])
    with pytest.raises(ArgumentError, match=r"task='multiclas' is unknown. Near names: 'multiclass'"):
        DistillationModule(student(), Project(), harvest, task="multiclas")


def first_two(batch: Any) -> tuple[Any, Any]:
    return batch[0], batch[1]


def test_a_cached_batch_is_told_from_the_loaders_own() -> None:
    batch = CachedBatch((torch.zeros(2), torch.ones(2)), torch.zeros(1, 2, 3))
    for use in (lambda: (lambda x, y: x)(*batch), lambda: batch[0], lambda: batch["image"], lambda: list(batch)):
        with pytest.raises(
            ArgumentError, match=r"cache: .* find the loader's own batch at batch\.batch, and the logits"
        ):
            use()
    x, _ = batch.batch
    assert x.shape == (2,) and batch.logits.shape == (1, 2, 3)


def test_a_loss_that_needs_labels_and_gets_shares(harvest: Path) -> None:
    """A collate function that mixes; what the error advises works."""
    x, y = digits(0, 32).tensors
    shares = 0.7 * F.one_hot(y, 10) + 0.3 * F.one_hot(y.roll(1), 10)
    options: dict[str, Any] = {"choice": [3], "task": "multiclass"}
    module = ready(DistillationModule(student(), Project(), harvest, kd_loss=DKDLoss(2.0), **options))
    module.training_step((x, y), 0)
    with pytest.raises(ArgumentError, match=r"kd_loss=DKDLoss splits the classes .* Give KDLoss, DISTLoss or MSELoss"):
        module.training_step((x, shares), 0)
    advised = ready(DistillationModule(student(), Project(), harvest, kd_loss=KDLoss(2.0), **options))
    advised.training_step((x, shares), 0)
