from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_ckptkd import (
    ArgumentError,
    CheckpointHarvester,
    CkptKDError,
    MISelector,
    SnapshotError,
    SnapshotStore,
    StudentProxy,
)
from lightning_ckptkd.commands.cli import main
from lightning_ckptkd.information.folds import assign_folds
from lightning_ckptkd.information.label import head_gains
from lightning_ckptkd.selecting import network_stack, proxy_scorer, proxy_students
from lightning_ckptkd.selecting.network_stack import in_turn
from lightning_ckptkd.selecting.proxy_scorer import ProxyScorer
from lightning_ckptkd.selecting.proxy_students import ProxyLoss, StackedStudents, StudentsInTurn, distil_together
from lightning_ckptkd.selecting.proxy_teachers import ProxyTeachers
from lightning_ckptkd.selecting.training_data import TrainingData
from lightning_ckptkd.snapshots import Selection
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.multiclass import Multiclass
from lightning_ckptkd.tasks.reading import BatchReader
from tests.projects import DigitsData, Project, digits, make_trainer
from tests.selecting.pixels import IGNORED, Pixels, Segmenter, masks, write_harvest


def linear(classes: int = 10) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


def small_proxy(**options: Any) -> StudentProxy:
    return StudentProxy(**{"student": linear(), "steps": 5, "candidates": 3, "batch_size": 16, **options})


def teachers_of(count: int) -> ProxyTeachers:
    """Linear ones, each with weights of its own."""
    states = [network_stack.state_of(make_linear(seed)) for seed in range(count)]
    return ProxyTeachers(linear().eval(), states, None)


def make_linear(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def train() -> DataLoader[Any]:
    return DataLoader(digits(0, 300), 32, shuffle=True)


def probe() -> DataLoader[Any]:
    return DataLoader(digits(1000, 1200), 64)


def select(harvest: Path, proxy: StudentProxy | None = None, loader: Any = None, **options: Any) -> Selection:
    selector = MISelector(student_proxy=proxy or small_proxy(), **{"rule": "accuracy", **options})
    return selector.select(harvest, Project(), probe(), train() if loader is None else loader, progress=False)


def test_the_best_are_ranked_again_by_their_students(harvest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, before = linear(), MISelector().select(harvest, Project(), probe(), progress=False)
    weights = {name: value.clone() for name, value in student.state_dict().items()}
    capsys.readouterr()
    after = select(
        harvest, small_proxy(student=student, steps=40, optimizer=lambda p: torch.optim.SGD(p, lr=0.5)), rule="mi"
    )

    ranks = {c.epoch: c.rank or 0 for c in before.candidates}
    tried = [c for c in after.candidates if c.student_information is not None]
    assert sorted(ranks[c.epoch] for c in tried) == [1, 2, 3]
    (last,) = (c for c in after.candidates if c.student_information is None)
    assert last.rank == 4
    for candidate in tried:
        assert candidate.student_error is not None and 0 < candidate.student_error < 0.3
        assert candidate.student_accuracy is not None and 0.3 < candidate.student_accuracy < 1
    assert len({c.student_information for c in tried}) == 3, "each learnt from a teacher of its own"
    first = min(tried, key=lambda c: c.rank or 0)
    best = max(tried, key=lambda c: c.student_information or 0.0)
    assert (first.student_information or 0) >= (best.student_information or 0) - (best.student_error or 0)
    assert after.chosen == tuple(c.file for c in sorted(after.candidates, key=lambda c: c.rank or 0)[:3])
    assert all(torch.equal(value, weights[name]) for name, value in student.state_dict().items())

    assert after.proxy["parameters"] == 650 and after.proxy["students"] == 3 and after.proxy["seconds"] > 0
    told = capsys.readouterr().out
    assert "student proxy: Sequential, 40 steps of 16 samples from each of 3 snapshots, in" in told
    assert "I(Y;S) nats" in told
    assert Selection.read(SnapshotStore.open(harvest)).proxy == after.proxy


def test_a_student_as_one_would_train_it_by_hand(harvest: Path) -> None:
    proxy = small_proxy(candidates=4, alpha=0.25, temperature=3.0)
    found = select(harvest, proxy, seed=3).candidates[1]
    store, teacher, student = SnapshotStore.open(harvest), Project(), linear()
    teacher.load_state_dict(store.load(store.snapshots[1]))
    teacher.eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(3))
    images, labels = digits(0, 300).tensors
    for step in range(5):
        rows = order[16 * step : 16 * step + 16]
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 5)
        logits, target = student(images[rows]), teacher(images[rows]).detach()
        kd = nn.functional.kl_div((logits / 3).log_softmax(1), (target / 3).softmax(1), reduction="batchmean")
        loss = 0.25 * nn.functional.cross_entropy(logits, labels[rows]) + 0.75 * 9 * kd
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, labels = digits(1000, 1200).tensors
    expected = head_gains(student(images).detach(), labels, assign_folds(200, 5, 3)).mean()
    assert found.student_information == pytest.approx(float(expected), abs=1e-5)


def test_the_same_again_whatever_was_drawn_before(harvest: Path) -> None:
    images = digits(0, 300)

    class Noisy(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 200

        def __getitem__(self, index: int) -> Any:
            image, label = images[index]
            return image + 0.1 * torch.randn_like(image), label

    loader = DataLoader(Noisy(), 32, shuffle=True)
    first = select(harvest, loader=loader)
    (harvest / "scores.json").unlink()
    seed_everything(5, verbose=False)
    assert select(harvest, loader=loader).candidates == first.candidates
    batch = next(TrainingData(loader, BatchReader()).batches(1, 64, 0))
    assert len(batch) == len(batch.inputs) == 64, "whatever the loader's own batches are"


def test_a_few_samples_and_a_stream_are_used_again_and_again() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(digits(0, 20))

    for loader, size in ((DataLoader(digits(0, 20), 8), 32), (DataLoader(Stream(), 10), 10)):
        batches = list(TrainingData(loader, BatchReader()).batches(7, 32, 0))
        assert [len(batch) for batch in batches] == [size] * 7


def test_cancelled_and_taken_up_again(
    harvest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without = MISelector(rule="accuracy").select(harvest, Project(), probe(), progress=False)
    trained: list[str] = []
    real = ProxyScorer._train

    def train_two(self: ProxyScorer, items: Any, bar: Any) -> Any:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.extend(item.snapshot.file for item in items)
        return real(self, items, bar)

    monkeypatch.setattr(ProxyScorer, "_train", train_two)
    monkeypatch.setattr(proxy_scorer, "_MOST_BYTES", 1)  # one after another, in the very steps of one alone
    cancelled = select(harvest)
    assert cancelled.chosen == without.chosen and cancelled.candidates == without.candidates
    assert cancelled.proxy["cancelled"] is True
    assert "cancelled, this is the choice without it" in capsys.readouterr().out
    monkeypatch.setattr(
        ProxyScorer,
        "_train",
        lambda self, items, bar: (trained.extend(item.snapshot.file for item in items), real(self, items, bar))[1],
    )
    resumed = select(harvest)
    assert len(trained) == 3, "two were found"
    assert select(harvest).candidates == resumed.candidates and len(trained) == 3
    (harvest / "scores.json").unlink()
    assert select(harvest).candidates == resumed.candidates and len(trained) == 6
    select(harvest, small_proxy(steps=6))
    select(harvest, small_proxy(student=nn.Sequential(nn.Flatten(), nn.Linear(64, 10))))
    select(harvest, loader=DataLoader(digits(100, 300), 32))
    assert len(trained) == 15, "another budget, other first weights, other samples: other scores"


def test_killed_while_a_student_trains(harvest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise SystemExit(137)

    monkeypatch.setattr(ProxyScorer, "_train", killed)
    with pytest.raises(SystemExit):
        select(harvest)
    document = json.loads((harvest / "selection.json").read_text())
    assert len(document["chosen"]) == 3, "the choice without it stands"


def test_when_fitting_ends(tmp_path: Path) -> None:
    selector = MISelector(rule="accuracy", num_teachers=1, student_proxy=small_proxy(candidates=2))
    project = Project()
    make_trainer(tmp_path, CheckpointHarvester(tmp_path / "h"), selector).fit(project, DigitsData())
    assert selector.selection is not None
    assert sum(c.student_information is not None for c in selector.selection.candidates) == 2
    store = SnapshotStore.open(tmp_path / "h")
    last = store.load(store.snapshots[-1])
    assert all(torch.equal(value, last[name]) for name, value in project.state_dict().items())


@pytest.mark.parametrize("ensemble", ["spaced", "greedy"])
def test_other_ensembles_start_from_the_best(harvest: Path, ensemble: str) -> None:
    selection = select(harvest, rule="mi", ensemble=ensemble, num_teachers=2)
    (best,) = (c for c in selection.candidates if c.rank == 1)
    assert selection.chosen[0] == best.file and len(selection.chosen) == 2


def test_from_the_command_line(harvest: Path, tmp_path: Path) -> None:
    config = tmp_path / "select.yaml"
    config.write_text(
        f"""
        snapshots: {harvest}
        model: tests.projects.Project
        data: tests.projects.DigitsData
        student_proxy:
          student:
            class_path: tests.projects.Project
            init_args: {{channels: 4}}
          steps: 3
          candidates: 2
          optimizer:
            class_path: torch.optim.Adam
            init_args: {{lr: 0.001}}
        rule: accuracy
        """
    )
    selection = main(["select", "--config", str(config), "--device", "cpu"])
    assert selection.proxy["student"] == "Project" and selection.proxy["students"] == 2
    again = main(["select", "--config", str(harvest / "select.yaml")])
    assert again.candidates == selection.candidates


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"student_proxy: steps should be 1 or more, got 0. Leave student_proxy out"),
        ({"candidates": 1}, r"student_proxy: candidates should be 2 or more, got 1"),
        ({"batch_size": 0}, r"student_proxy: batch_size should be 1 or more"),
        ({"alpha": 1.5}, r"student_proxy: alpha should be in \[0, 1\], got 1.5"),
        ({"temperature": 0.0}, r"student_proxy: temperature should be above 0, got 0.0"),
    ],
)
def test_a_budget_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        small_proxy(**options)


def test_a_rule_without_a_score() -> None:
    with pytest.raises(ArgumentError, match=r"student_proxy tries the best by a score, and rule='half' has none"):
        MISelector(rule="half", student_proxy=small_proxy())


def test_a_student_with_other_classes(harvest: Path, tmp_path: Path) -> None:
    wrong = small_proxy(student=linear(7))
    with pytest.raises(
        ArgumentError, match=r"student_proxy: the student gives logits of .*7\).*Give a student with 10"
    ):
        select(harvest, wrong)
    trainer = make_trainer(tmp_path, CheckpointHarvester(tmp_path / "h"), MISelector(student_proxy=wrong))
    with pytest.raises(CkptKDError, match=r"Give a student with 10 classes"):
        trainer.fit(Project(), DigitsData())
    assert trainer.global_step == 0, "told before anything is trained"


def test_one_output_with_or_without_its_dimension() -> None:
    proxy, one = StudentProxy(nn.Linear(3, 1)), torch.randn(5, 1)
    for student, teacher in itertools.product((one, one[:, 0]), repeat=2):
        proxy.check_logits(student, teacher)
    for other in (torch.randn(5, 2), torch.randn(5, 1, 1), torch.randn(4)):
        with pytest.raises(ArgumentError, match="student_proxy: the student gives logits of shape"):
            proxy.check_logits(one, other)


def test_a_student_that_diverges(harvest: Path) -> None:
    hot = small_proxy(steps=20, optimizer=lambda p: torch.optim.SGD(p, lr=3e38))
    with pytest.raises(ArgumentError, match=r"student_proxy: after 20 steps with epoch=.*lower learning rate"):
        select(harvest, hot)


def test_without_training_data(harvest: Path) -> None:
    with pytest.raises(ArgumentError, match=r"student_proxy trains students and needs training data"):
        MISelector(student_proxy=small_proxy()).select(harvest, Project(), probe(), progress=False)
    with pytest.raises(ArgumentError, match=r"student_proxy: the training data have no batch"):
        select(harvest, loader=[])


def test_damage_is_met_before_a_student_trains(harvest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    select(harvest)
    file = harvest / SnapshotStore.open(harvest).snapshots[-1].file
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    monkeypatch.setattr(proxy_scorer, "distil_together", None)
    with pytest.raises(SnapshotError, match="SHA-256"):
        select(harvest)


def test_the_learning_rate_falls_to_nothing() -> None:
    rates: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    proxy = small_proxy(steps=4, optimizer=lambda p: Watched(p, lr=1.0))
    batches = [Batch(torch.ones(2, 64), torch.zeros(2, dtype=torch.long))] * 9
    list(distil_together(teachers_of(1), batches, proxy, Multiclass(), "cpu"))
    assert rates == [1.0, 0.75, 0.5, 0.25]


def test_a_task_of_many_rows_a_sample(tmp_path: Path) -> None:
    write_harvest(str(tmp_path))
    torch.manual_seed(2)
    student = Segmenter()
    loader, training = (DataLoader(TensorDataset(*masks(*part)), 30) for part in ((100, 200), (0, 90)))
    proxy = small_proxy(student=student, candidates=2, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    selector = MISelector(rule="loss", task=Pixels(), student_proxy=proxy)
    selection = selector.select(tmp_path, Segmenter(), loader, training, progress=False)
    tried = [c for c in selection.candidates if c.student_information is not None]
    assert len(tried) == 2 and all(0.5 < (c.student_accuracy or 0) <= 1 for c in tried)
    store, teacher = SnapshotStore.open(tmp_path), Segmenter()
    (snapshot,) = (s for s in store.snapshots if s.file == tried[0].file)
    teacher.load_state_dict(store.load(snapshot))
    images, targets = masks(0, 90)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    student = copy.deepcopy(student)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for step in range(5):
        rows = order[16 * step : 16 * step + 16]
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 5)
        kept = targets[rows] != IGNORED
        logits = student(images[rows]).movedim(1, -1)[kept]
        target = teacher(images[rows]).detach().movedim(1, -1)[kept]
        kd = nn.functional.kl_div((logits / 5).log_softmax(1), (target / 5).softmax(1), reduction="batchmean")
        loss = 0.5 * nn.functional.cross_entropy(logits, targets[rows][kept]) + 0.5 * 25 * kd
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, targets = masks(100, 200)
    right = (student(images).argmax(1) == targets)[targets != IGNORED]
    assert tried[0].student_accuracy == pytest.approx(float(right.double().mean()), abs=1e-3)


def by_hand(proxy: StudentProxy, batches: Iterable[Batch], teacher: nn.Module, seed: int) -> dict[str, Tensor]:
    """One candidate alone, as a loop over the batches that draws its random numbers between them."""
    torch.manual_seed(seed)
    student = copy.deepcopy(proxy.student).train()
    optimizer = proxy.optimizer(student.parameters())
    rates = [group["lr"] for group in optimizer.param_groups]
    for step, batch in enumerate(batches):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - step / proxy.steps)
        with torch.no_grad():
            target = teacher(batch.inputs)
        logits = student(batch.inputs)
        kd = nn.functional.kl_div(
            (logits / 5).log_softmax(1), (target / 5).log_softmax(1), reduction="batchmean", log_target=True
        )
        optimizer.zero_grad()
        (0.5 * (nn.functional.cross_entropy(logits, batch.targets, reduction="sum") / 8) + 0.5 * (kd * 25)).backward()
        optimizer.step()
    return student.state_dict()


def noisy_batches(steps: int) -> Iterator[Batch]:
    """Augmented with the numbers that come next."""
    images, labels = digits(0, 8 * steps).tensors
    for step in range(steps):
        rows = slice(8 * step, 8 * step + 8)
        yield Batch(images[rows] + 0.1 * torch.randn(8, *images.shape[1:]), labels[rows])


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 10)),
    "BatchNorm": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    ),
}
OPTIMIZERS: dict[str, Callable[[Iterable[Any]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "AdamW": lambda p: torch.optim.AdamW(
        [{"params": [one], "weight_decay": 0.1 * (one.dim() > 1)} for one in p], lr=0.01
    ),
}


@pytest.mark.parametrize("way", ["in turn", "stacked"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_together_as_each_alone(network: str, optimizer: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = record_ways(monkeypatch)
    if way == "in turn":
        monkeypatch.setattr(network_stack, "MOST_NUMBERS", 0)
    torch.manual_seed(4)
    proxy = StudentProxy(NETWORKS[network](), steps=6, optimizer=OPTIMIZERS[optimizer])
    teachers = teachers_of(3)
    torch.manual_seed(7)
    students = list(distil_together(teachers, noisy_batches(6), proxy, Multiclass(), "cpu"))
    drawn = torch.rand(1)
    assert made == [StudentsInTurn if way == "in turn" else StackedStudents]
    for seed, student in enumerate(students):
        alone = by_hand(proxy, noisy_batches(6), make_linear(seed), 7)
        assert torch.equal(torch.rand(1), drawn), "what is drawn next is what one alone would draw"
        for name, value in student.state_dict().items():
            if way == "in turn":
                assert torch.equal(value, alone[name]), name
            else:
                torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-4)
    first, second = (torch.cat([p.flatten() for p in student.parameters()]) for student in students[:2])
    assert float((first - second).detach().abs().max()) > 1e-3, "each learnt from a teacher of its own"


def record_ways(monkeypatch: pytest.MonkeyPatch) -> list[type]:
    """The kinds of students that are trained."""
    made: list[type] = []
    real = proxy_students._begin

    def begin(*arguments: Any) -> Any:
        students = real(*arguments)
        made.append(type(students))
        return students

    monkeypatch.setattr(proxy_students, "_begin", begin)
    return made


class Norms(torch.optim.SGD):
    """Steps by the norm of each tensor's gradient, as LARS does."""


class Peeking(nn.Module):
    """Looks at its weights to decide what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x.flatten(1))
        return x if float(self.linear.weight.detach().sum()) > 1e9 else 2 * x


class Recurrent(nn.Module):
    """Of a kernel that can't be stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.linear = nn.LSTM(8, 4, batch_first=True), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.lstm(x.flatten(1).unflatten(1, (8, 8)))[0][:, -1])


class Centred(nn.Module):
    """Keeps a running mean of its outputs and assigns it anew: to a buffer, or to an attribute that is none."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        if buffer:
            self.register_buffer("mean", torch.zeros(10))
        else:
            self.mean = torch.zeros(10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x.flatten(1))
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


@pytest.mark.parametrize(
    ("student", "optimizer"),
    [
        (linear, lambda p: Norms(p, lr=0.1)),
        (linear, lambda p: torch.optim.LBFGS(p)),
        (Peeking, OPTIMIZERS["SGD"]),
        (Recurrent, OPTIMIZERS["SGD"]),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 20000), nn.Linear(20000, 10)), OPTIMIZERS["SGD"]),
        (lambda: Centred(buffer=True), OPTIMIZERS["SGD"]),
        (lambda: Centred(buffer=False), OPTIMIZERS["SGD"]),
    ],
    ids=["norms", "closure", "control flow", "recurrent", "wide", "assigned buffer", "kept output"],
)
def test_what_is_not_stacked(student: Callable[[], nn.Module], optimizer: Any) -> None:
    batch = next(noisy_batches(1))
    proxy = StudentProxy(student(), steps=2, optimizer=optimizer)
    begun = proxy_students._begin(teachers_of(2), batch, proxy, ProxyLoss(proxy, Multiclass()), "cpu")
    assert type(begun) is StudentsInTurn


def test_a_student_whose_stack_gives_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = network_stack.NetworkStack.run, record_ways(monkeypatch)
    monkeypatch.setattr(network_stack.NetworkStack, "run", lambda self, work: 1.01 * real(self, work))
    list(distil_together(teachers_of(2), noisy_batches(2), small_proxy(steps=2), Multiclass(), "cpu"))
    assert made == [StudentsInTurn]


def test_candidates_share_their_batches(harvest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    images = digits(0, 300)

    class Watched(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 300

        def __getitem__(self, index: int) -> Any:
            read.append(index)
            return images[index]

    loader = DataLoader(Watched(), 32)
    together = select(harvest, loader=loader)
    assert len(read) == 16 + 5 * 16, "a batch that tells the data apart, and each step's once for all three"
    (harvest / "scores.json").unlink()
    monkeypatch.setattr(proxy_scorer, "_MOST_BYTES", 1)
    apart = select(harvest, loader=loader)
    assert len(read) == 2 * 16 + 4 * 5 * 16
    for one, other in zip(together.candidates, apart.candidates, strict=True):
        assert (one.student_information is None) == (other.student_information is None)
        assert one.student_information is None or other.student_information == pytest.approx(
            one.student_information, abs=1e-5
        )


def test_a_module_gets_its_own_weights_back() -> None:
    module = linear().eval()
    own = {name: (value.data_ptr(), value.clone()) for name, value in module.state_dict().items()}
    teachers = ProxyTeachers(module, [network_stack.state_of(make_linear(seed)) for seed in (5, 6)], None)
    batch = next(noisy_batches(1))
    with pytest.raises(KeyboardInterrupt), teachers.lent():
        assert torch.equal(teachers.logits(batch, 1), make_linear(6)(batch.inputs).detach())
        raise KeyboardInterrupt
    for name, value in module.state_dict().items():
        assert (value.data_ptr(), value.tolist()) == (own[name][0], own[name][1].tolist())


def test_each_turn_from_the_same_random_state() -> None:
    torch.manual_seed(3)
    expected, after = torch.rand(2), torch.rand(1)
    torch.manual_seed(3)
    drawn = in_turn(3, "cpu", lambda place: torch.rand(2 + place))
    assert all(torch.equal(part[:2], expected) for part in drawn)
    assert torch.equal(torch.rand(1), after)
