from __future__ import annotations

import gc
import weakref
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_ckptkd import ArgumentError, DistillationModule, TeacherCache, TeacherError
from lightning_ckptkd.commands.cli import main
from lightning_ckptkd.teachers import Acceleration, AllTeachers, FeatureMatching, RandomTeacher, Route, TeacherPath
from lightning_ckptkd.teachers.feature_matching import make_projectors
from lightning_ckptkd.trainer.seeding import random_state
from tests.projects import DigitsData, Project, convolutions, digits, make_trainer, write_distill_config

MAPS = FeatureMatching("0.3", "backbone.3", 4, 8)  # (N, 4, 4, 4) and (N, 8, 4, 4), changed in place by the next layer
VECTORS = FeatureMatching("0.8", "backbone.8", 16, 16, spatial=False, weight=0.5)


def student() -> nn.Sequential:
    torch.manual_seed(1)
    network = nn.Sequential(convolutions(4), nn.Linear(16, 10))
    for layer in network.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = True
    return network


class InPlace(Project):
    def __init__(self) -> None:
        super().__init__()
        for layer in self.modules():
            if isinstance(layer, nn.ReLU):
                layer.inplace = True


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-2)


def make(harvest: Path, option: FeatureMatching | None = MAPS, **options: Any) -> DistillationModule:
    settings = {"choice": [3, 1], "acceleration": "none", "optimizer": sgd, **options}
    return DistillationModule(student(), InPlace(), harvest, feature_matching=option, **settings)


def ready(harvest: Path, option: FeatureMatching | None = MAPS, **options: Any) -> DistillationModule:
    """A module that can take the first training step."""
    module = make(harvest, option, **options)
    module._trainer = make_trainer(harvest, max_epochs=-1, max_steps=8)  # a schedule asks it for the length
    module.setup("fit")
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    return module


def fit(root: Path, module: DistillationModule, *callbacks: Callback, **options: Any) -> Trainer:
    ckpt_path = options.pop("ckpt_path", None)
    settings = {"max_epochs": 2, "limit_val_batches": 0, "enable_checkpointing": True, **options}
    trainer = make_trainer(root, *callbacks, **settings)
    trainer.fit(module, DigitsData(shuffle=False), ckpt_path=ckpt_path)
    return trainer


def own_checkpoints(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1)


def output(network: nn.Module, layer: str, inputs: Tensor) -> Tensor:
    """What the first layers up to one of the backbone give."""
    backbone, last = layer.split(".")
    return network.get_submodule(backbone)[: int(last) + 1](inputs)  # type: ignore[index]


def by_hand(module: DistillationModule, option: FeatureMatching, inputs: Tensor, place: int) -> Tensor:
    projector = module.projectors[place].projector
    weight, bias = projector.weight.flatten(1), projector.bias
    mine = output(module.student, option.student_layer, inputs)
    theirs = output(module.teachers.members[place], option.teacher_layer, inputs)
    form = "nchw,kc->nkhw" if option.spatial else "nc,kc->nk"
    shape = (-1, 1, 1) if option.spatial else (-1,)
    return (torch.einsum(form, mine, weight) + bias.view(shape) - theirs).pow(2).mean()


@pytest.mark.parametrize("option", [MAPS, VECTORS])
@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_the_loss(harvest: Path, option: FeatureMatching, alpha: float) -> None:
    x, y = digits(0, 32).tensors
    for weights, schedule, expected in (
        (None, None, {0: 0.5, 1: 0.5}),
        ([3.0, 1.0], None, {0: 0.75, 1: 0.25}),
        ([3.0, 1.0], Route({0: 1}), {1: 1.0}),
    ):
        common = {"alpha": alpha, "teacher_weights": weights, "schedule": schedule}
        module, plain = ready(harvest, option, **common), ready(harvest, None, **common)
        plain.student.load_state_dict(module.student.state_dict())
        before = plain.training_step((x, y), 0)
        features = sum(share * by_hand(module, option, x, place) for place, share in expected.items())
        torch.testing.assert_close(module.training_step((x, y), 0), before + option.weight * features)


def test_what_is_learnt(tmp_path: Path, harvest: Path) -> None:
    x, y = digits(0, 32).tensors
    module = ready(harvest, alpha=1.0)
    module.training_step((x, y), 0).backward()
    logit_gradient = torch.autograd.grad(F.cross_entropy(module(x), y), module.student[0][0].weight)[0]
    assert not torch.allclose(module.student[0][0].weight.grad, logit_gradient), "features reach the student"
    assert all(bool(parameter.grad.any()) for parameter in module.projectors.parameters())
    assert all(parameter.grad is None for member in module.teachers.members for parameter in member.parameters())

    def loss(module: DistillationModule) -> float:
        features = digits(0, 128).tensors[0]
        with torch.no_grad():
            return sum(float(by_hand(module.eval(), MAPS, features, place)) for place in (0, 1))

    module = make(harvest)
    trainer = fit(tmp_path, module, max_epochs=4)
    assert loss(module) < 0.5 * loss(ready(harvest))
    logged = float(trainer.callback_metrics["train_feature_loss"])
    assert 0 < logged < float(trainer.callback_metrics["train_loss"])
    plain = fit(tmp_path, make(harvest, None))
    assert "train_feature_loss" not in plain.callback_metrics
    count = sum(parameter.numel() for parameter in module.parameters())
    assert count == sum(p.numel() for p in student().parameters()) + 2 * (4 * 8 + 8)
    assert sum(p.numel() for group in trainer.optimizers[0].param_groups for p in group["params"]) == count


class Noted(Callback):
    """The projectors' weights after each step."""

    def __init__(self) -> None:
        self.steps: list[list[Tensor]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        self.steps.append([projector.projector.weight.detach().clone() for projector in pl_module.projectors])

    def changes(self) -> list[list[int]]:
        pairs = zip(self.steps, self.steps[1:], strict=False)
        return [[place for place in range(2) if not torch.equal(a[place], b[place])] for a, b in pairs]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_projector_learns_when_its_teacher_runs(tmp_path: Path, harvest: Path, accumulate: int) -> None:
    """And is left alone else, by weight decay and momentum too."""
    noted = Noted()
    module = make(harvest, schedule=Route({0: 3, 1: 1, 2: 3}, until_epoch=3))
    fit(tmp_path, module, noted, max_epochs=4, accumulate_grad_batches=accumulate)
    a_step = [[]] * (accumulate - 1)
    epochs = ([*a_step, places] * (4 // accumulate) for places in ([0], [1], [0], []))
    assert noted.changes() == list(chain(*epochs))


def test_a_gradient_for_every_projector_in_every_step(harvest: Path) -> None:
    """DDP waits for them."""
    x, y = digits(0, 32).tensors
    for options in ({"schedule": RandomTeacher()}, {"schedule": AllTeachers(from_epoch=1)}):
        module = ready(harvest, **options)
        module.training_step((x, y), 0).backward()
        assert all(parameter.grad is not None for parameter in module.parameters())


def test_nothing_is_kept_after_a_step(harvest: Path) -> None:
    module = ready(harvest)
    matched: list[Any] = []
    for projector in module.projectors:
        projector.register_forward_pre_hook(lambda _, features: matched.extend(map(weakref.ref, features)))
    loss = module.training_step(digits(0, 32).tensors, 0)
    alive = [reference() for reference in matched]
    assert [found.requires_grad for found in alive if found is not None] == [True, False] * 2
    loss.backward()
    del loss, alive
    gc.collect()
    assert [reference() for reference in matched] == [None] * 4
    networks = [module.student, *module.teachers.members]
    assert not any(layer._forward_hooks for network in networks for layer in network.modules())


def test_random_numbers_are_left_alone(harvest: Path) -> None:
    seed_everything(7, verbose=False)
    state, seed = random_state(), torch.initial_seed()
    two, three = make_projectors(MAPS, 2), make_projectors(MAPS, 3)
    assert random_state() == state and torch.initial_seed() == seed
    for a, b in zip(two.parameters(), three.parameters(), strict=False):
        assert torch.equal(a, b)
    assert not torch.equal(three[0].projector.weight, three[1].projector.weight)
    seed_everything(8, verbose=False)
    assert not torch.equal(make_projectors(MAPS, 1)[0].projector.weight, two[0].projector.weight)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, harvest: Path) -> None:
    def run(name: str, epochs: int, ckpt_path: Path | None = None) -> dict[str, Tensor]:
        seed_everything(0 if ckpt_path is None else 5, verbose=False)
        module = make(harvest, alpha=0.5, schedule=RandomTeacher(), acceleration=Acceleration(bf16=True))
        fit(tmp_path, module, own_checkpoints(tmp_path / name), max_epochs=epochs, ckpt_path=ckpt_path)
        assert module.teachers is not None and module.teachers.path == TeacherPath(), "whatever acceleration says"
        return module.state_dict()

    whole = run("whole", 3)
    run("cut", 1)
    resumed = run("cut", 3, tmp_path / "cut" / "epoch=0.ckpt")
    assert "projectors.1.projector.weight" in whole and whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")  # no ModelCheckpoint in a test
def test_resuming_with_other_projectors_is_refused(tmp_path: Path, harvest: Path) -> None:
    for name, option in (("with", MAPS), ("without", None)):
        fit(tmp_path, make(harvest, option), own_checkpoints(tmp_path / name), max_epochs=1)
    for name, module, message in (
        ("with", make(harvest, None), r"has the projectors projectors.0.projector.weight \[8, 4, 1, 1\].*one none"),
        ("without", make(harvest), r"has the projectors none, this one projectors.0"),
        ("with", make(harvest, VECTORS), r"this one projectors.0.projector.weight \[16, 16\].* as that run had it"),
        ("with", make(harvest, choice=[1, 3]), "the same teachers in another order"),
    ):
        with pytest.raises(TeacherError, match=f"feature_matching: .*{message}"):
            fit(tmp_path, module, ckpt_path=tmp_path / name / "epoch=0.ckpt")


def test_loading_needs_no_harvest(tmp_path: Path, harvest: Path) -> None:
    module = make(harvest)
    fit(tmp_path, module, own_checkpoints(tmp_path / "own"), max_epochs=1)
    kept = {path: path.read_bytes() for path in harvest.iterdir()}
    for path in kept:
        path.unlink()
    checkpoint = tmp_path / "own" / "epoch=0.ckpt"
    networks = {"student": student(), "teacher": InPlace(), "weights_only": True, "optimizer": sgd}
    loaded = DistillationModule.load_from_checkpoint(checkpoint, feature_matching=MAPS, **networks)
    assert loaded.state_dict().keys() == module.state_dict().keys()
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in loaded.state_dict().items())
    alone = DistillationModule.load_from_checkpoint(checkpoint, **networks)
    assert len(alone.projectors) == 0
    x, y = digits(1200, 1400).tensors
    assert torch.equal(alone.eval()(x), module.eval()(x))
    for evaluated in (make(tmp_path / "gone"), make(tmp_path / "gone", None)):
        with pytest.warns(UserWarning, match="evaluated without its teachers"):
            trainer = make_trainer(tmp_path, own_checkpoints(tmp_path / "own"), enable_checkpointing=True)
            (result,) = trainer.test(evaluated, DigitsData(), ckpt_path=checkpoint, verbose=False)
        assert result["test_acc"] == pytest.approx(float((module(x).argmax(1) == y).float().mean()))
    for path, content in kept.items():
        path.write_bytes(content)
    trained = loaded.projectors[0].projector.weight.detach().clone()
    loaded.setup("fit")
    assert torch.equal(loaded.projectors[0].projector.weight, trained), "training goes on with what was loaded"


def test_validating_first(tmp_path: Path, harvest: Path) -> None:
    module = make(harvest)
    make_trainer(tmp_path).validate(module, DigitsData(), verbose=False)
    assert "train_feature_loss" in fit(tmp_path, module, max_epochs=1).callback_metrics


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_bfloat16(tmp_path: Path, harvest: Path, precision: Any) -> None:
    trainer = fit(tmp_path, make(harvest), max_epochs=1, precision=precision)
    assert 0 < float(trainer.callback_metrics["train_feature_loss"]) < 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("0.30", "backbone.3"), r"feature_matching.student_layer='0.30': Sequential has no .*Near names: '0.3'"),
        (("0.3", "backbon.3"), r"feature_matching.teacher_layer='backbon.3': InPlace has no .*'backbone.3'"),
    ],
)
def test_layers_that_are_not_there(tmp_path: Path, harvest: Path, change: tuple[str, str], message: str) -> None:
    noted = Noted()
    with pytest.raises(ArgumentError, match=message):
        fit(tmp_path, make(harvest, FeatureMatching(*change, 4, 8)), noted)
    assert noted.steps == []


class Odd(nn.Module):
    """A network with a layer that gives a tuple and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.network = student()
        self.recurrent = nn.LSTM(8, 4)
        self.idle = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + 0 * self.recurrent(x[:, 0])[0].sum()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("recurrent", r"feature_matching.student_layer='recurrent' gives tuple of 2 .*; name a layer that gives one"),
        ("idle", r"feature_matching.student_layer='idle' is not called in the student's forward pass"),
        ("network.0.8", r"student_features should have the shape \(N, 4, H, W\), but have \(32, 16\)"),
    ],
)
def test_layers_without_such_features(tmp_path: Path, harvest: Path, layer: str, message: str) -> None:
    option = FeatureMatching(layer, "backbone.3", 4, 8)
    module = DistillationModule(Odd(), InPlace(), harvest, choice=[3], feature_matching=option)
    with pytest.raises(ArgumentError, match=message):
        fit(tmp_path, module)
    assert not any(part._forward_hooks for part in module.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student_dim": 0}, "student_dim should be 1 or more, got 0"),
        ({"teacher_dim": -1}, "teacher_dim should be 1 or more, got -1"),
        ({"weight": -1.0}, "weight should be 0 or more, got -1.0"),
        ({"weight": float("nan")}, "weight should be 0 or more, got nan"),
    ],
)
def test_options_that_can_not_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        FeatureMatching(**{"student_layer": "a", "teacher_layer": "b", "student_dim": 1, "teacher_dim": 1, **options})


def test_not_with_a_cache(tmp_path: Path, harvest: Path) -> None:
    with pytest.raises(ArgumentError, match=r"a cache holds their logits only. Leave cache or feature_matching out"):
        make(harvest, cache=TeacherCache(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_not_with_averaged_weights(tmp_path: Path, harvest: Path) -> None:
    with pytest.raises(ArgumentError, match=r"feature_matching: EMAWeightAveraging leaves the projectors out of"):
        fit(tmp_path, make(harvest), EMAWeightAveraging())


def test_from_the_command_line(tmp_path: Path, harvest: Path) -> None:
    config = write_distill_config(
        tmp_path,
        harvest,
        "feature_matching: {student_layer: backbone.3, teacher_layer: backbone.3, student_dim: 2, teacher_dim: 8}",
    )
    cli = main(["distill", "--config", str(config), "--model.feature_matching.weight=2"])
    assert cli.model.projectors[0].projector.weight.shape == (8, 2, 1, 1)
    assert cli.model.panel.features.option.weight == 2
    assert "train_feature_loss" in cli.trainer.callback_metrics
