from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from lightning_ckptkd import ArgumentError, CacheError, SnapshotError, SnapshotStore, TeacherError
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.reading import BatchReader
from lightning_ckptkd.teachers import CacheKey, LogitCache, TeacherEnsemble, Views, fill, fingerprint, view_loader
from lightning_ckptkd.trainer.seeding import random_state
from tests.projects import Project
from tests.reliability.faults import watched_disk
from tests.teachers.augmented import Augmented, Draws, augmentation

V, SEED, CHUNK = 2, 11, 16
DATASET = Augmented(30, augmentation())  # 60 items: three chunks of 16 and one of 12
KEY = CacheKey(("a" * 64, "b" * 64), 30, fingerprint(DATASET), V, SEED, "fp32")


class Counted:
    """Two teachers that are no networks; keeps how many samples they saw, fails when told."""

    def __init__(self, fail_after: int = 10**9, classes: int = 3) -> None:
        self.seen = 0
        self.fail_after, self.classes = fail_after, classes

    def __call__(self, batch: Batch) -> Tensor:
        inputs = batch.inputs
        if self.seen + len(inputs) > self.fail_after:
            raise KeyboardInterrupt
        self.seen += len(inputs)
        features = inputs.flatten(1)[:, : self.classes]
        return torch.stack([features, -2 * features])


def filled(cache: LogitCache, teachers: Callable[[Batch], Tensor], dataset: Any = DATASET, **options: Any) -> int:
    collate = options.pop("collate_fn", default_collate)
    options = {"batch_size": 7, "progress": False, **options}
    return fill(cache, Views(dataset, V, SEED), teachers, BatchReader(), collate, **options)


def expected(teachers: Counted) -> Tensor:
    """Logits (M, 60, K), one item after another."""
    views = Views(DATASET, V, SEED)
    return teachers(Batch(torch.stack([views[item].sample[0] for item in range(60)])))


@pytest.mark.parametrize("batch_size", [7, 16, 100])
def test_each_item_once(tmp_path: Path, batch_size: int) -> None:
    cache, teachers = LogitCache.open(tmp_path, KEY, CHUNK), Counted()
    assert filled(cache, teachers, batch_size=batch_size) == teachers.seen == 60
    cache.verify()
    assert torch.equal(cache.read(torch.arange(60)), expected(Counted()))
    assert filled(LogitCache.open(tmp_path, KEY), teachers) == 0
    assert teachers.seen == 60, "a cache that is full costs nothing"


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker:UserWarning")
def test_workers_fill_the_same(tmp_path: Path) -> None:
    cache = LogitCache.open(tmp_path, KEY, CHUNK)
    filled(cache, Counted(), num_workers=2)
    cache.verify()
    assert torch.equal(cache.read(torch.arange(60)), expected(Counted()))


def test_what_training_reads_is_what_the_teachers_say(tmp_path: Path, store: SnapshotStore) -> None:
    """Real teachers, on the batches that training gives: other sizes and another order than when filling."""
    ensemble = TeacherEnsemble.load(store, store.snapshots[:2], Project())
    key = replace(KEY, teachers=tuple(snapshot.sha256 for snapshot in store.snapshots[:2]))
    cache = LogitCache.open(tmp_path, key, CHUNK)
    filled(cache, ensemble)
    cache.verify()
    loader = view_loader(DataLoader(DATASET, 8, shuffle=True), V, SEED)
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            cache.read(batch.items, batch.checksums)
            # sums of 72 products in fp32, in an order that depends on the size of the batch
            torch.testing.assert_close(cache.read(batch.items), ensemble(Batch(batch.batch[0])), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("done", [0, 1, 3])
def test_goes_on_where_it_was_interrupted(tmp_path: Path, done: int) -> None:
    teachers = Counted(fail_after=CHUNK * done + 3)
    with pytest.raises(KeyboardInterrupt):
        filled(LogitCache.open(tmp_path, KEY, CHUNK), teachers, batch_size=1)
    rest, cache = Counted(), LogitCache.open(tmp_path, KEY, CHUNK)
    assert cache.missing() == list(range(done, 4))
    assert filled(cache, rest) == rest.seen == 60 - CHUNK * done
    cache.verify()
    assert torch.equal(cache.read(torch.arange(60)), expected(Counted()))


def test_a_chunks_batches_do_not_depend_on_what_is_missing(tmp_path: Path) -> None:
    """Since the last bits of logits depend on the size of the batch."""
    sizes: list[int] = []

    def teachers(batch: Batch) -> Tensor:
        sizes.append(len(batch))
        return Counted()(batch)

    filled(LogitCache.open(tmp_path, KEY, CHUNK), teachers)
    assert sizes == [7, 7, 2] * 3 + [7, 5]
    sizes.clear()
    (tmp_path / "chunk-000001.safetensors").unlink()
    filled(LogitCache.open(tmp_path, KEY), teachers)
    assert sizes == [7, 7, 2]


def test_a_chunk_that_was_deleted_is_filled_again(tmp_path: Path) -> None:
    filled(LogitCache.open(tmp_path, KEY, CHUNK), Counted())
    (tmp_path / "chunk-000001.safetensors").unlink()
    (tmp_path / "chunk-000003.safetensors").unlink()
    teachers, cache = Counted(), LogitCache.open(tmp_path, KEY)
    assert filled(cache, teachers) == teachers.seen == 16 + 12
    cache.verify()
    assert torch.equal(cache.read(torch.arange(60)), expected(Counted()))


def test_two_ranks(tmp_path: Path) -> None:
    teachers = [Counted(), Counted()]
    for rank in (1, 0):
        filled(LogitCache.open(tmp_path, KEY, CHUNK), teachers[rank], rank=rank, ranks=2)
    assert [counted.seen for counted in teachers] == [32, 28]
    cache = LogitCache.open(tmp_path, KEY)
    assert cache.missing() == []
    cache.verify()
    assert torch.equal(cache.read(torch.arange(60)), expected(Counted()))


def test_a_full_disk(tmp_path: Path) -> None:
    files = 0

    def fill_up(call: int, name: str) -> None:
        nonlocal files
        files += name == "replace"
        if name == "write" and files == 3:  # the index and two chunks
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = LogitCache.open(tmp_path, KEY, CHUNK)
    with watched_disk(fill_up), pytest.raises(SnapshotError, match=r"chunk-000002.*No space left.*Make room"):
        filled(cache, Counted())
    teachers = Counted()
    assert cache.missing() == [2, 3]
    assert filled(cache, teachers) == teachers.seen == 28


def test_samples_and_transforms_that_changed(tmp_path: Path) -> None:
    cache = LogitCache.open(tmp_path, KEY, CHUNK)
    filled(cache, Counted())
    cache.verify()
    changed = Augmented(30, augmentation())
    changed.labels[20] += 1
    whitened = Augmented(30, lambda image: augmentation()(image) + 1e-3)
    for dataset, item in ((changed, 41), (whitened, 0)):
        item_now = Views(dataset, V, SEED)[item]
        with pytest.raises(CacheError, match=rf"Sample {item // 2} \(view {item % 2}\) .* or its transforms changed"):
            cache.read(torch.tensor([item]), torch.tensor([item_now.checksum]))
    other_item = Views(changed, V, SEED)[3]
    cache.read(torch.tensor([3]), torch.tensor([other_item.checksum]))


def test_non_finite_logits_are_named(tmp_path: Path) -> None:
    def teachers(batch: Batch) -> Tensor:
        return Counted()(batch) / (batch.inputs - bad).flatten(1).any(1)[:, None].float()

    bad = Views(DATASET, V, SEED)[37].sample[0]
    cache = LogitCache.open(tmp_path, KEY, CHUNK)
    with pytest.raises(TeacherError, match=r"Teacher 0 \(SHA-256 aaaa.* of item 37 \(sample 18, view 1\)"):
        filled(cache, teachers)
    assert cache.missing() == [2, 3], "the chunks before it stay"


def test_random_states_are_as_before(tmp_path: Path) -> None:
    before = random_state()
    filled(LogitCache.open(tmp_path, KEY, CHUNK), lambda x: Counted()(x) + torch.rand(()))
    assert random_state() == before


def test_no_gradients(tmp_path: Path) -> None:
    weight = torch.ones((), requires_grad=True)

    def teachers(batch: Batch) -> Tensor:
        assert not (batch.inputs * weight).requires_grad
        return Counted()(batch)

    assert filled(LogitCache.open(tmp_path, KEY, CHUNK), teachers) == 60


def doubled(batch: Any) -> Any:
    """Two crops of a sample, as for contrastive losses."""
    return tuple(torch.cat([part, part]) for part in batch)


def test_what_does_not_fit(tmp_path: Path) -> None:
    cache = LogitCache.open(tmp_path, KEY, CHUNK)
    with pytest.raises(ArgumentError, match="cache is for 60 items, 2 views a sample and seed 11; these views are 62"):
        filled(cache, Counted(), Augmented(31))
    with pytest.raises(ArgumentError, match="these views are 60, 2 and 12"):
        fill(cache, Views(DATASET, V, 12), Counted(), BatchReader(), default_collate, batch_size=7)
    with pytest.raises(ArgumentError, match=r"makes a batch of the shapes .* of 7 samples .*keeps all samples"):
        filled(cache, Counted(), collate_fn=lambda samples: default_collate(samples[1:] or samples))
    for wrong in (lambda x: Counted()(x)[:1], lambda x: Counted()(x)[0], lambda x: Counted()(x)[:, 1:]):
        with pytest.raises(TeacherError, match=r"instead of \(2, 7, K\)"):
            filled(cache, wrong)
    for unpack, left in ((lambda batch: (batch[0][1:], batch[1][1:]), 6), (doubled, 14)):
        reader = BatchReader(unpack_batch=unpack)
        told = f"A batch of 7 samples holds {left} once it is collated and unpacked, .*Let collate_fn and unpack_batch"
        with pytest.raises(ArgumentError, match=told):
            fill(cache, Views(DATASET, V, SEED), Counted(), reader, default_collate, batch_size=7, progress=False)
    with pytest.raises(ArgumentError, match="draws random numbers"):
        filled(
            cache, Counted(), collate_fn=lambda samples: [part * torch.rand(()) for part in default_collate(samples)]
        )
    assert cache.missing() == [0, 1, 2, 3]
    reader = BatchReader(unpack_batch=lambda batch: (batch[0], batch[1]))  # keeps each sample once
    assert fill(cache, Views(DATASET, V, SEED), Counted(), reader, default_collate, batch_size=7, progress=False) == 60


def test_a_sample_that_can_not_be_read(tmp_path: Path) -> None:
    key = replace(KEY, samples=6, dataset=())
    with pytest.raises(ValueError, match="sample 5 can't be read"):
        filled(LogitCache.open(tmp_path, key), Counted(), Draws("torch"), batch_size=12)


def test_the_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(LogitCache.open(tmp_path / "shown", KEY, CHUNK), Counted(), progress=True)
    assert "60/60" in capsys.readouterr().err
    filled(LogitCache.open(tmp_path / "other", KEY, CHUNK), Counted(), progress=True, rank=1, ranks=2)
    filled(LogitCache.open(tmp_path / "quiet", KEY, CHUNK), Counted())
    assert capsys.readouterr().err == ""
