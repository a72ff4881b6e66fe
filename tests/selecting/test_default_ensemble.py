"""Without ``ensemble``: a soup where a rule measures held-out labels and nothing else is asked for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_ckptkd import (
    ArgumentError,
    DistillationModule,
    MISelector,
    SnapshotError,
    SnapshotStore,
    Soup,
    StudentProxy,
)
from lightning_ckptkd.losses import KDLoss, MSELoss
from lightning_ckptkd.selecting import on_disk
from lightning_ckptkd.selecting.rules import MI
from lightning_ckptkd.snapshots import Selection
from lightning_ckptkd.teachers import AllTeachers, Progressive, RandomTeacher, Route
from tests.projects import DigitsData, digits, make_trainer
from tests.selecting.test_soup import fitted, linear, noisy, probe, write


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_disk, "draw_selection", lambda *_: None)


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise around an optimum, which a soup averages out, and a last snapshot that is over-confident."""
    torch.manual_seed(1)  # fixtures of a module are made before the test's own seed
    optimum = fitted(linear())
    weights = [noisy(optimum, 0.6, seed) for seed in range(5)]
    weights.append({name: 1.2 * value for name, value in noisy(optimum, 0.6, 5).items()})
    return write(tmp_path_factory.mktemp("around") / "h", weights)


@pytest.fixture
def harvested(around: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(around, tmp_path / "h"))


def select(folder: Path, model: nn.Module | None = None, train: Any = None, **options: Any) -> Selection:
    selector = MISelector(**options)
    return selector.select(folder, linear() if model is None else model, probe(), train, progress=False)


@pytest.mark.parametrize("options", [{}, {"rule": "loss"}, {"rule": "accuracy"}, {"ensemble": "soup"}])
def test_a_soup(harvested: Path, options: dict[str, Any]) -> None:
    found = select(harvested, **options)
    assert found.soup["taken"] and len(found.chosen) == 1
    assert found.settings["ensemble"] == Soup().describe() or options.get("ensemble") == "soup"


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"num_teachers": 2}, 2),
        ({"num_teachers": 1}, 1),
        ({"rule": "mcmi"}, 3),
        ({"rule": "spaced"}, 3),
        ({"race": True}, 3),
        ({"ensemble": "top"}, 3),
    ],
)
def test_a_set_where_it_is_asked_for_or_no_soup_can_be_judged(
    harvested: Path, options: dict[str, Any], count: int
) -> None:
    found = select(harvested, **options)
    assert len(found.chosen) == count and not found.soup
    assert found.settings["ensemble"] == "top"


def test_a_proxy_ranks_a_set(harvested: Path) -> None:
    proxy = StudentProxy(linear(), steps=2, candidates=2, batch_size=16)
    found = select(harvested, rule="loss", student_proxy=proxy, train=DataLoader(digits(0, 100), 50))
    assert len(found.chosen) == 3 and not found.soup


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


@pytest.fixture(scope="module")
def around_normed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    optimum = fitted(normed(), steps=30)
    floats = {name: value for name, value in optimum.items() if value.is_floating_point()}
    kept = {name: value for name, value in optimum.items() if "running_var" in name or name not in floats}
    weights = [{**optimum, **noisy(floats, 0.2, seed), **kept} for seed in range(4)]
    return write(tmp_path_factory.mktemp("normed") / "h", weights)


class NoTrainingFiles(DigitsData):
    def train_dataloader(self) -> DataLoader[Any]:
        raise FileNotFoundError("the training images are on another machine")


class Fails:
    """Training data that can't be read."""

    def __iter__(self) -> Iterator[Any]:
        raise OSError("the disk is gone")


def test_a_soup_that_nobody_asked_for_costs_no_choice(around_normed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(around_normed, tmp_path / "h"))
    none = select(folder, normed())
    assert len(none.chosen) == 3 and not none.soup["taken"]
    assert "BatchNorm statistics of a soup need training data (train=)" in none.soup["why"]
    data = NoTrainingFiles()
    gone = MISelector().select(folder, normed(), probe(), datamodule=data, progress=False)
    assert gone.chosen == none.chosen and gone.soup == none.soup
    with pytest.raises(FileNotFoundError, match="another machine"):
        MISelector(ensemble="soup").select(folder, normed(), probe(), datamodule=data, progress=False)
    broken = select(folder, normed(), Fails())
    assert broken.chosen == none.chosen and broken.soup["why"] == "OSError: the disk is gone"
    with pytest.raises(OSError, match="the disk is gone"):
        select(folder, normed(), Fails(), ensemble="soup")
    made = select(folder, normed(), DataLoader(digits(0, 300), 50))
    assert made.soup["taken"] and made.soup["batch_norm"]["of"] == "training"
    one_at_a_time = MISelector(rule="loss", ensemble=Soup(candidates=2), batch_size=1)
    by_one = one_at_a_time.select(folder, normed(), probe(60), DataLoader(digits(0, 60), 50), progress=False)
    assert by_one.soup["steps"][0]["information"] > 1, "one sample has no variance: statistics are of two at a time"


def test_a_training_that_holds_the_harvest_costs_no_choice(harvested: Path) -> None:
    run_id = SnapshotStore.open(harvested).manifest.run_id
    with SnapshotStore.create(harvested, run_id, {}):
        found = select(harvested)
        assert len(found.chosen) == 3 and not found.soup["taken"]
        with pytest.raises(SnapshotError):
            select(harvested, ensemble="soup")
    assert select(harvested).soup["taken"]


def test_a_soup_teaches_at_the_scale_of_the_last_snapshot(harvested: Path) -> None:
    selection = select(harvested)
    last = selection.candidates[-1].temperature
    assert last is not None
    ratio = last / selection.soup["temperature"]
    assert ratio > 2, "the last one is over-confident"

    def scales(**options: Any) -> torch.Tensor | None:
        module = DistillationModule(linear(), linear(), harvested, **options)
        module.setup("fit")
        return module.panel.scales([0], torch.device("cpu"))

    for options in ({}, {"kd_loss": KDLoss(4.0)}, {"kd_loss": KDLoss(scale="fitted")}):
        found = scales(**options)
        assert found is not None and found.tolist() == pytest.approx([ratio])
    for options in ({"kd_loss": KDLoss(scale="none")}, {"kd_loss": MSELoss()}, {"choice": "full"}):
        assert scales(**options) is None
    select(harvested, num_teachers=2)
    assert scales() is None, "snapshots teach as they are"


def test_a_soup_is_not_made_many_times_louder_unasked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    optimum = fitted(linear())
    weights = [noisy(optimum, 0.6, seed) for seed in range(5)]
    weights.append({name: 4 * value for name, value in noisy(optimum, 0.6, 5).items()})
    folder = write(tmp_path / "h", weights)
    assert select(folder).soup["taken"]
    factors = []
    for options in ({}, {"kd_loss": KDLoss(scale="fitted")}):
        module = DistillationModule(linear(), linear(), folder, **options)
        with caplog.at_level("INFO"):
            module.setup("fit")
        factors.append(module.panel.scales([0], torch.device("cpu")))
    assert factors[0] is None and factors[1] is not None and float(factors[1]) > 5
    assert "at most 5 times larger or smaller was tried. scale='fitted' does it all the same" in caplog.text


def test_a_resumed_training_keeps_its_scale(harvested: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    select(harvested)
    checkpoint = tmp_path / "student.ckpt"
    first = DistillationModule(linear(), linear(), harvested, acceleration="none")
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(first, DigitsData(train_size=64))
    trainer.save_checkpoint(checkpoint)
    MISelector(probe_size=280).select(harvested, linear(), probe(), progress=False)
    again = DistillationModule(linear(), linear(), harvested, acceleration="none")
    again.setup("fit")
    device = torch.device("cpu")
    assert not torch.equal(again.panel.scales([0], device), first.panel.scales([0], device))
    with caplog.at_level("INFO"):
        make_trainer(tmp_path, max_epochs=2).fit(again, DigitsData(train_size=64), ckpt_path=checkpoint)
    assert torch.equal(again.panel.scales([0], device), first.panel.scales([0], device))
    assert "logits stay at the scale that the training had" in caplog.text
    other = DistillationModule(linear(), linear(), harvested, acceleration="none", kd_loss=KDLoss(scale="none"))
    make_trainer(tmp_path, max_epochs=2).fit(other, DigitsData(train_size=64), ckpt_path=checkpoint)
    assert other.panel.scales([0], device) is None, "who asks for none gets none"


def test_snapshots_that_teach_as_they_are_do_so_in_a_resumed_training(harvested: Path, tmp_path: Path) -> None:
    select(harvested, num_teachers=2)
    checkpoint = tmp_path / "student.ckpt"
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(DistillationModule(linear(), linear(), harvested, acceleration="none"), DigitsData(train_size=64))
    trainer.save_checkpoint(checkpoint)
    again = DistillationModule(linear(), linear(), harvested, acceleration="none")
    make_trainer(tmp_path, max_epochs=2).fit(again, DigitsData(train_size=64), ckpt_path=checkpoint)
    assert again.panel.scales([0, 1], torch.device("cpu")) is None


@pytest.mark.parametrize("place", ["best", "other"])
def test_a_schedule_of_several_teachers_refuses_a_soup(harvested: Path, place: str) -> None:
    """What the errors advise works; a soup's own epoch, that of its best member, is no snapshot's."""
    found = select(harvested)
    best = next(one.epoch for one in found.candidates if one.file == found.soup["best"]["file"])
    named = best if place == "best" else (best + 1) % 6

    def student(**options: Any) -> DistillationModule:
        return DistillationModule(linear(), linear(), harvested, acceleration="none", **options)

    with pytest.raises(ArgumentError, match=rf"names epochs, but soup-.* teaches.*choice=\[{named}\]\."):
        student(schedule=Route({0: named})).setup("fit")
    student(schedule=Route({0: named}), choice=[named]).setup("fit")
    for schedule in (Progressive(), RandomTeacher()):
        with pytest.raises(ArgumentError, match=r"there is only one .a soup.*num_teachers=3"):
            student(schedule=schedule).setup("fit")
        student(schedule=schedule, choice=[0, 1]).setup("fit")
    student(schedule=AllTeachers(from_epoch=1)).setup("fit")
    select(harvested, num_teachers=3)
    student(schedule=Progressive()).setup("fit")


def test_what_a_soup_is_worth_is_its_own_information(harvested: Path) -> None:
    selection = select(harvested)
    worth = selection.worth
    assert worth is not None and worth.lacks_nats is not None and worth.standard_error is not None
    last = selection.candidates[-1].label_information
    assert last is not None
    assert worth.lacks_nats == pytest.approx(selection.soup["information"] - last)
    assert worth.matters and worth.sentence.endswith("of the soup")
    members = select(harvested, rule=MI(), ensemble="top", num_teachers=1).worth
    assert members is not None and members.lacks_nats is not None
    assert members.lacks_nats < worth.lacks_nats, "it tells more than its best member"
