from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
    default_collate,
)
from typing_extensions import override

from lightning_ckptkd import ArgumentError
from lightning_ckptkd.teachers import ViewBatch, Views, ViewSampler, view_loader
from lightning_ckptkd.teachers import views as views_file
from lightning_ckptkd.teachers.checksums import sample_checksum
from lightning_ckptkd.trainer.seeding import keep_random_state, mix, random_state, seed_by
from tests.projects import Project, digits, make_trainer
from tests.teachers.augmented import Augmented, Draws, augmentation

few_cores = pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker:UserWarning")


def loaded(loader: DataLoader[Any]) -> list[ViewBatch]:
    return list(loader)


def by_item(batches: list[ViewBatch]) -> dict[int, Tensor]:
    return {int(item): x for batch in batches for item, x in zip(batch.items, batch.batch[0], strict=True)}


@few_cores
def test_items_are_the_same_in_each_process_and_order() -> None:
    dataset = Augmented(12, augmentation())
    views = Views(dataset, 3, seed=5)
    assert len(views) == 36
    here = [views[item] for item in range(36)]
    random.seed(9)
    numpy.random.seed(9)
    torch.manual_seed(9)
    there: list[ViewBatch] = []
    for view in range(3):
        loader = view_loader(DataLoader(dataset, batch_size=5, num_workers=2, shuffle=True), 3, seed=5)
        assert isinstance(loader.sampler, ViewSampler)
        loader = DataLoader(
            loader.dataset, 5, sampler=range(35 - view, -1, -3), num_workers=2, collate_fn=loader.collate_fn
        )
        there += loaded(loader)
    images = by_item(there)
    assert sorted(images) == list(range(36))
    assert all(torch.equal(images[sample.item], sample.sample[0]) for sample in here)
    checksums = {int(i): int(c) for batch in there for i, c in zip(batch.items, batch.checksums, strict=True)}
    assert checksums == {sample.item: sample.checksum for sample in here}


def test_views_samples_and_seeds_differ() -> None:
    same = Augmented(2, augmentation())
    same.images[1], same.labels[1] = same.images[0], same.labels[0]  # two samples that differ in what is drawn alone
    drawn = [Views(same, 3, seed)[item].checksum for seed in (0, 1) for item in range(6)]
    assert len(set(drawn)) == 12


@pytest.mark.parametrize("source", ["python", "numpy", "torch"])
def test_each_generator_is_seeded_and_put_back(source: str) -> None:
    views = Views(Draws(source), 2, seed=0)
    random.gauss(0, 1)  # leaves a second number behind, as NumPy's does
    numpy.random.normal()
    before = random_state()
    first = [views[item].sample for item in range(10)]
    assert random_state() == before
    with pytest.raises(ValueError, match="sample 5"):
        views[10]
    assert random_state() == before, "also where the dataset fails"
    assert [sample.sample for sample in views.__getitems__(list(range(10)))] == first
    assert len(set(first)) == 10
    {"python": random.random, "numpy": numpy.random.random, "torch": lambda: torch.rand(())}[source]()
    assert random_state() != before, "the comparison sees this generator"


def test_a_gpus_generator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a GPU was seeded")

    for place, name in ((torch, "manual_seed"), (torch.cuda, "manual_seed_all"), (torch.cuda, "manual_seed")):
        monkeypatch.setattr(place, name, refuse)
    Views(Draws("torch"), 2, seed=0)[0]


def test_seeds_are_mixed_not_added() -> None:
    drawn = set()
    for key in ((0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 11), (11, 1), (111,)):
        with keep_random_state():
            seed_by(*key)
            drawn.add((random.random(), numpy.random.random(), float(torch.rand(()))))
    assert (
        len({python for python, _, _ in drawn}) == len({n for _, n, _ in drawn}) == len({t for _, _, t in drawn}) == 6
    )
    assert mix("1") != mix(1)


def test_a_generator_of_its_own_is_noticed() -> None:
    views = Views(Draws("own"), 1, seed=0)
    assert views[0].checksum != views[0].checksum


def test_no_such_item() -> None:
    views = Views(Augmented(4), 2, 0)
    for item in (-1, 8):
        with pytest.raises(IndexError, match="of 8"):
            views[item]


def test_each_epoch_draws_one_view_of_each_sample() -> None:
    sampler = ViewSampler(RandomSampler(range(200)), 4, seed=3)
    epochs = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        items = list(sampler)
        assert items != sorted(items), "the user's order"
        assert sorted(item // 4 for item in items) == list(range(200))
        assert sorted(sampler) == sorted(items), "whatever the order"
        epochs.append([item % 4 for item in sorted(items)])
    for epoch, drawn in enumerate(epochs):
        assert numpy.bincount(drawn, minlength=4).min() > 25, "of 50; five standard deviations"
        for other in epochs[:epoch]:
            assert 25 < numpy.equal(drawn, other).sum() < 80, "of 50, as independent draws agree"
    other_seed = [item % 4 for item in ViewSampler(range(200), 4, seed=4)]
    assert other_seed != epochs[0]
    assert len(sampler) == 200


def test_one_view_is_the_plain_loader() -> None:
    plain = DataLoader(digits(0, 50), 8, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(1))
    expected = list(plain)
    plain.generator.manual_seed(1)
    batches = loaded(view_loader(plain, 1, seed=0))
    assert len(batches) == len(expected) == 6
    for batch, (x, y) in zip(batches, expected, strict=True):
        assert torch.equal(batch.batch[0], x)
        assert torch.equal(batch.batch[1], y)
        assert torch.equal(digits(0, 50).tensors[0][batch.items], x)


def test_the_users_sampler_is_kept() -> None:
    weights = [0.0] * 40 + [1.0] * 10
    sampler = WeightedRandomSampler(weights, 30, generator=torch.Generator().manual_seed(0))
    loader = view_loader(DataLoader(digits(0, 50), 8, sampler=sampler), 3, seed=0)
    items = torch.cat([batch.items for batch in loaded(loader)])
    assert len(items) == len(loader.sampler) == 30
    assert (items // 3).min() >= 40


def test_set_epoch_is_passed_on() -> None:
    inner = DistributedSampler(range(10), num_replicas=2, rank=1)
    sampler = ViewSampler(inner, 2, seed=0)
    sampler.set_epoch(7)
    assert (sampler.epoch, inner.epoch) == (7, 7)
    ViewSampler(SequentialSampler(range(10)), 2, seed=0).set_epoch(1)


def init_worker(worker: int) -> None:
    pass


@few_cores
def test_options_are_kept() -> None:
    options: dict[str, Any] = {
        "batch_size": 7,
        "num_workers": 2,
        "drop_last": True,
        "timeout": 50,
        "worker_init_fn": init_worker,
        "generator": torch.Generator(),
        "in_order": False,
        "prefetch_factor": 3,
        "persistent_workers": True,
    }
    plain = DataLoader(digits(0, 50), pin_memory=True, multiprocessing_context="spawn", **options)
    loader = view_loader(plain, 2, 0)
    assert {name: getattr(loader, name) for name in options} == options
    assert loader.pin_memory
    assert loader.multiprocessing_context is plain.multiprocessing_context is not None
    assert pickle.loads(pickle.dumps(loader.collate_fn)).collate_fn is default_collate
    assert len(pickle.loads(pickle.dumps(loader.dataset))) == 100


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(range(4))


class Unsized(Dataset[Any]):
    def __getitem__(self, index: int) -> int:
        return index


class OwnWay(DataLoader[Any]):
    def __iter__(self) -> Any:
        return iter([1])


DIGITS = digits(0, 8)


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        (DataLoader(Stream()), r"reads a stream .* Give a map-style dataset"),
        (DataLoader(Unsized(), sampler=[1, 2]), r"dataset \(Unsized\) without a length"),
        (DataLoader(DIGITS, batch_sampler=BatchSampler(range(8), 2, False)), "batch sampler of its own"),
        (DataLoader(DIGITS, batch_size=None), "batch_size=None"),
        (OwnWay(DIGITS), "is a OwnWay"),
        ([1, 2], "is a list"),
    ],
)
def test_refused_loaders(loader: Any, reason: str) -> None:
    with pytest.raises(ArgumentError, match=f"{reason}.*or train without the cache"):
        view_loader(loader, 2, 0)


def test_views_below_one() -> None:
    for make in (lambda: Views(DIGITS, 0, 0), lambda: ViewSampler(range(8), 0, 0)):
        with pytest.raises(ArgumentError, match="views should be 1 or more, got 0"):
            make()


def collate_with(draw: Callable[[], Any]) -> Callable[[list[Any]], Any]:
    def collate(samples: list[Any]) -> Any:
        draw()
        return default_collate(samples)

    return collate


@pytest.mark.parametrize("draw", [random.random, numpy.random.random, lambda: torch.rand(2), lambda: None])
def test_a_collate_fn_that_draws_is_refused(draw: Callable[[], Any]) -> None:
    loader = view_loader(DataLoader(DIGITS, 4, collate_fn=collate_with(draw)), 1, 0)
    if draw() is None:
        assert len(loaded(loader)) == 2
    else:
        with pytest.raises(ArgumentError, match=r"collate_fn=.*collate draws random numbers"):
            loaded(loader)


IMAGE = Image.fromarray(numpy.arange(12, dtype=numpy.uint8).reshape(3, 4))


def test_checksums_tell_samples_apart() -> None:
    x = torch.arange(6.0)
    samples: list[Any] = [
        (x, 1),
        (x, 2),
        (x, 1.0),
        (x, True),
        [x],
        {"x": x},
        {"y": x},
        {"x": {"x": x}},
        x,
        x.double(),
        x.to(torch.bfloat16),
        x.view(2, 3),
        x.view(3, 2),
        x.numpy(),
        x + torch.tensor([0, 0, 0, 0, 0, 1e-6]),
        (2 * x).to_sparse(),
        torch.complex(x, x),
        torch.complex(x, x).conj(),
        IMAGE,
        IMAGE.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        IMAGE.convert("RGB"),
        torch.tensor(1),
        torch.empty(0),
        numpy.float32(1),
        "1",
        b"1",
        None,
        numpy.array(["a", None], dtype=object),
        numpy.array(["b", None], dtype=object),
    ]
    checksums = [sample_checksum(sample) for sample in samples]
    assert len(set(checksums)) == len(samples)
    assert checksums == [sample_checksum(pickle.loads(pickle.dumps(sample))) for sample in samples]
    assert sample_checksum(x.view(2, 3).t()) == sample_checksum(x.view(2, 3).t().contiguous())
    assert sample_checksum(nn.Linear(2, 2)) == sample_checksum(nn.Linear(2, 2)), "only the type of what is unknown"


class Recorder(Project):
    """Trains on views; keeps the items of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.items: list[list[int]] = [[], []]

    def training_step(self, batch: ViewBatch, batch_idx: int) -> Tensor:
        self.items[self.current_epoch] += batch.items.tolist()
        return super().training_step(batch.batch, batch_idx)


def test_in_a_trainer(tmp_path: Path) -> None:
    module = Recorder()
    loader = view_loader(DataLoader(digits(0, 64), 16, shuffle=True), 4, seed=0)
    make_trainer(tmp_path, max_epochs=2).fit(module, loader, DataLoader(digits(0, 8), 8))
    assert [sorted(item // 4 for item in items) for items in module.items] == [list(range(64))] * 2
    assert sorted(module.items[0]) != sorted(module.items[1]), "Lightning sets the epoch"


class Rarely(Dataset[Any]):
    """Draws for some indices only, by themselves or behind the generators' backs; counts what it is asked for."""

    def __init__(self, drawing: set[int], *, hidden: bool = False) -> None:
        self.drawing, self.hidden, self.asked = drawing, hidden, list[int]()

    def __len__(self) -> int:
        return 12

    @override
    def __getitem__(self, index: int) -> float:
        self.asked.append(index)
        if index not in self.drawing:
            return float(index)
        with torch.random.fork_rng(devices=[], enabled=self.hidden):
            return float(torch.rand(()))


def seeded(dataset: Dataset[Any], items: list[int]) -> list[Any]:
    """As each item alone is under its seed."""
    found = []
    with keep_random_state():
        for item in items:
            seed_by(7, item, 0)
            found.append(dataset[item])
    return found


@pytest.mark.parametrize("drawing", [set(), {0}, {7}, {3, 4, 9}, set(range(12))])
def test_items_that_draw_nothing_are_not_seeded(drawing: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Rarely(drawing)
    expected = seeded(dataset, list(range(12)))
    views, batches = Views(dataset, 1, seed=7), [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    torch.manual_seed(1)
    before = random_state()
    for _ in range(2):
        drawn = [sample.sample for batch in batches for sample in views.__getitems__(batch)]
        assert drawn == expected, "a batch that draws is drawn again with seeds"
        assert random_state() == before
    seeds = []
    monkeypatch.setattr(views_file, "seed_by", lambda *key: seeds.append(key))
    dataset.asked.clear()
    views.__getitems__([1, 2])
    assert dataset.asked == [1, 2]
    assert seeds == ([(7, 1, 0), (7, 2, 0)] if drawing else [])


def test_draws_behind_the_generators_backs_are_seeded() -> None:
    """A sample that forks the generators leaves them as they were, and differs with its seed."""
    dataset = Rarely(set(range(12)), hidden=True)
    expected = seeded(dataset, list(range(12)))
    views = Views(dataset, 1, seed=7)
    torch.manual_seed(2)
    assert [sample.sample for sample in views.__getitems__(list(range(12)))] == expected
