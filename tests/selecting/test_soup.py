"""One network of many snapshots: who joins, what it is committed as, and where averaging loses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_ckptkd import (
    ArgumentError,
    CheckpointHarvester,
    DistillationModule,
    MISelector,
    SelectionError,
    SnapshotError,
    SnapshotStore,
    Soup,
    StudentProxy,
    TeacherError,
)
from lightning_ckptkd.selecting.logged import tabulate
from lightning_ckptkd.selecting.rules import Loss, RowRule
from lightning_ckptkd.selecting.soup_builder import SoupBuilder
from lightning_ckptkd.snapshots import Selection
from lightning_ckptkd.snapshots.seal import sealed
from lightning_ckptkd.teachers import choose_teachers
from tests.projects import DigitsData, Project, digits, make_trainer

Weights = dict[str, Tensor]


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def perceptron() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


def probe(size: int = 400) -> DataLoader[Any]:
    return DataLoader(digits(1000, 1000 + size), 200)


def fitted(module: nn.Module, steps: int = 60) -> Weights:
    images, labels = digits(0, 1400).tensors  # the probe's among them: an optimum of both
    optimizer = torch.optim.Adam(module.parameters(), 0.03, weight_decay=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(module(images), labels).backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def noisy(weights: Weights, size: float, seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {name: value + size * torch.randn(value.shape, generator=generator) for name, value in weights.items()}


def write(folder: Path, snapshots: Sequence[Weights]) -> Path:
    with SnapshotStore.create(folder, "run", {"submodule": None}) as store:
        for epoch, weights in enumerate(snapshots):
            store.commit(weights, epoch=epoch, global_step=10 * (epoch + 1))
    return folder


@pytest.fixture(autouse=True)
def _without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture takes most of the time of such a small selection; one test draws them."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("lightning_ckptkd.selecting.on_disk.draw_selection", lambda *_: None)


@pytest.fixture
def drawn() -> None:
    """Leave pictures in."""


@pytest.fixture(scope="module")
def optimum() -> Weights:
    torch.manual_seed(1)  # fixtures of a module are made before the test's own seed
    return fitted(linear())


@pytest.fixture(scope="module")
def around(tmp_path_factory: pytest.TempPathFactory, optimum: Weights) -> Path:
    """A harvest of an optimum with independent noise on each snapshot."""
    return write(tmp_path_factory.mktemp("around") / "h", [noisy(optimum, 0.6, seed) for seed in range(6)])


@pytest.fixture
def harvested(around: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(around, tmp_path / "h"))


def select(folder: Path, model: Callable[[], nn.Module] = linear, rule: Any = "loss", **options: Any) -> Selection:
    return MISelector(rule=rule, **options).select(folder, model(), probe(), progress=False)


@pytest.mark.parametrize("rule", ["mi", "loss"])
@pytest.mark.parametrize("kind", ["greedy", "window"])
def test_noise_around_an_optimum_is_averaged_out(
    harvested: Path, kind: str, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    selection = select(harvested, rule=rule, ensemble=Soup(kind=kind))
    soup, store = selection.soup, SnapshotStore.open(harvested)
    (made,) = store.soups
    assert selection.chosen == (made.file,) == (soup["file"],)
    assert choose_teachers(store) == [made]
    assert Selection.read(store) == selection
    assert soup["taken"] and soup["kind"] == kind
    assert len(soup["members"]) == (6 if kind == "window" else len(soup["members"])) >= 3
    assert soup["gain"] > 3 * soup["gain_error"] > 0
    assert soup["gain"] == pytest.approx(soup["information"] - soup["best"]["information"])
    # the weights are the mean of the members' in float64, and the numbers those of that network
    by_file = {snapshot.file: store.load(snapshot) for snapshot in store.snapshots}
    members = [by_file[member.file] for member in made.members]
    assert [member["file"] for member in soup["members"]] == [member.file for member in made.members]
    found, model = store.load(made), linear()
    for name in found:
        expected = torch.stack([weights[name].double() for weights in members]).mean(0)
        assert torch.equal(found[name], expected.float())
    if rule == "loss":
        model.load_state_dict(found)
        images, labels = digits(1000, 1400).tensors
        entropy = torch.special.entr(labels.bincount().double() / 400).sum()
        cost = F.cross_entropy(model(images).detach().double(), labels)
        assert soup["information"] == pytest.approx(float(entropy - cost), rel=1e-5)
    assert made.recipe["weights"] == pytest.approx([1 / len(members)] * len(members))
    header, rows = tabulate(selection)  # for the run's loggers
    told = [dict(zip(header, row, strict=True)) for row in rows]
    assert {row["file"] for row in told if row["chosen"]} == {member.file for member in made.members}
    printed = capsys.readouterr().out
    assert f"soup ({kind}): one network, the mean of epochs" in printed
    assert printed.count("| chosen |") == len(members)
    assert f"{len(members)} of 6 snapshots chosen by rule '{rule}' for a soup on 400 probe samples" in printed


def test_each_step_is_told_and_the_growth_is_beyond_its_error(harvested: Path) -> None:
    steps = select(harvested, ensemble="soup").soup["steps"]
    assert len(steps) == 5
    for step in steps:
        assert step["joined"] == (step["gain"] > step["gain_error"])
    strict = select(harvested, ensemble=Soup(margin=1e6), num_teachers=2)
    assert not strict.soup["taken"]
    assert "no snapshot adds more to the best one than 1e+06 standard errors" in strict.soup["why"]
    assert strict.chosen == select(harvested, num_teachers=2).chosen


def test_options_bound_who_may_join(harvested: Path) -> None:
    near = select(harvested, ensemble=Soup(kind="window", window=3)).soup
    best = next(one for one in select(harvested).candidates if one.rank == 1)
    epochs = sorted(member["epoch"] for member in near["members"])
    assert len(epochs) == 3 and best.epoch in epochs
    assert epochs == list(range(epochs[0], epochs[0] + 3))
    assert near["members"][0]["epoch"] == best.epoch
    assert len(select(harvested, ensemble=Soup(candidates=3)).soup["steps"]) == 2
    assert len(select(harvested, ensemble=Soup(window=4)).soup["steps"]) == 3


def test_two_networks_that_are_only_alike_in_what_they_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hidden units in another order: the same function, whose mean is another."""
    weights = fitted(perceptron(), 100)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    permuted = {**weights, "1.weight": weights["1.weight"][order], "1.bias": weights["1.bias"][order]}
    permuted["3.weight"] = weights["3.weight"][:, order]
    folder = write(tmp_path / "h", [weights, permuted])
    for kind in ("greedy", "window"):
        selection = select(folder, perceptron, ensemble=Soup(kind=kind))
        assert not selection.soup["taken"]
        assert selection.chosen == select(folder, perceptron).chosen
        assert len(selection.chosen) == 2
    assert selection.soup["gain"] < -3 * selection.soup["gain_error"]
    assert "averaging the weights of 2 snapshots loses here" in capsys.readouterr().out
    assert SnapshotStore.open(folder).soups == ()


def test_a_stranger_among_neighbours_is_left_out(tmp_path: Path, optimum: Weights) -> None:
    near = [noisy(optimum, 0.6, seed) for seed in range(4)]
    stranger = {name: -value for name, value in optimum.items()}
    folder = write(tmp_path / "h", [*near, stranger])
    members = select(folder, ensemble="soup").soup["members"]
    assert 4 not in [member["epoch"] for member in members]
    assert len(members) >= 3


def test_soups_are_no_candidates_and_the_same_one_is_not_made_twice(harvested: Path) -> None:
    before = {name: select(harvested, rule=name, ensemble="top").chosen for name in ("full", "half", "spaced", "loss")}
    first = select(harvested, ensemble="soup")
    written = (harvested / first.chosen[0]).stat().st_mtime_ns
    again = select(harvested, ensemble="soup")
    assert (again.chosen, again.soup) == (first.chosen, first.soup)
    assert (harvested / first.chosen[0]).stat().st_mtime_ns == written
    store = SnapshotStore.open(harvested)
    assert len(store.soups) == 1
    for name, chosen in before.items():
        found = select(harvested, rule=name, ensemble="top")
        assert found.chosen == chosen
        assert [one.file for one in found.candidates] == [snapshot.file for snapshot in store.snapshots]
        assert found.soup == {}
    assert [one.epoch for one in choose_teachers(store, "full")] == [5]
    select(harvested, ensemble=Soup(kind="window", window=2))
    assert len(SnapshotStore.open(harvested).soups) == 2
    assert (harvested / first.chosen[0]).exists(), "a choice that is made later deletes none"


@pytest.mark.parametrize("kind", ["greedy", "window"])
def test_making_a_soup_reads_each_file_once(harvested: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, make, reads = SnapshotStore._read_verified, SoupBuilder.make, list[str]()

    def counted(store: SnapshotStore, snapshot: Any) -> bytes:
        reads.append(snapshot.file)
        return read(store, snapshot)

    def within(builder: SoupBuilder, *args: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(SnapshotStore, "_read_verified", counted)
            return make(builder, *args)

    monkeypatch.setattr(SoupBuilder, "make", within)
    select(harvested, ensemble=Soup(kind=kind))
    assert sorted(reads) == [snapshot.file for snapshot in SnapshotStore.open(harvested).snapshots]


def test_a_student_learns_from_a_soup(harvested: Path, drawn: None) -> None:
    selection = select(harvested, ensemble="soup")
    assert (harvested / "selection.png").stat().st_size > 10_000
    weights = SnapshotStore.open(harvested).load(SnapshotStore.open(harvested).soups[0])
    module = DistillationModule(linear(), linear(), harvested, teacher_weights="score", acceleration="none")
    module.setup("fit")
    assert module.teachers is not None
    (name,) = module.teachers.names
    assert name == f"soup of epochs {', '.join(map(str, sorted(m['epoch'] for m in selection.soup['members'])))}"
    assert torch.equal(module.teachers.members[0][1].weight, weights["1.weight"])
    (harvested / selection.chosen[0]).write_bytes(b"other")
    with pytest.raises(SnapshotError, match=r"soup-.*has 5 bytes where the manifest says"):
        DistillationModule(linear(), linear(), harvested).setup("fit")
    assert select(harvested, ensemble="soup").chosen == selection.chosen, "it is made anew"
    DistillationModule(linear(), linear(), harvested).setup("fit")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"file": "../x.safetensors"}, "which the manifest does not have"),
        ({"sha256": "0" * 64}, "which the manifest does not have"),
        ({"file": 3}, "'file' should be a string"),
        ({"members": [{"epoch": 3}]}, "'file' should be a string"),
        ({"temperature": "hot"}, "'temperature' should be a finite number"),
        ({"taken": False}, "which the manifest does not have"),
    ],
)
def test_what_selection_json_says_of_it_is_not_trusted(harvested: Path, change: dict[str, Any], words: str) -> None:
    select(harvested, ensemble="soup")
    path = harvested / "selection.json"
    document = json.loads(path.read_text())
    document["soup"].update(change)
    if isinstance(change.get("file"), str):
        document["chosen"] = [change["file"]]
    path.write_text(json.dumps(sealed(document)))
    with pytest.raises(SnapshotError, match=words):
        Selection.read(SnapshotStore.open(harvested))


class Sharpness(RowRule):
    soup_term = None

    def values(self, logits: Tensor, targets: Tensor) -> Tensor:
        return logits.softmax(1).amax(1)


class OwnLoss(RowRule):
    def values(self, logits: Tensor, targets: Tensor) -> Tensor:
        return -F.cross_entropy(logits, targets, reduction="none")


def test_rules_that_can_judge_a_soup(harvested: Path) -> None:
    for rule in ("full", "mcmi", Sharpness()):
        with pytest.raises(ArgumentError, match="ensemble='soup' needs a rule that measures"):
            MISelector(rule=rule, ensemble="soup")
    own, package = (select(harvested, rule=rule, ensemble="soup") for rule in (OwnLoss(), Loss()))
    assert own.chosen == package.chosen
    assert own.soup["gain"] == pytest.approx(package.soup["gain"], abs=1e-5)
    assert select(harvested, rule="accuracy", ensemble="soup").soup["gain"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "greedi"}, "kind='greedi' of Soup is unknown. Near names: 'greedy'"),
        ({"window": 1}, "window of Soup should be 2 or more, got 1"),
        ({"candidates": 0}, "candidates of Soup should be 2 or more, got 0"),
        ({"batch_norm_samples": 1}, "batch_norm_samples of Soup should be 2 or more, got 1"),
        ({"margin": -1.0}, "margin of Soup should be 0 or more, got -1"),
        ({"margin": float("nan")}, "margin of Soup should be 0 or more, got nan"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError) as error:
        Soup(**options)
    assert words in str(error.value)


def test_students_that_were_tried_say_which_are_the_best(harvested: Path) -> None:
    proxy = StudentProxy(linear(), steps=3, candidates=2, batch_size=16)
    selector = MISelector(rule="loss", ensemble=Soup(kind="window", window=2), student_proxy=proxy)
    training = DataLoader(digits(0, 100), 50)
    selection = selector.select(harvested, linear(), probe(), training, progress=False)
    best = next(one for one in selection.candidates if one.rank == 1)
    assert best.student_information is not None and not selection.proxy["cancelled"]
    assert selection.soup["members"][0]["file"] == best.file


def test_what_selects_by_hand_names_its_options() -> None:
    selector = MISelector(rule=Loss(), ensemble=Soup(kind="window", margin=2), num_teachers=9)
    options = selector._options_in_words()
    assert options == {
        "rule": "loss",
        "ensemble": "soup",
        "ensemble.kind": "window",
        "ensemble.margin": 2,
        "num_teachers": 9,
    }
    assert MISelector(ensemble="soup")._options_in_words() == {"ensemble": "soup"}


def test_near_names_know_it() -> None:
    with pytest.raises(ArgumentError, match="'soup'"):
        MISelector(ensemble="sop")


def test_snapshots_that_do_not_fit_each_other_or_are_not_enough(tmp_path: Path, optimum: Weights) -> None:
    folder = write(tmp_path / "h", [optimum, {**optimum, "1.weight": optimum["1.weight"][:, :63]}])
    with pytest.raises(TeacherError, match="does not fit model=Sequential"):
        select(folder, ensemble="soup")
    bad = noisy(optimum, 0.1, 0)
    bad["1.bias"][0] = float("nan")
    one = select(write(tmp_path / "one", [optimum, bad]), ensemble="soup", num_teachers=1)
    assert not one.soup["taken"] and "two snapshots or more" in one.soup["why"]
    assert len(one.chosen) == 1
    with pytest.raises(SelectionError, match="num_teachers=2"):
        select(tmp_path / "one", ensemble="soup", num_teachers=2)


def test_batch_norm_statistics_are_of_training_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a Trainer, and by hand with and without training data."""
    soup = Soup(kind="window", window=2, batch_norm_samples=100)
    selector = MISelector(ensemble=soup, on_error="raise", rule="loss")
    folder = tmp_path / "h"
    project = Project(lr=0.02)
    make_trainer(tmp_path, CheckpointHarvester(folder), selector, max_epochs=3).fit(project, DigitsData(train_size=320))
    assert selector.selection is not None
    told = selector.selection.soup
    assert told["batch_norm"]["samples"] == 100 and told["batch_norm"]["of"] == "training"
    assert told["kept"] == ["backbone.1.num_batches_tracked"]
    printed = capsys.readouterr().out
    assert "BatchNorm statistics of 100 training samples\n" in printed, "and not a word of BatchNorm's counter"
    by_hand = MISelector(ensemble=soup, rule="loss").select(
        folder, Project(), datamodule=DigitsData(train_size=320), progress=False
    )
    assert by_hand.soup == told
    model = Project()
    with pytest.warns(UserWarning, match="there are no training data, so BatchNorm statistics of the soup are those"):
        alone = MISelector(ensemble=soup, rule="loss").select(folder, model, probe(), progress=False)
    assert alone.soup["batch_norm"]["of"] == "probe" and alone.soup["batch_norm"]["samples"] == 400
    assert model.backbone[1].num_batches_tracked == 0, "the module comes back as it was"
    assert model.backbone[0].weight.stride() == Project().backbone[0].weight.stride(), "and lies as it lay"
    few = MISelector(ensemble=Soup(kind="window", window=2), rule="loss").select(
        folder, Project(), probe(), DataLoader(digits(0, 60), 64), progress=False
    )
    assert few.soup["batch_norm"]["samples"] == 60


def test_statistics_of_a_soup_are_those_of_its_own_features(tmp_path: Path) -> None:
    """Snapshots whose statistics are off to either side, and weights noisy: the soup has neither fault."""

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))

    weights = fitted(network(), 80)
    snapshots = []
    for seed, shift in enumerate((1.0, -0.5)):
        matrices = noisy({name: value for name, value in weights.items() if value.dim() == 2}, 0.1, seed)
        snapshots.append({**weights, **matrices, "2.running_mean": weights["2.running_mean"] + shift})
    folder = write(tmp_path / "h", snapshots)
    training, soup = DataLoader(digits(0, 500), 100), Soup(kind="window", batch_norm_samples=500)
    selection = MISelector(rule="loss", ensemble=soup).select(folder, network(), probe(), training, progress=False)
    assert selection.soup["taken"]
    store, model = SnapshotStore.open(folder), network()
    found = store.load(store.soups[0])
    model.load_state_dict(found)
    features = model.eval()[:2](digits(0, 500).tensors[0]).detach()
    torch.testing.assert_close(found["2.running_mean"], features.mean(0), rtol=1e-4, atol=1e-4)
    assert found["2.num_batches_tracked"] == 80
    images, labels = digits(1000, 1400).tensors
    entropy = torch.special.entr(labels.bincount().double() / 400).sum()
    cost = F.cross_entropy(model(images).detach().double(), labels)
    assert selection.soup["information"] == pytest.approx(float(entropy - cost), rel=1e-5), "what is kept was measured"
    frozen = write(tmp_path / "frozen", [{**one, "2.running_mean": weights["2.running_mean"]} for one in snapshots])
    kept = MISelector(rule="loss", ensemble=soup).select(frozen, network(), probe(), training, progress=False).soup
    assert kept["batch_norm"] is None, "statistics that no training changed are no training's"
