from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_ckptkd import ArgumentError, CacheError, DistillationModule, TeacherCache
from lightning_ckptkd.commands.cli import main
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.teachers import Route, TeacherEnsemble, teacher_cache
from tests.projects import DigitsData, Project, convolutions, digits, make_trainer, write_distill_config


def student() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(convolutions(4), nn.Linear(16, 10))


class Noisy(Dataset[Any]):
    """Digits with random shifts, or as they are."""

    def __init__(self, random: bool = True, size: int = 96, shift: int = 0) -> None:
        self.images, self.labels = digits(0, size).tensors
        self.random, self.shift = random, shift

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        if self.random:
            image = image.roll(int(torch.randint(-1, 2, ())), dims=2) + 0.1 * torch.randn(())
        return image + self.shift, self.labels[index]


class Data(DigitsData):
    def __init__(self, dataset: Dataset[Any] | None = None, **options: Any) -> None:
        super().__init__()
        self.dataset = Noisy() if dataset is None else dataset
        self.options = {"batch_size": 32, "shuffle": True, **options}

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.dataset, **self.options)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples the teachers ran on, a number for each time; the few tried before a cache is filled aside."""
    found: list[int] = []
    tried = teacher_cache.try_samples

    def uncounted(*args: Any, **options: Any) -> None:
        before = len(found)
        tried(*args, **options)
        del found[before:]

    monkeypatch.setattr(teacher_cache, "try_samples", uncounted)
    real = TeacherEnsemble.__call__

    def counted(self: TeacherEnsemble, batch: Batch, which: Any = None) -> Tensor:
        found.append(len(batch))
        return real(self, batch, which)

    monkeypatch.setattr(TeacherEnsemble, "__call__", counted)
    return found


def distil(root: Path, harvest: Path, data: Any, *callbacks: Callback, epochs: int = 2, **options: Any) -> Any:
    settings = {"choice": [3, 1], "acceleration": "none", **options}
    module = DistillationModule(student(), Project(), harvest, **settings)
    trainer = make_trainer(
        root, *callbacks, max_epochs=epochs, limit_val_batches=0, enable_checkpointing=bool(callbacks)
    )
    trainer.fit(module, data)
    return module


def weights(module: DistillationModule) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.student.parameters()])


@pytest.mark.parametrize("schedule", [None, Route({0: 1, 1: 3})])
def test_the_same_student_as_from_live_teachers(tmp_path: Path, harvest: Path, runs: list[int], schedule: Any) -> None:
    data = Data(Noisy(random=False), shuffle=False)
    live = distil(tmp_path, harvest, data, schedule=schedule)
    assert len(runs) == 2 * 3
    cache = TeacherCache(tmp_path / "cache", dtype="fp32")
    runs.clear()
    cached = distil(tmp_path, harvest, data, schedule=schedule, cache=cache)
    assert runs == [32, 32, 32], "once, not once an epoch"
    torch.testing.assert_close(weights(cached), weights(live), rtol=1e-4, atol=1e-5)
    runs.clear()
    again = distil(tmp_path, harvest, data, schedule=schedule, cache=cache)
    assert runs == [], "a second run finds all"
    assert torch.equal(weights(again), weights(cached))
    half = distil(tmp_path, harvest, data, schedule=schedule, cache=TeacherCache(tmp_path / "half"))
    torch.testing.assert_close(weights(half), weights(live), rtol=1e-2, atol=1e-3)


def test_a_student_in_bfloat16(tmp_path: Path, harvest: Path) -> None:
    found = []
    for cache in (None, TeacherCache(tmp_path / "cache", dtype="fp32")):
        module = DistillationModule(student(), Project(), harvest, choice=[3], acceleration="none", cache=cache)
        trainer = make_trainer(tmp_path, max_epochs=1, limit_val_batches=0, precision="bf16-true")
        trainer.fit(module, Data(Noisy(random=False), shuffle=False))
        found.append(weights(module))
    assert found[0].dtype == torch.bfloat16 and torch.equal(*found)
    with pytest.raises(CacheError, match=r"network: cached .*bfloat16.*, wanted .*float32"):
        distil(tmp_path, harvest, Data(Noisy(random=False)), choice=[3], cache=cache)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_each_epoch_trains_on_one_view(tmp_path: Path, harvest: Path, runs: list[int], num_workers: int) -> None:
    seen: list[dict[int, Tensor]] = []

    class Watch(DistillationModule):
        def on_train_epoch_start(self) -> None:
            super().on_train_epoch_start()
            seen.append({})

        def unpack_batch(self, batch: Any) -> tuple[Tensor, Tensor]:
            if self.trainer.training and seen:
                for image, label in zip(*batch, strict=True):
                    seen[-1].setdefault(int(label), image)
            return super().unpack_batch(batch)

    torch.multiprocessing.set_sharing_strategy("file_system")
    data = Data(shuffle=False, num_workers=num_workers, persistent_workers=num_workers > 0)
    cache = TeacherCache(tmp_path / "cache", views=3)
    for _ in range(2):
        module = Watch(student(), Project(), harvest, choice=[3], acceleration="none", cache=cache)
        make_trainer(tmp_path, max_epochs=3, limit_val_batches=0).fit(module, data)
    assert sum(runs) == 3 * 96, "each view of each sample once"
    first, second = seen[:3], seen[3:]
    for epoch, again in zip(first, second, strict=True):
        assert all(torch.equal(epoch[label], again[label]) for label in epoch)
    assert any(not torch.equal(first[0][label], first[1][label]) for label in first[0]), "epochs draw different views"


def test_killed_while_filling(tmp_path: Path, harvest: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_ckptkd.teachers import cache as module

    monkeypatch.setattr(module, "CHUNK", 32)
    monkeypatch.setattr(module.LogitCache.open.__func__, "__defaults__", (32,))
    real = module.LogitCache.write

    def killed(self: Any, chunk: int, *parts: Any) -> None:
        if chunk == 2:
            raise KeyboardInterrupt
        real(self, chunk, *parts)

    monkeypatch.setattr(module.LogitCache, "write", killed)
    data, cache = Data(Noisy(random=False)), TeacherCache(tmp_path / "cache")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        distil(tmp_path, harvest, data, cache=cache)
    monkeypatch.setattr(module.LogitCache, "write", real)
    runs.clear()
    distil(tmp_path, harvest, data, cache=cache)
    assert runs == [32], "the third chunk alone"


def test_resumed_equals_uninterrupted(tmp_path: Path, harvest: Path) -> None:
    data, cache = Data(shuffle=False), TeacherCache(tmp_path / "cache", views=2)
    whole = distil(tmp_path, harvest, data, epochs=3, cache=cache)
    own = ModelCheckpoint(dirpath=tmp_path / "own", filename="{epoch}", save_top_k=-1)
    distil(tmp_path, harvest, data, own, epochs=1, cache=cache)
    module = DistillationModule(student(), Project(), harvest, choice=[3, 1], acceleration="none", cache=cache)
    trainer = make_trainer(tmp_path, own, max_epochs=3, limit_val_batches=0, enable_checkpointing=True)
    trainer.fit(module, data, ckpt_path=tmp_path / "own" / "epoch=0.ckpt")
    assert torch.equal(weights(module), weights(whole))


def test_a_cache_of_something_else(tmp_path: Path, harvest: Path) -> None:
    cache = TeacherCache(tmp_path / "cache")
    distil(tmp_path, harvest, Data(), cache=cache)
    before = {path.name: path.read_bytes() for path in (tmp_path / "cache").glob("*.*")}
    others: list[tuple[Any, TeacherCache, dict[str, Any], str]] = [
        (Data(), cache, {"choice": [1, 3]}, r"teachers\[0\]"),
        (Data(Noisy(size=80)), cache, {}, "samples: cached 96, wanted 80"),
        (Data(), TeacherCache(tmp_path / "cache", views=2), {}, "views: cached 1, wanted 2"),
        (Data(), TeacherCache(tmp_path / "cache", dtype="fp32"), {}, "dtype"),
    ]
    for data, option, changed, message in others:
        with pytest.raises(CacheError, match=message):
            distil(tmp_path, harvest, data, cache=option, **changed)
    with pytest.raises(CacheError, match=r"Sample \d+ \(view 0\) is not the one whose logits are in"):
        distil(tmp_path, harvest, Data(Noisy(shift=1)), cache=cache)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "cache").glob("*.*")}


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(digits(0, 64))


class Two(DigitsData):
    def train_dataloader(self) -> Any:
        return CombinedLoader([DataLoader(digits(0, 64), 32), DataLoader(digits(0, 64), 32)])


class Late(Data):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


@pytest.mark.filterwarnings("ignore:You have overridden .* in `LightningModule` but have passed in")
@pytest.mark.parametrize("hook", HOOKS)
def test_a_module_that_changes_batches(tmp_path: Path, harvest: Path, hook: str) -> None:
    """As torchgeo's and kornia's do: the teachers would not see it."""

    def changed(self: Any, batch: Any, *_: Any) -> Any:
        return [1 - batch[0], batch[1]]

    kind = type("Changing", (DistillationModule,), {hook: changed})
    cache = TeacherCache(tmp_path / "cache")
    with pytest.raises(ArgumentError, match=rf"Changing changes batches on their way .*\({hook}\).*or train without"):
        module = kind(student(), Project(), harvest, choice=[3], cache=cache)
        make_trainer(tmp_path, max_epochs=1).fit(module, DigitsData())
    assert not (tmp_path / "cache").exists()
    make_trainer(tmp_path, max_epochs=1).fit(kind(student(), Project(), harvest, choice=[3]), DigitsData())


def test_who_takes_a_cached_batch_for_the_loaders_own(tmp_path: Path, harvest: Path) -> None:
    cache = TeacherCache(tmp_path / "cache")

    class Look(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            images, labels = batch
            assert images.dim() == 4 and labels.dtype == torch.long

    class Knows(Look):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            super().on_train_batch_start(trainer, pl_module, batch.batch, batch_idx)

    class Step(DistillationModule):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            images, _ = self.take(batch)
            assert images.dim() == 4
            return super().training_step(batch, batch_idx)

        def take(self, batch: Any) -> Any:
            return batch

    class Unpacks(Step):
        def take(self, batch: Any) -> Any:
            return self.unpack_batch(batch)

    class Right(Step):
        def take(self, batch: Any) -> Any:
            return batch.batch

    def fit(kind: type[DistillationModule], *callbacks: Callback) -> None:
        module = kind(student(), Project(), harvest, choice=[3], cache=cache, acceleration="none")
        make_trainer(tmp_path, *callbacks, max_epochs=1, limit_val_batches=0).fit(module, DigitsData())

    told = r"cache: a training batch comes with the teachers' logits, as a CachedBatch.* at batch\.batch"
    for kind, callbacks in ((DistillationModule, [Look()]), (Step, []), (Unpacks, [])):
        with pytest.raises(ArgumentError, match=told):
            fit(kind, *callbacks)
    fit(Right, Knows())


def test_data_that_can_not_be_cached(tmp_path: Path, harvest: Path) -> None:
    cache = TeacherCache(tmp_path / "cache")
    for data, message in (
        (Data(Stream(), shuffle=None), "reads a stream .*Give a map-style dataset"),
        (Late(), r"Late changes batches on their way to the device \(on_after_batch_transfer\)"),
        (Two(), "there are 2 training dataloaders. Give one, or train without cache="),
    ):
        with pytest.raises(ArgumentError, match=message):
            distil(tmp_path, harvest, data, cache=cache)
    module = DistillationModule(student(), Project(), harvest, choice=[3], cache=cache)
    with pytest.raises(ArgumentError, match="Leave reload_dataloaders_every_n_epochs out"):
        make_trainer(tmp_path, max_epochs=1, reload_dataloaders_every_n_epochs=1).fit(module, DigitsData())
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"views": 0}, "views should be 1 or more"), ({"dtype": "int8"}, "dtype='int8' is unknown")],
)
def test_options_that_can_not_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        TeacherCache("x", **options)


def test_more_logits_than_classes(tmp_path: Path, harvest: Path) -> None:
    with pytest.raises(ArgumentError, match="top_k"):
        distil(tmp_path, harvest, Data(), cache=TeacherCache(tmp_path / "cache", top_k=11))
    exact = distil(tmp_path, harvest, Data(shuffle=False), cache=TeacherCache(tmp_path / "10", top_k=10))
    whole = distil(tmp_path, harvest, Data(shuffle=False), cache=TeacherCache(tmp_path / "all"))
    torch.testing.assert_close(weights(exact), weights(whole), rtol=1e-3, atol=1e-4)


def test_from_the_command_line(tmp_path: Path, harvest: Path) -> None:
    config = write_distill_config(tmp_path, harvest, f"cache: {{dirpath: {tmp_path / 'cache'}, views: 2}}")
    main(["distill", "--config", str(config)])
    assert len(list((tmp_path / "cache").glob("chunk-*.safetensors"))) == 1
