from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_ckptkd import ArgumentError, DistillationModule, TeacherCache
from lightning_ckptkd.commands.cli import main
from lightning_ckptkd.losses import DISTLoss, DKDLoss, KDLoss, MSELoss, combine_logits
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.teachers import AllTeachers
from lightning_ckptkd.teachers.mixing import CutMix, Mix, Mixup, Pairs, cut_box, cutmix, mixup
from tests.projects import DigitsData, Project, convolutions, digits, make_trainer, write_distill_config


def student() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(convolutions(4), nn.Linear(16, 10))


def images(n: int = 6, height: int = 9, width: int = 7) -> Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(0))


# ---- the functions


@pytest.mark.parametrize("shape", [(5,), (5, 4), (5, 3, 8, 6)])
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_mixup_as_numpy_has_it(shape: tuple[int, ...], lam: float) -> None:
    x = torch.randn(shape)
    before, permutation = x.clone(), torch.tensor([3, 0, 1, 4, 2])
    expected = numpy.empty(shape)
    for place, partner in enumerate([3, 0, 1, 4, 2]):
        expected[place] = lam * before.numpy()[place] + (1 - lam) * before.numpy()[partner]
    torch.testing.assert_close(mixup(x, permutation, lam).double(), torch.from_numpy(expected), rtol=1e-6, atol=1e-6)
    assert torch.equal(x, before)


def test_cutmix_as_numpy_has_it() -> None:
    x = images()
    before, permutation = x.clone(), torch.tensor([1, 2, 3, 4, 5, 0])
    expected = before.numpy().copy()
    for place in range(6):
        for row in range(2, 7):
            for column in range(1, 3):
                expected[place, :, row, column] = before.numpy()[(place + 1) % 6, :, row, column]
    assert torch.equal(cutmix(x, permutation, (2, 1, 7, 3)), torch.from_numpy(expected))
    assert torch.equal(x, before), "the batch is the user's"


def test_the_box_is_that_of_the_released_code() -> None:
    generator = numpy.random.default_rng(0)
    for lam in (0.0, 0.1, 0.5, 0.97, 1.0):
        for _ in range(20):
            row, column = int(generator.integers(32)), int(generator.integers(20))
            cut_h, cut_w = int(32 * numpy.sqrt(1 - lam)), int(20 * numpy.sqrt(1 - lam))
            expected = (
                int(numpy.clip(row - cut_h // 2, 0, 32)),
                int(numpy.clip(column - cut_w // 2, 0, 20)),
                int(numpy.clip(row + cut_h // 2, 0, 32)),
                int(numpy.clip(column + cut_w // 2, 0, 20)),
            )
            assert cut_box(32, 20, lam, (row, column)) == expected
    assert cut_box(32, 20, 0.75, (16, 10)) == (8, 5, 24, 15), "a quarter of the area"


# ---- what is drawn


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_lambda_is_of_a_beta_distribution(alpha: float) -> None:
    found = numpy.sort([Mixup(alpha, seed=3)(torch.zeros(2), step, 0, 0)[1].lam for step in range(2000)])
    grid = (numpy.arange(200000) + 0.5) / 200000
    weights = (grid * (1 - grid)) ** (alpha - 1)
    expected = numpy.interp(found, grid, numpy.cumsum(weights) / weights.sum())
    distance = numpy.abs(expected - (numpy.arange(2000) + 0.5) / 2000).max()
    assert distance < 1.95 / numpy.sqrt(2000), "Kolmogorov and Smirnov's, at 0.1%"


@pytest.mark.parametrize("alpha", [1e-12, 1e-3, 1e12, 1.7e308])
def test_extreme_alphas(alpha: float) -> None:
    for step in range(20):
        assert 0 <= Mixup(alpha)(torch.zeros(2), step, 0, 0)[1].lam <= 1


def test_each_place_is_as_likely_a_partner() -> None:
    counts = numpy.zeros((4, 4))
    for step in range(2000):
        counts[range(4), Mixup()(torch.zeros(4), step, 0, 0)[1].permutation.numpy()] += 1
    assert (counts.sum(0) == 2000).all(), "a permutation"
    assert ((counts > 420) & (counts < 580)).all()


def test_cutmixs_lambda_is_the_share_of_pixels_that_stay() -> None:
    x = torch.arange(5.0)[:, None, None, None].expand(5, 2, 12, 9)
    shares, cut_off = [], 0
    for step in range(300):
        mixed, pairs = CutMix()(x, step, 0, 0)
        for place, partner in enumerate(pairs.permutation.tolist()):
            stays = (mixed[place] == place).double().mean().item()
            assert stays == pytest.approx(pairs.lam if partner != place else 1.0, abs=1e-12)
            assert set(mixed[place].unique().tolist()) <= {float(place), float(partner)}
        shares.append(pairs.lam)
        cut_off += int((mixed[0, 0, 0] != 0).any() or (mixed[0, 0, :, 0] != 0).any())
    assert min(shares) < 0.3 and max(shares) > 0.95 and cut_off > 50


@pytest.mark.parametrize("mix", [Mixup, CutMix])
def test_a_draw_depends_on_seed_step_batch_and_rank_and_on_nothing_else(mix: Callable[..., Mix]) -> None:
    x = images(32)
    first, pairs = mix(1.0, seed=1)(x, 5, 2, 0)
    state, numpys = torch.get_rng_state(), numpy.random.get_state(legacy=True)
    torch.manual_seed(99)
    numpy.random.seed(99)
    between = torch.get_rng_state(), numpy.random.get_state(legacy=True)[1].tolist()
    again, same = mix(1.0, seed=1)(x, 5, 2, 0)
    assert torch.equal(torch.get_rng_state(), between[0])
    assert numpy.random.get_state(legacy=True)[1].tolist() == between[1]
    torch.set_rng_state(state)
    numpy.random.set_state(numpys)
    assert torch.equal(again, first) and torch.equal(same.permutation, pairs.permutation) and same.lam == pairs.lam
    for seed, step, batch, rank in ((2, 5, 2, 0), (1, 6, 2, 0), (1, 5, 3, 0), (1, 5, 2, 1), (1, 2, 5, 0)):
        _, other = mix(1.0, seed=seed)(x, step, batch, rank)
        assert not torch.equal(other.permutation, pairs.permutation)
        assert other.lam != pairs.lam or mix is CutMix, "boxes of whole pixels are few"


@pytest.mark.parametrize("mix", [Mixup(), CutMix()])
def test_one_sample_stays_as_it_is(mix: Mix) -> None:
    x = images(1)
    for step in range(10):
        mixed, pairs = mix(x, step, 0, 0)
        torch.testing.assert_close(mixed, x)
        assert pairs.permutation.tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_inputs_dtype_stays(dtype: torch.dtype) -> None:
    for mix in (Mixup(), CutMix()):
        assert mix(images().to(dtype), 0, 0, 0)[0].dtype == dtype


def test_what_can_not_be_mixed() -> None:
    for alpha in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ArgumentError, match=r"alpha of CutMix should be above 0, got .*leave mix out"):
            CutMix(alpha)
    with pytest.raises(
        ArgumentError, match=r"mix=Mixup needs floating-point inputs .* got torch.uint8 of shape \(6, 3"
    ):
        Mixup()(images().byte(), 0, 0, 0)
    with pytest.raises(ArgumentError, match=r"mix=CutMix needs images of shape .*got \(6, 7\)\. Give Mixup instead"):
        CutMix()(torch.zeros(6, 7), 0, 0, 0)


# ---- what the loss means with logits of the samples before they were mixed


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    logits = at.clone().requires_grad_()
    return torch.autograd.grad(loss(logits), logits)[0]


@pytest.fixture
def logits() -> tuple[Tensor, Tensor, Tensor]:
    """A student's (N, K), and those of three teachers on either partner, (M, N, K), all in float64."""
    generator = torch.Generator().manual_seed(4)
    draw = lambda *shape: 3 * torch.randn(shape, dtype=torch.float64, generator=generator)  # noqa: E731
    return draw(8, 5), draw(3, 8, 5), draw(3, 8, 5)


COMBINATIONS = ("logits", "probabilities")


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
@pytest.mark.parametrize("combine", COMBINATIONS)
def test_kd_on_both_partners_is_kd_to_the_mixed_probabilities(
    logits: tuple[Tensor, Tensor, Tensor], combine: str, weights: list[float] | None
) -> None:
    s, a, b = logits
    shares = None if weights is None else torch.tensor(weights)
    pairs, loss = Pairs(0.3, torch.arange(8)), KDLoss(4.0, combine)
    p, q = (F.softmax(combine_logits(t, combine, 4.0, shares) / 4, 1) for t in (a, b))

    def to_mixture(student: Tensor) -> Tensor:
        target = 0.3 * p + 0.7 * q
        return 16 * (target * (target.log() - F.log_softmax(student / 4, 1))).sum(1).mean()

    def on_both(student: Tensor) -> Tensor:
        return pairs.average(loss(student, a, None, shares), loss(student, b, None, shares))

    torch.testing.assert_close(gradient(on_both, s), gradient(to_mixture, s), rtol=1e-10, atol=1e-12)
    assert on_both(s) > to_mixture(s), "a constant that is 0 or more"


def test_per_teacher_is_the_mean_over_teachers_of_that(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    s, a, b = logits
    pairs, loss = Pairs(0.3, torch.arange(8)), KDLoss(4.0, "per_teacher")
    target = (0.3 * F.softmax(a / 4, 2) + 0.7 * F.softmax(b / 4, 2)).mean(0)
    torch.testing.assert_close(
        gradient(lambda student: pairs.average(loss(student, a), loss(student, b)), s),
        gradient(lambda student: -16 * (target * F.log_softmax(student / 4, 1)).sum(1).mean(), s),
        rtol=1e-10,
        atol=1e-12,
    )


@pytest.mark.parametrize("combine", (*COMBINATIONS, "per_teacher"))
def test_mse_on_both_partners_is_mse_to_the_mixed_logits(logits: tuple[Tensor, Tensor, Tensor], combine: str) -> None:
    s, a, b = logits
    pairs, loss = Pairs(0.3, torch.arange(8)), MSELoss(4.0, combine)
    if combine == "per_teacher":
        mixed = (0.3 * a + 0.7 * b).mean(0)
    else:
        mixed = 0.3 * loss.combined(a, None) + 0.7 * loss.combined(b, None)
    torch.testing.assert_close(
        gradient(lambda student: pairs.average(loss(student, a), loss(student, b)), s),
        gradient(lambda student: ((student - mixed) ** 2).mean(), s),
        rtol=1e-10,
        atol=1e-12,
    )


def test_kd_to_mixed_logits_is_something_else(logits: tuple[Tensor, Tensor, Tensor]) -> None:
    s, a, b = logits
    loss = KDLoss(4.0)
    on_both = gradient(lambda student: 0.3 * loss(student, a) + 0.7 * loss(student, b), s)
    to_mixed_logits = gradient(lambda student: loss(student, 0.3 * a + 0.7 * b), s)
    assert (on_both - to_mixed_logits).norm() > 0.01 * on_both.norm()


@pytest.mark.parametrize("loss", [DKDLoss(4.0), DISTLoss(4.0)])
def test_other_losses_have_no_such_mixture(logits: tuple[Tensor, Tensor, Tensor], loss: Any) -> None:
    """Neither mixed probabilities nor mixed logits have the gradient, even where both partners have one label."""
    s, a, b = logits
    y = torch.arange(8) % 5
    on_both = gradient(lambda student: 0.3 * loss(student, a, y) + 0.7 * loss(student, b, y), s)
    p, q = (F.softmax(t.mean(0) / 4, 1) for t in (a, b))
    for mixed in (0.3 * a.mean(0) + 0.7 * b.mean(0), 4 * (0.3 * p + 0.7 * q).log()):
        other = gradient(lambda student, mixed=mixed: loss(student, mixed, y), s)
        assert (on_both - other).norm() > 0.01 * on_both.norm()


# ---- training


def distil(root: Path, harvest: Path, *callbacks: Callback, data: Any = None, **options: Any) -> DistillationModule:
    trainer = {key: options.pop(key) for key in ("max_epochs", "accumulate_grad_batches") if key in options}
    module = DistillationModule(student(), Project(), harvest, **{"choice": [3, 1], "acceleration": "none", **options})
    checkpointing = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    settings = {"max_epochs": 1, "limit_val_batches": 0, "enable_checkpointing": checkpointing, **trainer}
    make_trainer(root, *callbacks, **settings).fit(module, data or DigitsData(shuffle=False))
    return module


class Inputs(Callback):
    """What student and teachers were given in each training step, and the loss that came of it."""

    def __init__(self) -> None:
        self.student: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.teachers: list[Tensor] = []
        self.losses: list[Tensor] = []
        self.steps: list[tuple[int, int]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        def watch(_: Any, inputs: tuple[Tensor], logits: Tensor) -> None:
            self.student.append(inputs[0].detach().clone())
            self.logits.append(logits.detach().clone())

        pl_module.student.register_forward_hook(watch)
        for member in pl_module.teachers.members:
            member.register_forward_pre_hook(lambda _, inputs: self.teachers.append(inputs[0].clone()))

    def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
        self.steps.append((trainer.global_step, rest[-1]))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(outputs["loss"])


def function(student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
    correct = teacher_logits.mean(0).gather(1, target[:, None])
    return ((student_logits - teacher_logits.mean(0)).abs() * correct.abs()).mean()


@pytest.mark.parametrize("mix", [Mixup(1.0), CutMix()])
@pytest.mark.parametrize("kd_loss", [None, DKDLoss(2.0), DISTLoss(2.0), function])
def test_live_teachers_see_what_the_student_sees(tmp_path: Path, harvest: Path, mix: Mix, kd_loss: Any) -> None:
    watch = Inputs()
    module = distil(
        tmp_path, harvest, watch, mix=mix, kd_loss=kd_loss, alpha=0.3, accumulate_grad_batches=2, temperature=4.0
    )
    assert watch.steps == [(0, 0), (0, 1), (1, 2), (1, 3)]
    assert len(watch.student) == 4 and len(watch.teachers) == 2 * 4
    used = kd_loss or KDLoss(4.0)
    teachers: Any = module.teachers
    changed = []
    for place, (x, y) in enumerate(DigitsData(shuffle=False).train_dataloader()):
        mixed, pairs = mix(x, *watch.steps[place], 0)
        assert torch.equal(watch.student[place], mixed)
        changed.append(not torch.allclose(mixed, x))
        assert all(torch.equal(seen, mixed) for seen in watch.teachers[2 * place : 2 * place + 2])
        s, t, partners = watch.logits[place], teachers(Batch(mixed)), y[pairs.permutation]
        ce = pairs.lam * F.cross_entropy(s, y) + (1 - pairs.lam) * F.cross_entropy(s, partners)
        kd = pairs.lam * used(s, t, y) + (1 - pairs.lam) * used(s, t, partners)
        torch.testing.assert_close(watch.losses[place] * 2, 0.3 * ce + 0.7 * kd)  # halved, as Lightning accumulates
    assert any(changed), "a box of a fraction of a pixel is none"


@pytest.mark.parametrize("mix", [Mixup(1.0), CutMix()])
@pytest.mark.parametrize("kd_loss", [None, KDLoss(2.0, "probabilities"), MSELoss(2.0, "per_teacher")])
def test_from_the_cache(tmp_path: Path, harvest: Path, mix: Mix, kd_loss: Any) -> None:
    watch = Inputs()
    cache = TeacherCache(tmp_path / "cache", dtype="fp32")
    options: dict[str, Any] = {"mix": mix, "kd_loss": kd_loss, "alpha": 0.3, "temperature": 4.0, "cache": cache}
    filling = distil(tmp_path, harvest, **options)
    module = distil(tmp_path, harvest, watch, **options)
    assert watch.teachers == []
    for a, b in zip(filling.student.parameters(), module.student.parameters(), strict=True):
        assert torch.equal(a, b)
    used = kd_loss or KDLoss(4.0)
    teachers: Any = module.teachers
    for place, (x, y) in enumerate(DigitsData(shuffle=False).train_dataloader()):
        mixed, pairs = mix(x, place, place, 0)
        assert torch.equal(watch.student[place], mixed)
        own, s = teachers(Batch(x)), watch.logits[place]
        partners = torch.stack([own[:, partner] for partner in pairs.permutation.tolist()], 1)
        ce = pairs.lam * F.cross_entropy(s, y) + (1 - pairs.lam) * F.cross_entropy(s, y[pairs.permutation])
        kd = pairs.lam * used(s, own) + (1 - pairs.lam) * used(s, partners)
        torch.testing.assert_close(watch.losses[place], 0.3 * ce + 0.7 * kd)


def test_the_logged_loss_and_evaluation(tmp_path: Path, harvest: Path) -> None:
    class Mixed(Mixup):
        batches = 0

        def __call__(self, *arguments: Any) -> Any:
            Mixed.batches += 1
            return super().__call__(*arguments)

    watch = Inputs()
    module = DistillationModule(student(), Project(), harvest, choice=[3], acceleration="none", mix=Mixed())
    trainer = make_trainer(tmp_path, watch, max_epochs=1)
    trainer.fit(module, DigitsData())
    assert Mixed.batches == 4
    assert float(trainer.callback_metrics["train_loss"]) == pytest.approx(float(torch.stack(watch.losses).mean()))
    (result,) = trainer.test(module, DigitsData(), verbose=False)
    assert Mixed.batches == 4
    x, y = digits(1200, 1400).tensors
    assert result["test_acc"] == pytest.approx(float((module.eval()(x).argmax(1) == y).float().mean()))


def test_before_the_teachers_come(tmp_path: Path, harvest: Path) -> None:
    for cache in (None, TeacherCache(tmp_path / "cache")):
        watch, mix = Inputs(), Mixup(1.0)
        distil(tmp_path, harvest, watch, mix=mix, schedule=AllTeachers(from_epoch=1), cache=cache)
        assert cache is not None or watch.teachers == []
        for place, (x, y) in enumerate(DigitsData(shuffle=False).train_dataloader()):
            pairs = mix(x, place, place, 0)[1]
            losses = [F.cross_entropy(watch.logits[place], labels) for labels in (y, y[pairs.permutation])]
            torch.testing.assert_close(watch.losses[place], pairs.average(*losses))


@pytest.mark.parametrize("cached", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, harvest: Path, cached: bool) -> None:
    cache = TeacherCache(tmp_path / "cache", views=2) if cached else None
    data = DigitsData(shuffle=False)

    def run(name: str, epochs: int, ckpt_path: Path | None = None) -> list[Tensor]:
        torch.manual_seed(epochs)  # what is drawn depends on the step alone
        own = ModelCheckpoint(dirpath=tmp_path / name, filename="{step}", save_top_k=-1, every_n_train_steps=1)
        module = DistillationModule(
            student(), Project(), harvest, choice=[3, 1], acceleration="none", cache=cache, mix=CutMix(seed=7)
        )
        trainer = make_trainer(tmp_path, own, max_epochs=epochs, limit_val_batches=0, enable_checkpointing=True)
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return list(module.student.state_dict().values())

    whole = run("whole", 3)
    run("cut", 1)
    resumed = run("cut", 3, tmp_path / "cut" / "step=4.ckpt")
    for a, b in zip(whole, resumed, strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:.*ended before the epoch ended")  # nor is the sampler's place in a checkpoint
def test_what_is_drawn_goes_on_in_the_middle_of_an_epoch(tmp_path: Path, harvest: Path) -> None:
    class Recorded(Mixup):
        def __init__(self) -> None:
            super().__init__()
            self.drawn: list[tuple[int, ...]] = []

        def __call__(self, inputs: Tensor, *place: int) -> tuple[Tensor, Pairs]:
            self.drawn.append(place)
            return super().__call__(inputs, *place)

    own = ModelCheckpoint(dirpath=tmp_path / "own", filename="{step}", save_top_k=-1, every_n_train_steps=1)
    runs = []
    for ckpt_path in (None, tmp_path / "own" / "step=2.ckpt"):
        mix = Recorded()
        module = DistillationModule(student(), Project(), harvest, choice=[3], acceleration="none", mix=mix)
        trainer = make_trainer(tmp_path, own, max_epochs=2, limit_val_batches=0, enable_checkpointing=True)
        trainer.fit(module, DigitsData(shuffle=False), ckpt_path=ckpt_path)
        runs.append(mix.drawn)
    assert runs[0] == [(step, step % 4, 0) for step in range(8)]
    assert runs[1] == runs[0][2:]


class KDWithAnotherPair(KDLoss):
    def pair(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor | None = None) -> Tensor:
        return (student_logits.detach() - teacher_logits).abs().mean()


@pytest.mark.parametrize("kd_loss", [DKDLoss(), DISTLoss(), function, KDWithAnotherPair()])
def test_losses_that_a_cache_would_make_meaningless(kd_loss: Any) -> None:
    name = getattr(kd_loss, "__name__", type(kd_loss).__name__)
    options: dict[str, Any] = {"kd_loss": kd_loss, "cache": TeacherCache("cache")}
    with pytest.raises(ArgumentError, match=rf"mix with cache needs kd_loss to be KDLoss or MSELoss, got {name}: "):
        DistillationModule(student(), Project(), "nowhere", mix=Mixup(), **options)
    DistillationModule(student(), Project(), "nowhere", **options)


def test_inputs_that_can_not_be_mixed_in_training(tmp_path: Path, harvest: Path) -> None:
    class Bytes(DistillationModule):
        def unpack_batch(self, batch: Any) -> tuple[Tensor, Tensor]:
            return (batch[0] * 16).byte(), batch[1]

    module = Bytes(student(), Project(), harvest, choice=[3], mix=CutMix())
    with pytest.raises(ArgumentError, match=r"mix=CutMix needs floating-point inputs .* got torch.uint8"):
        make_trainer(tmp_path, limit_val_batches=0).fit(module, DigitsData())


def test_where_mixing_is_refused_the_remedy_is_named(tmp_path: Path, harvest: Path) -> None:
    class Hook(DigitsData):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch

    class Collates(DigitsData):
        def train_dataloader(self) -> DataLoader[Any]:
            def draws(samples: Any) -> Any:
                torch.rand(())
                return torch.utils.data.default_collate(samples)

            return DataLoader(digits(0, 64), 32, collate_fn=draws)

    for data in (Hook(), Collates()):
        with pytest.raises(ArgumentError, match=r"give Mixup and CutMix as DistillationModule\(mix=\.\.\.\)"):
            distil(tmp_path, harvest, data=data, cache=TeacherCache(tmp_path / "cache"))


def test_from_the_command_line(tmp_path: Path, harvest: Path) -> None:
    config = write_distill_config(
        tmp_path, harvest, "mix: {class_path: lightning_ckptkd.teachers.mixing.CutMix, init_args: {seed: 5}}"
    )
    module = main(["distill", "--config", str(config)]).model
    assert isinstance(module._mix, CutMix) and (module._mix.alpha, module._mix.seed) == (1.0, 5)
    words = [
        "--model.mix=lightning_ckptkd.teachers.mixing.Mixup",
        "--model.mix.alpha=0.4",
        f"--trainer.default_root_dir={tmp_path}/second",
        f"--model.cache.dirpath={tmp_path}/c",
    ]
    module = main(["distill", "--config", str(config), *words]).model
    assert isinstance(module._mix, Mixup) and module._mix.alpha == 0.4
