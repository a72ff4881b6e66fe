"""The scale of teachers' logits: by fitted temperatures of a selection, by number, standardised; in each task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_ckptkd import (
    ArgumentError,
    DistillationModule,
    MISelector,
    SnapshotError,
    SnapshotStore,
    TeacherCache,
    TeacherError,
)
from lightning_ckptkd.information.temperature import fitted_temperature
from lightning_ckptkd.losses import KDLoss, MSELoss
from lightning_ckptkd.snapshots.seal import sealed
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.infer import make_task
from tests.projects import DigitsData, Project, convolutions, digits, make_trainer

Scale = float | str


def student() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(convolutions(4), nn.Linear(16, 10))


@pytest.fixture
def selected(harvest: Path) -> Path:
    MISelector(rule="loss").select(harvest, Project(), DataLoader(digits(1000, 1200), 64), progress=False)
    return harvest


def distil(folder: Path, scale: Scale, **options: Any) -> DistillationModule:
    settings = {"choice": [2, 0], "acceleration": "none", "alpha": 0.0, **options}
    module = DistillationModule(student(), Project(), folder, kd_loss=KDLoss(3.0, scale=scale), **settings)
    module.setup("fit")
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    return module


def kd(student: Tensor, teacher: Tensor, temperature: float = 3.0) -> Tensor:
    p, q = ((logits / temperature).log_softmax(-1) for logits in (teacher, student))
    return temperature**2 * F.kl_div(q, p, log_target=True, reduction="batchmean")


def test_temperatures_of_a_selection_are_those_of_its_logits(selected: Path) -> None:
    store = SnapshotStore.open(selected)
    images, labels = digits(1000, 1200).tensors
    for snapshot, candidate in zip(
        store.snapshots, json.loads((selected / "selection.json").read_text())["snapshots"], strict=True
    ):
        project = Project().eval()
        project.load_state_dict(store.load(snapshot))
        assert candidate["temperature"] == pytest.approx(fitted_temperature(project(images).detach(), labels), rel=1e-3)


def test_fitted_brings_each_teacher_to_the_last_snapshots_temperature(selected: Path) -> None:
    module = distil(selected, "fitted")
    assert module.teachers is not None and module.panel.scales([0, 1], module.device) is not None
    images, labels = digits(0, 64).tensors
    heldout, truth = digits(1000, 1200).tensors
    scales = module.panel.scales([0, 1], module.device)
    last = Project().eval()
    store = SnapshotStore.open(selected)
    last.load_state_dict(store.load(store.snapshots[-1]))
    wanted = fitted_temperature(last(heldout).detach(), truth)
    for scale, logits in zip(scales, module.teachers(Batch(heldout)), strict=True):
        assert fitted_temperature(scale * logits, truth) == pytest.approx(wanted, rel=1e-2)
    assert abs(float(scales[1]) - 1) > 0.02, "an early snapshot has another temperature"
    teacher = (scales[:, None, None] * module.teachers(Batch(images))).mean(0)
    torch.testing.assert_close(module.training_step((images, labels), 0), kd(module.student(images), teacher))
    alone = distil(selected, "fitted", choice="full")
    assert alone.panel.scales([0], alone.device).tolist() == [1.0]
    torch.testing.assert_close(module.panel.scales([1], module.device), scales[1:])


@pytest.mark.parametrize("scale", ["fitted", "standardised", 2.5])
def test_cached_logits_teach_as_live_ones(tmp_path: Path, selected: Path, scale: Scale) -> None:
    found = []
    for cache in (None, TeacherCache(tmp_path / "cache", dtype="fp32")):
        torch.manual_seed(0)
        module = distil(selected, scale, cache=cache)
        make_trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(module, DigitsData(train_size=64, shuffle=False))
        found.append(torch.cat([value.flatten().float() for value in module.student.state_dict().values()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_without_temperatures(harvest: Path) -> None:
    with pytest.raises(SnapshotError, match=r"selection.json"):
        distil(harvest, "fitted")
    MISelector(rule="full").select(harvest, progress=False)
    with pytest.raises(TeacherError, match="needs the fitted temperatures of epoch 2") as error:
        distil(harvest, "fitted")
    assert "scale='standardised' or a number" in str(error.value)
    distil(harvest, "standardised")
    distil(harvest, 2.0)
    MISelector(rule="loss").select(harvest, Project(), DataLoader(digits(1000, 1200), 64), progress=False)
    distil(harvest, "fitted")
    path = harvest / "selection.json"
    document = json.loads(path.read_text())
    document["snapshots"][2]["temperature"] = 0.0625
    path.write_text(json.dumps(sealed(document)))
    with pytest.raises(TeacherError, match="on which the best one is not to be found"):
        distil(harvest, "fitted")


CASES: list[tuple[str, tuple[int, ...], Any]] = [
    ("multiclass", (6, 5), torch.arange(6) % 5),
    ("soft_multiclass", (6, 5), torch.full((6, 5), 0.2)),
    ("dense", (2, 4, 3, 3), torch.arange(18).reshape(2, 3, 3) % 4),
    ("tokens", (2, 7, 4), torch.arange(14).reshape(2, 7) % 4),
    ("causal_lm", (2, 7, 4), torch.arange(14).reshape(2, 7) % 4),
    ("binary", (6,), torch.arange(6) % 2),
    ("multilabel", (6, 3), torch.arange(18).reshape(6, 3) % 2),
]


@pytest.mark.parametrize("scale", ["fitted", "standardised", 2.0])
@pytest.mark.parametrize(("name", "shape", "targets"), CASES, ids=[case[0] for case in CASES])
def test_each_task_of_classes(name: str, shape: tuple[int, ...], targets: Tensor, scale: Scale) -> None:
    task = make_task(name, -100)
    assert task is not None
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    rows, loss = task.rows(logits[0], logits[1:], targets), KDLoss(3.0, scale=scale)
    if scale == "standardised" and name in ("binary", "multilabel"):
        with pytest.raises(ArgumentError, match=f"a label of task={name} has two"):
            task.check_kd_loss(loss)
        for other in (KDLoss(scale="fitted"), KDLoss(scale=0.5), KDLoss()):
            task.check_kd_loss(other)
        return
    task.check_kd_loss(loss)
    scales = torch.tensor([0.5, 3.0]) if scale == "fitted" else None
    found = task.distilled(loss, rows, None, *(() if scales is None else (scales,)))
    factors = torch.tensor([0.5, 3.0]) if scales is not None else torch.full((2,), 2.0 if scale == 2.0 else 1.0)
    own, teacher = task.flatten(logits[0]), (factors[:, None, None] * task.flatten(logits[1:], 1)).mean(0)
    if scale == "standardised":
        own, teacher = ((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, correction=0) for x in (own, teacher))
    torch.testing.assert_close(found, kd(own, teacher))


@pytest.mark.parametrize("scale", ["fitted", "standardised", 2.0])
def test_numbers_have_no_scale(harvest: Path, scale: Scale) -> None:
    with pytest.raises(ArgumentError, match="outputs of task=regression are the numbers themselves"):
        DistillationModule(student(), Project(), harvest, kd_loss=MSELoss(scale=scale), task="regression")
    DistillationModule(student(), Project(), harvest, kd_loss=MSELoss(), task="regression")
