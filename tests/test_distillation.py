from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_ckptkd import (
    ArgumentError,
    DistillationModule,
    MISelector,
    SnapshotError,
    SnapshotStore,
    TeacherError,
)
from lightning_ckptkd.losses import DKDLoss, KDLoss, MSELoss
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.teachers import AllTeachers, Progressive, RandomTeacher, Route, TeacherEnsemble, way_trial
from tests.projects import DigitsData, Project, convolutions, digits, make_trainer


def student(num_classes: int = 10) -> nn.Sequential:
    return nn.Sequential(convolutions(4), nn.Linear(16, num_classes))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05)


@pytest.fixture
def selected(harvest: Path) -> Path:
    MISelector(rule="spaced", num_teachers=2).select(harvest, progress=False)
    return harvest


def distil(root: Path, snapshots: Path, *callbacks: Callback, data: Any = None, **options: Any) -> DistillationModule:
    settings = {
        "max_epochs": 2,
        **{key: options.pop(key) for key in list(options) if key.startswith(("max", "num", "dev"))},
    }
    module = DistillationModule(**{"student": student(), "teacher": Project(), "snapshots": snapshots, **options})
    make_trainer(root, *callbacks, **settings).fit(module, data or DigitsData())
    return module


def test_with_just_these_arguments(tmp_path: Path, selected: Path) -> None:
    module = DistillationModule(student=student(), teacher=Project(), snapshots=selected)
    trainer = make_trainer(tmp_path, max_epochs=2)
    trainer.fit(module, DigitsData())
    assert module.teachers is not None
    assert module.teachers.names == ["epoch 3 (step 112)", "epoch 1 (step 56)"]
    assert {"train_loss", "val_loss", "val_acc", "val_agreement", "val_teacher_acc"} <= trainer.callback_metrics.keys()
    (result,) = trainer.test(module, DigitsData(), verbose=False)
    assert result.keys() == {"test_loss", "test_acc", "test_agreement", "test_teacher_acc"}
    logits = torch.cat(trainer.predict(module, DigitsData().test_dataloader()))
    assert float((logits.argmax(1) == digits(1200, 1400).tensors[1]).float().mean()) == pytest.approx(
        result["test_acc"]
    )


def test_the_loss_is_the_papers(selected: Path) -> None:
    """alpha * CE + (1 - alpha) * T^2 * KL on the mean of the teachers' logits, written out."""
    module = DistillationModule(student(), Project(), selected, alpha=0.3, temperature=4.0)
    module.setup("fit")
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    x, y = digits(0, 32).tensors
    logits, mean = module.student(x), module.teachers(Batch(x)).mean(0)
    p = torch.softmax(mean / 4, 1)
    kl = (p * (p.log() - torch.log_softmax(logits / 4, 1))).sum(1).mean()
    expected = 0.3 * F.cross_entropy(logits, y) + 0.7 * 16 * kl
    torch.testing.assert_close(module.training_step((x, y), 0), expected, rtol=1e-5, atol=0)


def test_alpha_one_is_plain_training(tmp_path: Path, selected: Path) -> None:
    torch.manual_seed(3)
    network = student()
    plain = [parameter.clone() for parameter in network.parameters()]
    distil(tmp_path, selected, student=network, alpha=1.0, optimizer=sgd, max_epochs=1, data=DigitsData(shuffle=False))
    torch.manual_seed(3)
    again = student()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), plain, strict=True))
    optimizer = sgd(again.parameters())
    for x, y in DigitsData(shuffle=False).train_dataloader():
        optimizer.zero_grad()
        F.cross_entropy(again(x), y).backward()
        optimizer.step()
    for a, b in zip(again.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_logged_numbers_are_right_and_the_teachers_accuracy_comes_once(tmp_path: Path, selected: Path) -> None:
    seen: list[dict[str, float]] = []

    class Watch(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if not trainer.sanity_checking:
                seen.append({name: float(value) for name, value in trainer.logged_metrics.items()})
                trainer._logger_connector._logged_metrics.clear()

    module = distil(tmp_path, selected, Watch(), optimizer=sgd)
    assert ["val_teacher_acc" in metrics for metrics in seen] == [True, False]
    x, y = digits(1000, 1200).tensors
    consensus = module.teachers(Batch(x)).mean(0).argmax(1)
    found = module.eval()(x).argmax(1)
    assert seen[0]["val_teacher_acc"] == pytest.approx(float((consensus == y).float().mean()))
    assert seen[1]["val_acc"] == pytest.approx(float((found == y).float().mean()))
    assert seen[1]["val_agreement"] == pytest.approx(float((found == consensus).float().mean()))


def test_the_student_learns_from_the_teachers(tmp_path: Path, selected: Path) -> None:
    x = digits(0, 900).tensors[0]

    def agreement(module: DistillationModule) -> float:
        return float((module.eval()(x).argmax(1) == module.teachers(Batch(x)).mean(0).argmax(1)).float().mean())

    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=1e-2)

    data = DigitsData(train_size=900)
    before = agreement(
        distil(tmp_path, selected, optimizer=lambda p: torch.optim.SGD(p, lr=0.0), max_epochs=1, data=data)
    )
    after = agreement(distil(tmp_path, selected, alpha=0.0, optimizer=adam, max_epochs=6, data=data))
    assert after > 0.75 > 0.4 > before


def test_teachers_stay_out_of_everything(tmp_path: Path, selected: Path) -> None:
    own = ModelCheckpoint(dirpath=tmp_path / "own", filename="{epoch}")

    class Flip(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            pl_module.train()
            pl_module.teachers.members[0].train()

    module = DistillationModule(student(), Project(), selected, acceleration="none")
    trainer = make_trainer(tmp_path, own, Flip(), max_epochs=1, enable_checkpointing=True)
    trainer.fit(module, DigitsData())
    count = sum(parameter.numel() for parameter in module.student.parameters())
    assert sum(parameter.numel() for parameter in module.parameters()) == count
    assert sum(p.numel() for group in trainer.optimizers[0].param_groups for p in group["params"]) == count
    checkpoint = torch.load(tmp_path / "own" / "epoch=0.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {f"student.{name}" for name in student().state_dict()}
    fresh = DistillationModule(student(), Project(), selected)
    fresh.setup("fit")
    for trained, loaded in zip(module.teachers.members, fresh.teachers.members, strict=True):
        for a, b in zip(trained.state_dict().values(), loaded.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    plain = student()
    plain.load_state_dict({name.removeprefix("student."): value for name, value in checkpoint["state_dict"].items()})
    assert checkpoint["hyper_parameters"]["snapshots"] == str(selected)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, selected: Path) -> None:
    def run(name: str, epochs: int, ckpt_path: Path | None = None) -> DistillationModule:
        torch.manual_seed(0)
        module = DistillationModule(student(), Project(), selected, optimizer=sgd)
        own = ModelCheckpoint(dirpath=tmp_path / name, filename="{epoch}", save_top_k=-1)
        trainer = make_trainer(tmp_path, own, max_epochs=epochs, enable_checkpointing=True, deterministic=True)
        trainer.fit(module, DigitsData(shuffle=False), ckpt_path=ckpt_path)
        return module

    whole = run("whole", 3)
    run("cut", 1)
    resumed = run("cut", 3, tmp_path / "cut" / "epoch=0.ckpt")
    assert resumed.teachers is not None
    for a, b in zip(whole.student.state_dict().values(), resumed.student.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_resumed_run_keeps_the_teachers_path(
    tmp_path: Path, selected: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def seconds(teachers: TeacherEnsemble, batch: Batch, places: list[int]) -> tuple[float, Tensor]:
        return 0.25 if teachers.path.channels_last else 0.5, teachers(batch, places)

    monkeypatch.setattr(way_trial, "_run_timed", seconds)
    monkeypatch.setattr(way_trial, "FEW", 0)
    own = ModelCheckpoint(dirpath=tmp_path / "own", filename="{epoch}")
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        make_trainer(tmp_path, own, max_epochs=1, enable_checkpointing=True).fit(
            DistillationModule(student(), Project(), selected), DigitsData()
        )
    lines = [record.getMessage() for record in caplog.records if "teachers run" in record.getMessage()]
    (line,) = lines
    assert line.startswith("2 teachers run folded, channels last, 500 ms a batch; found in ")
    monkeypatch.setenv("LIGHTNING_CKPTKD_CACHE", "")  # nothing is remembered but by the checkpoint
    checkpoint = torch.load(tmp_path / "own" / "epoch=0.ckpt", weights_only=True)
    path = {"folded": True, "channels_last": True, "compiled": False, "bf16": False, "fp16": False}
    assert checkpoint["lightning_ckptkd_teacher_path"] == path

    monkeypatch.setattr(way_trial, "_run_timed", None)  # nothing is timed
    resumed = DistillationModule(student(), Project(), selected)
    make_trainer(tmp_path, own, max_epochs=2, enable_checkpointing=True).fit(
        resumed, DigitsData(), ckpt_path=tmp_path / "own" / "epoch=0.ckpt"
    )
    assert resumed.teachers is not None and asdict(resumed.teachers.path) == path


class Seen(Callback):
    """The teachers that ran in each training step."""

    def __init__(self) -> None:
        self.steps: list[list[int]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        teachers: Any = pl_module.teachers
        for place, member in enumerate(teachers.members):
            member.register_forward_hook(lambda *_, place=place: self.steps[-1].append(place))

    def on_train_batch_start(self, *_: Any) -> None:
        self.steps.append([])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[0, 1, 2]] * 8),
        ({"schedule": Progressive()}, [[1]] * 3 + [[2]] * 3 + [[0]] * 2),
        ({"schedule": Route({0: 2, 1: 3})}, [[2]] * 4 + [[0]] * 4),
        ({"schedule": AllTeachers(from_epoch=1)}, [[]] * 4 + [[0, 1, 2]] * 4),
        ({"schedule": Route({0: 1}, until_epoch=1)}, [[1]] * 4 + [[]] * 4),
        ({"schedule": RandomTeacher(3)}, None),
    ],
)
def test_which_teacher_when_and_on_in_the_right_place(
    tmp_path: Path, harvest: Path, options: dict[str, Any], expected: list[list[int]] | None
) -> None:
    if expected is None:
        expected = [RandomTeacher(3).teachers([3, 1, 2], step, 0, 0.0) for step in range(8)]
        assert len({places[0] for places in expected}) == 3
    runs = []
    for cut in (False, True):
        own = ModelCheckpoint(dirpath=tmp_path / str(cut), save_top_k=-1, filename="{epoch}")
        common = {"limit_val_batches": 0, "num_sanity_val_steps": 0, "enable_checkpointing": True, "max_epochs": 2}
        seen = Seen()
        for ckpt_path in (None, tmp_path / "True" / "epoch=0.ckpt")[: 1 + cut]:
            if ckpt_path is not None:
                del seen.steps[4:]
            module = DistillationModule(student(), Project(), harvest, choice=[3, 1, 2], acceleration="none", **options)
            trainer = make_trainer(tmp_path, own, seen, **common)
            trainer.fit(module, DigitsData(shuffle=False), ckpt_path=ckpt_path)
        runs.append(seen.steps)
    assert runs == [expected, expected]


def test_a_schedule_that_needs_an_end(tmp_path: Path, harvest: Path) -> None:
    with pytest.raises(ArgumentError, match=r"schedule=Progressive needs to know how long training is"):
        distil(tmp_path, harvest, choice=[1, 2], schedule=Progressive(), max_epochs=-1)


class Unsized(DigitsData):
    """A stream, for which Lightning estimates -1 steps."""

    def train_dataloader(self) -> Any:
        return DataLoader(StreamOf(digits(0, 96)), 32)


class StreamOf(IterableDataset[Any]):
    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return (self.data[index] for index in range(len(self.data)))


def test_a_schedule_on_data_without_a_length(tmp_path: Path, harvest: Path) -> None:
    def steps(schedule: Any, **options: Any) -> list[list[int]]:
        seen = Seen()
        module = DistillationModule(
            student(), Project(), harvest, choice=[1, 2, 3], acceleration="none", schedule=schedule
        )
        make_trainer(tmp_path, seen, limit_val_batches=0, num_sanity_val_steps=0, **options).fit(module, Unsized())
        return seen.steps

    with pytest.raises(ArgumentError, match=r"schedule=Progressive needs to know how long .* if the data has no len"):
        steps(Progressive(), max_epochs=2)
    assert steps(Progressive(), max_epochs=-1, max_steps=6) == [[0], [0], [1], [1], [2], [2]]  # the remedy
    assert len(steps(RandomTeacher(), max_epochs=1)) == 3


class ByHand(DistillationModule):
    """Two optimisers, which Lightning counts twice a batch."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        network, head = self.student
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (network, head)]


def test_a_schedule_with_two_optimisers(tmp_path: Path, harvest: Path) -> None:
    seen = Seen()
    module = ByHand(student(), Project(), harvest, choice=[1, 2, 3], acceleration="none", schedule=Progressive())
    make_trainer(tmp_path, seen, max_epochs=2, limit_val_batches=0, num_sanity_val_steps=0).fit(
        module, DigitsData(train_size=96)
    )
    assert seen.steps == [[0], [0], [1], [1], [2], [2]]


def test_weights_of_the_teachers(tmp_path: Path, harvest: Path) -> None:
    x, y = digits(0, 32).tensors
    selection = MISelector(num_teachers=2).select(harvest, Project(), DigitsData().val_dataloader(), progress=False)
    scores = [next(c.score for c in selection.candidates if c.file == file) or 0.0 for file in selection.chosen]
    for weights, counts in (([3.0, 1.0], [3.0, 1.0]), ("score", scores), (None, [1.0, 1.0])):
        module = DistillationModule(student(), Project(), harvest, alpha=0.0, teacher_weights=weights)
        module.setup("fit")
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        assert module.teachers is not None
        logits = module.teachers(Batch(x))
        mean = (logits * torch.tensor(counts)[:, None, None]).sum(0) / sum(counts)
        torch.testing.assert_close(module.training_step((x, y), 0), KDLoss(5.0)(module.student(x), mean))
    for wrong in ([1.0], [1.0, -1.0], [0.0, 0.0], "best", [1.0, float("nan")]):
        with pytest.raises(ArgumentError, match=r"teacher_weights=.* should be 'score' .* or 2 numbers"):
            DistillationModule(student(), Project(), harvest, teacher_weights=wrong).setup("fit")
    with pytest.raises(ArgumentError, match=r"teacher_weights need a loss that takes them"):
        DistillationModule(student(), Project(), harvest, kd_loss=F.mse_loss, teacher_weights=[1.0, 1.0])


def other_architecture(folder: Path) -> nn.Module:
    """A harvest of one epoch of a linear classifier; returns the classifier."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with SnapshotStore.create(folder, "another run", {}) as store:
        store.commit(linear.state_dict(), epoch=3, global_step=1)
    return linear


def test_teachers_of_several_harvests_and_architectures(tmp_path: Path, harvest: Path) -> None:
    x = digits(0, 32).tensors[0]
    linear = other_architecture(tmp_path / "other")
    folders = [harvest, tmp_path / "other"]
    module = distil(
        tmp_path, folders, teacher=[Project(), linear], choice=[3], teacher_weights=[1.0, 2.0], max_epochs=2
    )
    assert module.teachers is not None
    assert module.teachers.names == [f"{harvest}: epoch 3 (step 112)", f"{tmp_path / 'other'}: epoch 3 (step 1)"]
    logits = module.teachers(Batch(x))
    torch.testing.assert_close(logits[1], linear(x))
    one = DistillationModule(student(), Project(), harvest, choice=[3])
    one.setup("fit")
    assert one.teachers is not None
    torch.testing.assert_close(logits[:1], one.teachers(Batch(x)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snapshots": []}, r"snapshots=\[\] should name one harvest, or several"),
        ({"snapshots": ["a", "a"]}, r"snapshots=\['a', 'a'\] should name one harvest, or several different"),
        ({"teacher": [nn.Identity()]}, "there are 1 architectures for 2 harvests"),
        ({"teacher_weights": "score"}, "'score' needs a single harvest"),
    ],
)
def test_harvests_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        DistillationModule(**{"student": student(), "teacher": Project(), "snapshots": ["a", "b"], **options})


def test_a_route_names_one_teacher(tmp_path: Path, harvest: Path) -> None:
    folders = [str(harvest), str(tmp_path / "other")]
    linear = other_architecture(tmp_path / "other")
    module = DistillationModule(student(), [Project(), linear], folders, choice=[3], schedule=Route({0: 3}))
    with pytest.raises(ArgumentError, match=r"names the epochs \[3\], of which there are several teachers"):
        module.setup("fit")


def absolute(student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
    assert teacher_logits.dim() == 3 and target.dtype == torch.long
    return (student_logits - teacher_logits.mean(0)).abs().mean()


def test_any_function_is_a_loss(harvest: Path) -> None:
    x, y = digits(0, 32).tensors
    for loss in (absolute, DKDLoss(2.0), MSELoss()):
        module = DistillationModule(student(), Project(), harvest, choice=[1, 2], alpha=0.25, kd_loss=loss)
        module.setup("fit")
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        assert module.teachers is not None
        logits = module.student(x)
        expected = 0.25 * F.cross_entropy(logits, y) + 0.75 * loss(logits, module.teachers(Batch(x)), y)
        torch.testing.assert_close(module.training_step((x, y), 0), expected)


@pytest.mark.parametrize("epochs", [(-1, None), (2, 2), (3, 1)])
def test_epochs_with_teachers_that_can_not_be(epochs: tuple[int, int | None]) -> None:
    for schedule in (AllTeachers, RandomTeacher, Progressive, lambda **options: Route({0: 1}, **options)):
        with pytest.raises(ArgumentError, match=r"from_epoch=.* should be 0 or more and before until_epoch"):
            schedule(from_epoch=epochs[0], until_epoch=epochs[1])


def test_resuming_with_other_teachers_is_refused(tmp_path: Path, selected: Path) -> None:
    own = ModelCheckpoint(dirpath=tmp_path / "own", filename="{epoch}")
    trainer = make_trainer(tmp_path, own, max_epochs=1, enable_checkpointing=True)
    trainer.fit(DistillationModule(student(), Project(), selected), DigitsData())
    MISelector(rule="full").select(selected, progress=False)
    with pytest.raises(
        TeacherError, match=r"The checkpoint's run learnt from \['epoch=3.*Select the same snapshots again"
    ):
        make_trainer(tmp_path, max_epochs=2).fit(
            DistillationModule(student(), Project(), selected),
            DigitsData(),
            ckpt_path=tmp_path / "own" / "epoch=0.ckpt",
        )


def test_loading_a_student_needs_no_snapshots(tmp_path: Path, selected: Path) -> None:
    own = ModelCheckpoint(dirpath=tmp_path / "own", filename="{epoch}")
    trainer = make_trainer(tmp_path, own, max_epochs=1, enable_checkpointing=True)
    module = DistillationModule(student(), Project(), selected, alpha=0.25)
    trainer.fit(module, DigitsData())
    for path in selected.iterdir():
        path.unlink()
    loaded = DistillationModule.load_from_checkpoint(
        tmp_path / "own" / "epoch=0.ckpt", student=student(), teacher=Project(), weights_only=True
    )
    assert loaded.alpha == 0.25
    x = digits(0, 8).tensors[0]
    assert torch.equal(loaded.eval()(x), module.eval()(x))
    make_trainer(tmp_path).predict(loaded, DigitsData().test_dataloader())


def test_a_schedule_and_bfloat16(tmp_path: Path, selected: Path) -> None:
    def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)

    module = DistillationModule(student(), Project(), selected, optimizer=sgd, lr_scheduler=schedule)
    trainer = make_trainer(tmp_path, max_epochs=2)
    trainer.fit(module, DigitsData())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05 * 0.01)
    plateau = DistillationModule(
        student(), Project(), selected, optimizer=sgd, lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau
    )
    make_trainer(tmp_path, max_epochs=1).fit(plateau, DigitsData())
    for precision in ("bf16-mixed", "bf16-true"):
        make_trainer(tmp_path, max_epochs=1, precision=precision).fit(
            DistillationModule(student(), Project(), selected), DigitsData()
        )


def test_without_a_selection_the_last_one_teaches(tmp_path: Path, harvest: Path) -> None:
    with pytest.warns(UserWarning, match="the last snapshot alone will teach"):
        module = distil(tmp_path, harvest, max_epochs=1)
    assert module.teachers.names == ["epoch 3 (step 112)"]
    assert distil(tmp_path, harvest, choice=[0, 2], max_epochs=1).teachers.names == [
        "epoch 0 (step 28)",
        "epoch 2 (step 84)",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, r"alpha should be in \[0, 1\], got -0.1"),
        ({"alpha": 1.5}, r"alpha should be in \[0, 1\], got 1.5"),
        ({"alpha": float("nan")}, r"alpha should be in \[0, 1\], got nan"),
        ({"temperature": 0.0}, "temperature should be above 0, got 0.0"),
        ({"temperature": float("inf")}, "temperature should be above 0, got inf"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        DistillationModule(student(), Project(), "nowhere", **options)


class Training(Callback):
    """Notes whether a step was taken before the error."""

    started = False

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.started = True


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"snapshots": "nowhere"}, SnapshotError, r"nowhere has no manifest.json"),
        ({"teacher": Project(channels=4)}, TeacherError, r"epoch=3-.*does not fit teacher=Project. shapes differ"),
        ({"teacher": Project().classifier}, TeacherError, r"give submodule='classifier'"),
        ({"student": student(7)}, TeacherError, r"The student has 7 classes and the teachers .*have 10"),
        ({"num_sanity_val_steps": 0, "student": student(7)}, TeacherError, "The student has 7 classes"),
        ({"student": nn.Flatten(0)}, ArgumentError, r"those of the student \(Flatten\) have"),
    ],
)
def test_what_does_not_fit_fails_before_a_step(
    tmp_path: Path, selected: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    watch = Training()
    with pytest.raises(error, match=message):
        distil(
            tmp_path,
            options.pop("snapshots", selected),
            watch,
            optimizer=lambda p: torch.optim.SGD([torch.ones(1, requires_grad=True), *p], lr=0.1),
            **options,
        )
    assert not watch.started


def test_labels_outside_the_classes(tmp_path: Path, selected: Path) -> None:
    class Shifted(DistillationModule):
        def unpack_batch(self, batch: Any) -> tuple[Tensor, Tensor]:
            return batch[0], batch[1] + 1

    module = Shifted(student(), Project(), selected)
    with pytest.raises(ArgumentError, match=r"Labels run from 1 to 10, but the teacher has 10 classes"):
        make_trainer(tmp_path).fit(module, DigitsData())


def test_a_file_that_was_damaged(tmp_path: Path, selected: Path) -> None:
    file = selected / SnapshotStore.open(selected).snapshots[3].file
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(SnapshotError, match=r"has 100 bytes where the manifest says"):
        distil(tmp_path, selected)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")  # no ModelCheckpoint in a test
def test_a_student_is_tested_apart_from_its_harvest(tmp_path: Path, selected: Path) -> None:
    own = ModelCheckpoint(dirpath=tmp_path / "own", filename="{epoch}")
    trainer = make_trainer(tmp_path, own, max_epochs=1, enable_checkpointing=True)
    trainer.fit(DistillationModule(student(), Project(), selected, choice=[1, 2]), DigitsData())
    checkpoint = tmp_path / "own" / "epoch=0.ckpt"
    reordered = DistillationModule(student(), Project(), selected, choice=[2, 1])
    make_trainer(tmp_path, max_epochs=2).fit(reordered, DigitsData(), ckpt_path=checkpoint)
    MISelector(rule="full").select(selected, progress=False)
    changed = DistillationModule(student(), Project(), selected)
    (with_teachers,) = make_trainer(tmp_path).test(changed, DigitsData(), ckpt_path=checkpoint, verbose=False)
    assert "test_teacher_acc" in with_teachers
    gone = DistillationModule(student(), Project(), tmp_path / "gone")
    with pytest.warns(UserWarning, match="evaluated without its teachers"):
        (alone,) = make_trainer(tmp_path).test(gone, DigitsData(), ckpt_path=checkpoint, verbose=False)
    assert alone == {"test_acc": with_teachers["test_acc"]}


def test_several_dataloaders_and_validating_after_fitting(tmp_path: Path, selected: Path) -> None:
    class Two(DigitsData):
        def val_dataloader(self) -> Any:
            return [super().val_dataloader(), super().test_dataloader()]

    module = DistillationModule(student(), Project(), selected)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, Two())
    both = trainer.validate(module, Two(), verbose=False)
    for number, (result, start) in enumerate(zip(both, (1000, 1200), strict=True)):
        x, y = digits(start, start + 200).tensors
        accuracy = float((module.eval()(x).argmax(1) == y).float().mean())
        assert result[f"val_acc/dataloader_idx_{number}"] == pytest.approx(accuracy)
        assert f"val_teacher_acc/dataloader_idx_{number}" in result
