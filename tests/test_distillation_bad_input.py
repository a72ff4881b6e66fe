"""Bad input and bad luck where a student is distilled: one clear error each, and nothing on disk is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler, Subset

from lightning_ckptkd import (
    ArgumentError,
    CacheError,
    CheckpointHarvester,
    CkptKDError,
    DistillationModule,
    SnapshotError,
    TeacherCache,
    TeacherError,
)
from lightning_ckptkd.teachers import LogitCache, Route
from tests.projects import DigitsData, Project, digits, make_trainer
from tests.reliability.faults import watched_disk
from tests.teachers.test_cached_distillation import Data, Noisy, distil, runs, student, weights

__all__ = ["runs"]
CHUNK = 32


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three chunks of the 96 samples."""
    monkeypatch.setattr(LogitCache.open.__func__, "__defaults__", (CHUNK,))


def on_disk(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """What tells that nobody wrote: name to inode, time and content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


DIGITS = digits(0, 64)


class Unsized(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return DIGITS[index]


class OwnWay(DataLoader[Any]):
    def __iter__(self) -> Any:
        return super().__iter__()


class Batches:
    """An iterable that is no DataLoader."""

    def __iter__(self) -> Iterator[Any]:
        yield from DataLoader(DIGITS, 32)


class Given(LightningDataModule):
    def __init__(self, loader: Any) -> None:
        super().__init__()
        self.loader = loader

    def train_dataloader(self) -> Any:
        return self.loader

    def val_dataloader(self) -> Any:
        return DataLoader(DIGITS, 32)


@pytest.mark.parametrize(
    ("loader", "reason"),
    [
        (DataLoader(Unsized(), 32, sampler=range(64)), r"a dataset \(Unsized\) without a length. Give it __len__"),
        (
            DataLoader(DIGITS, batch_sampler=BatchSampler(SequentialSampler(DIGITS), 32, False)),
            "has a batch sampler of its own.*Give it batch_size= and, if need be, sampler=",
        ),
        (
            DataLoader(DIGITS, batch_size=None, sampler=[slice(0, 32), slice(32, 64)]),
            "batch_size=None, so that batches are not drawn",
        ),
        (OwnWay(DIGITS, 32), "is a OwnWay, which makes batches in its own way. Give a plain DataLoader"),
        (Batches(), "is a Batches. Give a torch DataLoader"),
    ],
)
def test_data_without_a_length_or_an_order(tmp_path: Path, harvest: Path, loader: Any, reason: str) -> None:
    with pytest.raises(ArgumentError, match=f"The training dataloader.*{reason}.*, or train without the cache"):
        distil(tmp_path, harvest, Given(loader), cache=TeacherCache(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()
    distil(tmp_path, harvest, Given(loader), epochs=1)  # the teachers themselves take it


class Changing(Noisy):
    """Digits of which one changes when some number of samples was read."""

    def __init__(self, sample: int, after: int) -> None:
        super().__init__(random=False)
        self.sample, self.after, self.reads = sample, after, 0

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads += 1
        image, label = super().__getitem__(index)
        return (image + 1e-6, label) if index == self.sample and self.reads > self.after else (image, label)


@pytest.mark.parametrize("after", [96, 192, 250])
def test_a_sample_that_changes_while_the_student_learns(tmp_path: Path, harvest: Path, after: int) -> None:
    """Between filling and the first epoch, and between two epochs."""
    cache = TeacherCache(tmp_path / "cache")
    with pytest.raises(CacheError, match=rf"Sample 41 \(view 0\) is not the one .*{cache.dirpath}: the dataset or its"):
        distil(tmp_path, harvest, Data(Changing(41, after)), epochs=3, cache=cache)
    before = on_disk(tmp_path / "cache")
    distil(tmp_path, harvest, Data(Changing(41, 10**9)), cache=cache)
    assert on_disk(tmp_path / "cache").keys() == before.keys()


def test_a_sample_that_changed_since_the_last_run(tmp_path: Path, harvest: Path, runs: list[int]) -> None:
    cache = TeacherCache(tmp_path / "cache")
    whole = distil(tmp_path, harvest, Data(Changing(41, 10**9), shuffle=False), cache=cache)
    before = on_disk(tmp_path / "cache")
    runs.clear()
    for data in (Data(Changing(41, 0)), Data(Changing(41, 0), num_workers=1)):
        with pytest.raises(CacheError, match=r"Sample 41 \(view 0\) .* delete .* to fill it again"):
            distil(tmp_path, harvest, data, cache=cache)
    chunks = {name: value for name, value in before.items() if "lock" not in name}
    assert runs == [] and chunks.items() <= on_disk(tmp_path / "cache").items()
    again = distil(tmp_path, harvest, Data(Changing(41, 10**9), shuffle=False), cache=cache)
    assert torch.equal(weights(again), weights(whole)), "the cache serves the data that it was made for as before"


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_a_full_disk(tmp_path: Path, harvest: Path, runs: list[int], chunk: int) -> None:
    data, cache = Data(Noisy(random=False)), TeacherCache(tmp_path / "cache")
    written = 0

    def fill_up(_: int, name: str) -> None:
        nonlocal written
        written += name == "replace" and (tmp_path / "cache").exists()
        if name == "write" and written == chunk + 1:  # the index and the chunks before it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    told = rf"{cache.dirpath}/chunk-00000{chunk}.* could not be written: No space left .* are free there. Make room"
    with watched_disk(fill_up), pytest.raises(SnapshotError, match=told):
        distil(tmp_path, harvest, data, cache=cache)
    before = on_disk(tmp_path / "cache")
    assert sorted(before) == ["cache.json", *(f"chunk-{n:06d}.safetensors" for n in range(chunk)), "rank-0/.lock"]
    runs.clear()
    distil(tmp_path, harvest, data, cache=cache)
    assert sum(runs) == 96 - CHUNK * chunk, "the chunks that are missing, and no other"
    after = on_disk(tmp_path / "cache")
    assert all(after[name] == before[name] for name in before if "lock" not in name)


def test_a_disk_that_is_full_from_the_start(tmp_path: Path, harvest: Path) -> None:
    cache = TeacherCache(tmp_path / "cache")

    def fill_up(_: int, name: str) -> None:
        if name in ("mkdir", "write"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with watched_disk(fill_up), pytest.raises(SnapshotError, match=r"cache.* can't be made: No space left.*another"):
        distil(tmp_path, harvest, Data(), cache=cache)
    distil(tmp_path, harvest, Data(), epochs=1, cache=cache)


def test_a_cache_from_another_harvest(tmp_path: Path, harvest: Path, runs: list[int]) -> None:
    torch.manual_seed(7)
    other = CheckpointHarvester(dirpath=tmp_path / "other")
    make_trainer(tmp_path, other).fit(Project(), DigitsData())
    cache = TeacherCache(tmp_path / "cache")
    distil(tmp_path, harvest, Data(), cache=cache)
    before = on_disk(tmp_path / "cache")
    runs.clear()
    others = [(tmp_path / "other", [3, 1], 0), (harvest, [3, 2], 1), (harvest, [1, 0], 0), (harvest, [1, 3], 0)]
    for folder, choice, place in others:
        told = (
            rf"{cache.dirpath} holds the logits of something else \(teachers\[{place}\]: cached .*Nothing was changed"
        )
        with pytest.raises(CacheError, match=told):
            distil(tmp_path, folder, Data(), cache=cache, choice=choice)
    assert on_disk(tmp_path / "cache") == before
    assert runs == []


@pytest.mark.parametrize(
    ("wrong", "message", "right"),
    [
        ({"top_k": 11}, r"top_k=11 is more than the teachers' 10 classes. Lower it or leave it out", {"top_k": 10}),
        ({"dtype": "fp16"}, r"A logit of .* is beyond fp16.*Use dtype='fp32'", {"dtype": "fp32"}),
    ],
)
def test_logits_that_can_not_be_stored(
    tmp_path: Path, harvest: Path, wrong: dict[str, Any], message: str, right: dict[str, Any]
) -> None:
    """What the error advises works in the same folder: nothing was stored there yet."""
    data = Data(Noisy(random=False, shift=10**6 if "dtype" in wrong else 0))
    with pytest.raises(ArgumentError, match=message):
        distil(tmp_path, harvest, data, cache=TeacherCache(tmp_path / "cache", **wrong))
    assert list(on_disk(tmp_path / "cache")) == ["rank-0/.lock"]
    distil(tmp_path, harvest, data, epochs=1, cache=TeacherCache(tmp_path / "cache", **right))


@pytest.mark.parametrize("cached", [True, False])
def test_a_schedule_that_names_a_snapshot_which_is_not_there(tmp_path: Path, harvest: Path, cached: bool) -> None:
    cache = TeacherCache(tmp_path / "cache") if cached else None
    schedule = Route({0: 1, 1: 7})
    module = DistillationModule(student(), Project(), harvest, choice=[3, 1], schedule=schedule, cache=cache)
    for _ in range(2):  # the same module again, as in a notebook
        with pytest.raises(
            ArgumentError, match=r"stages=.* names the epochs \[7\], but the teachers are of \[1, 3\].*choice="
        ):
            make_trainer(tmp_path, max_epochs=2).fit(module, Data())
    assert not (tmp_path / "cache").exists()


class NaNs(Noisy):
    """Digits of which one has NaN."""

    def __init__(self, *samples: int) -> None:
        super().__init__(random=False)
        self.images[torch.tensor(samples, dtype=torch.long), 0, 3, 3] = torch.nan


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("acceleration", ["none", "auto"])
def test_logits_that_are_not_finite_are_not_cached(
    tmp_path: Path, harvest: Path, runs: list[int], acceleration: str
) -> None:
    cache = TeacherCache(tmp_path / "cache", views=2)
    options: dict[str, Any] = {"cache": cache, "acceleration": acceleration}
    told = r"Teacher 0 \(SHA-256 .*gives nan for class 0 of item {} \(sample {}, view 0\).*Choose another teacher, or m"
    with pytest.raises(TeacherError, match=told.format(82, 41)):
        distil(tmp_path, harvest, Data(NaNs(41)), **options)
    assert len(list((tmp_path / "cache").glob("chunk*"))) == 2, "what was filled before stays"
    runs.clear()
    distil(tmp_path, harvest, Data(NaNs()), epochs=1, **options)  # it was mended
    if acceleration == "none":
        assert sum(runs) == 192 - 2 * CHUNK
    options["cache"] = TeacherCache(tmp_path / "subset")
    with pytest.raises(TeacherError, match=told.format(1, 1)):
        distil(tmp_path, harvest, Data(Subset(NaNs(41), [7, 41, 9])), **options)


@pytest.mark.parametrize("acceleration", ["none", "auto"])
def test_live_teachers_whose_logits_are_not_finite(tmp_path: Path, harvest: Path, acceleration: str) -> None:
    told = r"Teacher {} gives nan for class 0 of sample {} \(from 0\) of the batch. Choose another teacher .*mend the"
    options: dict[str, Any] = {"acceleration": acceleration}
    with pytest.raises(TeacherError, match=told.format(r"epoch 3 \(step 112\)", 5)):
        distil(tmp_path, harvest, Data(NaNs(5), shuffle=False), **options)
    with pytest.raises(TeacherError, match=told.format(r"epoch 1 \(step 56\)", 9)):  # in the second batch
        distil(tmp_path, harvest, Data(NaNs(41), shuffle=False), schedule=Route({0: 1}), **options)
    with pytest.raises(TeacherError, match=told.format(r"epoch 3 \(step 112\)", 0)):
        distil(tmp_path, harvest, Data(Noisy(random=False, shift=torch.inf)), **options)
    distil(tmp_path, harvest, Data(NaNs(5)), alpha=1.0, epochs=1, **options)  # nobody asks the teachers


class Returns(nn.Module):
    """A student whose output is made into something else."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.network, self.change = student(), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.network(x))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x, x), r"Returns returns tuple of 2 .*, not a tensor.* with student_logits_key: an index"),
        (lambda x: {"scores": x}, r"Returns returns a mapping with 'scores'.* with student_logits_key: an index"),
        (
            lambda x: x[:, :, None],
            r"\(N, K\), but those of the student \(Returns\) have \(32, 10, 1\).* with student_logits_key",
        ),
        (
            lambda x: x[:, 0],
            r"the shape \(N, K\), but those of the student \(Returns\) have \(32,\).*Give a network that returns",
        ),
        (
            lambda x: x.sum(),
            r"the shape \(N, K\), but those of the student \(Returns\) have \(\).*Give a network that returns",
        ),
        (lambda x: x[1:], r"\(32, K\), but those of the student \(Returns\) have \(31, 10\). Give a network"),
        (lambda x: x[:, 1:], r"The student has 9 classes and the teachers .*have 10. Give the student the teachers'"),
    ],
)
def test_students_of_another_output(tmp_path: Path, harvest: Path, cached: bool, change: Any, message: str) -> None:
    cache = TeacherCache(tmp_path / "cache") if cached else None
    module = DistillationModule(Returns(change), Project(), harvest, choice=[3], acceleration="none", cache=cache)
    with pytest.raises(CkptKDError, match=message):
        make_trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(module, Data(Noisy(random=False)))


def test_the_part_of_a_students_output(tmp_path: Path, harvest: Path) -> None:
    options: dict[str, Any] = {"choice": [3], "acceleration": "none", "cache": TeacherCache(tmp_path / "cache")}
    network = Returns(lambda x: (None, x))
    module = DistillationModule(network, Project(), harvest, student_logits_key=1, **options)
    make_trainer(tmp_path, max_epochs=1).fit(module, Data())
    module = DistillationModule(network, Project(), harvest, student_logits_key=2, **options)
    with pytest.raises(ArgumentError, match=r"student_logits_key=2: Returns returns tuple of 2 .* Name the part"):
        make_trainer(tmp_path, max_epochs=1).fit(module, Data())


def test_teachers_that_give_another_number_of_rows(tmp_path: Path, harvest: Path) -> None:
    class Halves(Project):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[::2]

    for cache, told in (
        (None, r"batch of 32 samples should have logits of shape \(32, K\), but those of a teacher have \(16, 10\)"),
        (TeacherCache(tmp_path / "cache"), r"logits of shape \(1, 16, 10\) instead of \(1, 32, K\)"),
    ):
        module = DistillationModule(student(), Halves(), harvest, choice=[3], acceleration="none", cache=cache)
        with pytest.raises(CkptKDError, match=told):
            make_trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(module, Data())
