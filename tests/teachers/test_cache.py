from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset
from torchvision.transforms import v2

from lightning_ckptkd import ArgumentError, CacheError, SnapshotError, TeacherError
from lightning_ckptkd.teachers import CacheKey, LogitCache, TeacherCache, fingerprint
from tests.projects import digits
from tests.reliability.faults import watched_disk
from tests.teachers.augmented import Augmented

KEY = CacheKey(("a" * 64, "b" * 64), samples=5, dataset=("Digits: 5 samples", "transform: Crop(8)"), views=2, seed=3)
CHUNK = 4  # 10 items: two whole chunks and one of two
CHECKSUMS = torch.arange(10) * 400_000_000  # beyond 32 bits with a sign


def made_logits(classes: int = 7, scale: float = 5) -> Tensor:
    """Shape (10, 2, classes)."""
    return scale * torch.randn(10, 2, classes, generator=torch.Generator().manual_seed(0))


def filled(folder: Path, key: CacheKey, logits: Tensor) -> LogitCache:
    cache = LogitCache.open(folder, key, CHUNK)
    with cache.filling():
        for chunk in cache.missing():
            items = cache.items(chunk)
            cache.write(chunk, logits[items.start : items.stop], CHECKSUMS[items.start : items.stop])
    cache.verify()
    return cache


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


ORDER = torch.tensor([9, 0, 4, 3, 3, 8, 1, 5])


def test_fp32_is_exact_in_any_order(tmp_path: Path) -> None:
    logits = made_logits()
    cache = filled(tmp_path, replace(KEY, dtype="fp32"), logits)
    assert torch.equal(cache.read(ORDER), logits[ORDER].transpose(0, 1))
    assert torch.equal(cache._gather(ORDER)["checksums"], CHECKSUMS[ORDER])
    assert cache.read(ORDER[:0]).shape == (2, 0, 7)
    assert (cache.num_chunks, cache.shape, cache.items(2)) == (3, (7,), range(8, 10))


def test_fp16_is_within_half_a_step(tmp_path: Path) -> None:
    logits = made_logits()
    logits[0, 0, :4] = torch.tensor([65504.0, -65504.0, 1e-6, 0.0])
    found = filled(tmp_path, KEY, logits).read(torch.arange(10)).transpose(0, 1)
    # half a unit in the last of 11 binary digits; below 2^-14 the steps are 2^-24
    assert ((found - logits).abs() <= torch.maximum(logits.abs() * 2**-11, torch.tensor(2.0**-25))).all()
    assert found.dtype == torch.float32
    assert not torch.equal(found, logits), "it is stored as fp16"


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("classes", [7, 40_000])
def test_top_k(tmp_path: Path, dtype: str, classes: int) -> None:
    logits = made_logits(classes)
    logits[:, :, -1] += 100  # the last class is kept: its index needs 17 bits among 40,000
    cache = filled(tmp_path, replace(KEY, dtype=dtype, top_k=3), logits)
    stored = safetensors.torch.load_file(tmp_path / "chunk-000000.safetensors")
    assert stored["indices"].dtype == (torch.int16 if classes == 7 else torch.int32)
    found = cache.read(torch.arange(10)).transpose(0, 1)
    values, indices = logits.topk(3, dim=2)
    kept = found.gather(2, indices)
    assert ((kept - values).abs() <= values.abs() * (2**-11 if dtype == "fp16" else 0)).all()
    others = found.scatter(2, indices, torch.nan)
    others = others[~others.isnan()].view(10, 2, classes - 3)
    assert torch.equal(others, others[:, :, :1].expand_as(others)), "what was left out is spread evenly"
    left_out = logits.double().scatter(2, indices, -torch.inf).logsumexp(2)
    # fp32 sums of up to 40,000 terms, whose rounding errors are 2^-24 each and mostly cancel
    torch.testing.assert_close(others.double().logsumexp(2), left_out, rtol=0, atol=1e-4)


def test_top_k_of_all_classes_is_exact_and_of_more_is_refused(tmp_path: Path) -> None:
    logits = made_logits()
    cache = filled(tmp_path / "all", replace(KEY, dtype="fp32", top_k=7), logits)
    assert torch.equal(cache.read(ORDER), logits[ORDER].transpose(0, 1))
    with pytest.raises(ArgumentError, match="top_k=8 is more than the teachers' 7 classes"):
        filled(tmp_path / "more", replace(KEY, top_k=8), logits)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"teachers": ("b" * 64, "a" * 64)}, r"teachers\[0\]: cached 'aaaa.*', wanted 'bbbb.*teachers\[1\]"),
        ({"teachers": ("a" * 64,)}, r"teachers\[1\]: cached 'bbbb.*, wanted None"),
        ({"samples": 6}, "samples: cached 5, wanted 6"),
        ({"dataset": ("Digits: 5 samples", "transform: Crop(9)")}, r"dataset\[1\]: cached 'transform: Crop\(8\)', wan"),
        ({"views": 1}, "views: cached 2, wanted 1"),
        ({"seed": 4}, "seed: cached 3, wanted 4"),
        ({"dtype": "fp32"}, "dtype: cached 'fp16', wanted 'fp32'"),
        ({"top_k": 2}, "top_k: cached None, wanted 2"),
        ({"network": "ResNet, bf16"}, "network: cached '', wanted 'ResNet, bf16'"),
        ({"packages": {"torch": "0.1"}}, f"packages.torch: cached '{torch.__version__[:4]}.*', wanted '0.1'"),
    ],
)
def test_another_key_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    filled(tmp_path, KEY, made_logits())
    before = files(tmp_path)
    with pytest.raises(CacheError, match=rf"{tmp_path} holds the logits of something else \({told}.*another folder"):
        LogitCache.open(tmp_path, replace(KEY, **change))
    assert files(tmp_path) == before
    assert replace(KEY, **change).digest() != KEY.digest()
    LogitCache.open(tmp_path, KEY).verify()


def test_long_texts_are_told_where_they_differ(tmp_path: Path) -> None:
    filled(tmp_path, replace(KEY, network="x" * 5000 + "Linear(7)"), made_logits())
    with pytest.raises(CacheError, match=r"network: cached '…x+Linear\(7\)', wanted '…x+Linear\(8\)'"):
        LogitCache.open(tmp_path, replace(KEY, network="x" * 5000 + "Linear(8)"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"teachers": ()}, "at least one teacher"),
        ({"samples": 0}, "samples should be 1"),
        ({"views": 0}, "views should be 1"),
        ({"dtype": "bf16"}, "dtype='bf16' is unknown"),
        ({"top_k": 0}, "top_k should be 1"),
    ],
)
def test_bad_keys(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        replace(KEY, **change)


def test_fingerprints() -> None:
    def crop(size: int) -> v2.Compose:
        return v2.Compose([v2.RandomCrop(size), v2.Lambda(lambda x: x)])

    first = Augmented(8, crop(8))
    datasets: list[Any] = [
        first,
        Augmented(9, crop(8)),
        Augmented(8, crop(7)),
        Augmented(8),
        digits(0, 8),
        Subset(first, [0, 1, 2]),
        Subset(first, [0, 1, 3]),
        Subset(Augmented(8, crop(7)), [0, 1, 2]),
        Subset(Subset(first, range(4)), [0, 1, 2]),
        ConcatDataset([first, digits(0, 8)]),
    ]
    found = [fingerprint(dataset) for dataset in datasets]
    assert len(set(found)) == len(found)
    assert fingerprint(Augmented(8, crop(8))) == found[0]
    functions = [Augmented(8, lambda x: x) for _ in range(2)]
    assert repr(functions[0].transform) != repr(functions[1].transform)
    assert fingerprint(functions[0]) == fingerprint(functions[1]), "no address is in it"
    assert fingerprint(Subset(first, torch.tensor([0, 1, 2]))) == found[5]
    assert found[5][1:] == found[0]
    assert "RandomCrop(size=(8, 8)" in found[0][1]
    loop = Augmented(8)
    loop.dataset = loop
    assert len(fingerprint(loop)) == 1


def test_the_index_is_readable_and_comes_first(tmp_path: Path) -> None:
    cache = LogitCache.open(tmp_path / "new" / "cache", KEY, CHUNK)
    assert not (tmp_path / "new").exists(), "a folder without logits is for any"
    with cache.filling(), watched_disk(interrupt_at("replace", 2)), pytest.raises(KeyboardInterrupt):
        cache.write(0, made_logits()[:4], CHECKSUMS[:4])
    assert list(files(tmp_path / "new" / "cache")) == ["cache.json"]
    document = json.loads((tmp_path / "new" / "cache" / "cache.json").read_text())
    assert document["format"] == "lightning_ckptkd.logit_cache"
    assert document["key"]["teachers"] == list(KEY.teachers)
    assert document["key"]["packages"]["torch"] == version("torch")
    assert document["chunk_items"] == CHUNK
    assert LogitCache.open(tmp_path / "new" / "cache", KEY, chunk_items=7).chunk_items == CHUNK


def interrupt_at(name: str, count: int) -> Callable[[int, str], None]:
    """Ahead of a call of this name to the disk, the ``count``-th."""
    left = count

    def before(_: int, found: str) -> None:
        nonlocal left
        left -= found == name
        if found == name and left == 0:
            raise KeyboardInterrupt

    return before


def test_a_cache_for_something_else_that_came_meanwhile(tmp_path: Path) -> None:
    late = LogitCache.open(tmp_path, replace(KEY, seed=4), CHUNK)
    filled(tmp_path, KEY, made_logits())
    before = files(tmp_path)
    with (
        pytest.raises(CacheError, match=r"holds the logits of something else \(seed: cached 3, wanted 4"),
        late.filling(),
    ):
        pass
    assert files(tmp_path) == before
    same = LogitCache.open(tmp_path / "same", KEY, 7)
    filled(tmp_path / "same", KEY, made_logits())
    with same.filling():
        assert same.missing() == [] and same.chunk_items == CHUNK


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b'{"format": "lightning_ckptkd.harvest", "version": 1}',
        b'{"format": "lightning_ckptkd.logit_cache", "version": 2}',
        b'{"format": "lightning_ckptkd.logit_cache", "version": 1, "chunk_items": "4", "key": {}}',
        b'{"format": "lightning_ckptkd.logit_cache", "version": 1, "chunk_items": 4, "key": []}',
        b'{"format": "lightning_ckptkd.logit_cache", "version": 1, "chunk_items": 4, "key": {}}',
    ],
)
def test_damaged_indices(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache.json").write_bytes(content)
    with pytest.raises(CacheError, match=f"{tmp_path}.*(Delete the folder|delete that one)"):
        LogitCache.open(tmp_path, KEY)
    assert files(tmp_path) == {"cache.json": content}


def test_folders_that_can_not_be(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="Give a local folder"):
        LogitCache.open("memory://cache", KEY)
    with pytest.raises(ArgumentError, match="chunk_items should be 1 or more, got 0"):
        LogitCache.open(tmp_path, KEY, 0)
    filled(tmp_path, KEY, made_logits())
    index = tmp_path / "cache.json"
    index.write_text(index.read_text().replace('"chunk_items": 4', '"chunk_items": 0'))
    with pytest.raises(CacheError, match="chunks of 0 items"):
        LogitCache.open(tmp_path, KEY)


def test_each_rank_has_its_share(tmp_path: Path) -> None:
    logits = made_logits()
    caches = [LogitCache.open(tmp_path, KEY, CHUNK) for _ in range(2)]
    shares = [cache.missing(rank, 2) for rank, cache in enumerate(caches)]
    assert shares == [[0, 2], [1]]
    with caches[0].filling(0), caches[1].filling(1):
        for cache, share in zip(caches, shares, strict=True):
            for chunk in share:
                part = slice(cache.items(chunk).start, cache.items(chunk).stop)
                cache.write(chunk, logits[part], CHECKSUMS[part])
    assert [cache.missing(rank, 2) for rank, cache in enumerate(caches)] == [[], []]
    for cache in caches:
        cache.verify()
        assert torch.equal(cache.read(ORDER), logits[ORDER].transpose(0, 1).half().float())


def test_one_process_fills_a_share(tmp_path: Path) -> None:
    cache = LogitCache.open(tmp_path, KEY, CHUNK)
    with cache.filling(1), pytest.raises(SnapshotError, match="is being written"), cache.filling(1):
        pass
    with pytest.raises(ArgumentError, match="within `with cache"):
        cache.write(0, made_logits()[:4], CHECKSUMS[:4])


def test_leftovers_of_the_same_rank_are_cleaned(tmp_path: Path) -> None:
    cache = LogitCache.open(tmp_path, KEY, CHUNK)

    def kill(call: int, name: str) -> None:
        if name in ("replace", "unlink"):
            raise KeyboardInterrupt

    def leftovers() -> set[Path]:
        return set(tmp_path.glob(".*.tmp"))

    left = []
    for rank in (0, 1):
        before = leftovers()
        with watched_disk(kill), pytest.raises(KeyboardInterrupt), cache.filling(rank):
            cache.write(0, made_logits()[:4], CHECKSUMS[:4])
        left.append(leftovers() - before)
    assert [len(paths) for paths in left] == [1, 1]
    with cache.filling(0):
        assert leftovers() == left[1], "the other rank may still be writing"
        assert cache.missing() == [0, 1, 2], "a leftover is no chunk"


def chunk(folder: Path, number: int) -> Path:
    return folder / f"chunk-{number:06d}.safetensors"


def damage(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        chunk(folder, 1).write_bytes(change(chunk(folder, 1).read_bytes()))

    return apply


def swap(folder: Path) -> None:
    first, second = chunk(folder, 0).read_bytes(), chunk(folder, 1).read_bytes()
    assert len(first) == len(second)
    chunk(folder, 0).write_bytes(second)
    chunk(folder, 1).write_bytes(first)


def link(folder: Path) -> None:
    shutil.move(chunk(folder, 1), folder / "elsewhere")
    chunk(folder, 1).symlink_to(folder / "elsewhere")


def pipe(folder: Path) -> None:
    chunk(folder, 1).unlink()
    os.mkfifo(chunk(folder, 1))


def from_another_cache(folder: Path) -> None:
    filled(folder / "other", replace(KEY, seed=4), made_logits())
    shutil.copy(chunk(folder / "other", 1), folder)


HOSTILE = (2**63).to_bytes(8, "little") + b"{" * 100_000


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (damage(lambda data: data[:-1]), "was cut or extended"),
        (damage(lambda data: data + b"\0"), "was cut or extended"),
        (damage(lambda data: b""), "no header"),
        (damage(lambda data: data[:5]), "no header"),
        (damage(lambda data: HOSTILE), "no header"),
        (damage(lambda data: b"\x80\x04" + data), "no header|holds another chunk"),
        (damage(lambda data: data[:-100] + bytes(100)), "does not have the SHA-256"),
        (damage(lambda data: data.replace(b'"F16"', b'"I16"')), "has a header that was changed"),
        (damage(lambda data: data.replace(b'"classes":"7"', b'"classes":"-"')), "has a header that was changed"),
        (swap, r"chunk-000000.safetensors holds another chunk than number 0"),
        (from_another_cache, "holds another chunk than number 1 of this cache"),
        (link, "can't be opened"),
        (pipe, "is not a regular file"),
    ],
)
def test_damage_is_found_before_use(tmp_path: Path, harm: Callable[[Path], None], told: str) -> None:
    logits = made_logits()
    cache = filled(tmp_path, KEY, logits)
    harm(tmp_path)
    with pytest.raises(CacheError, match=rf"({told}).*Delete that file; it is filled again"):
        LogitCache.open(tmp_path, KEY).verify()
    with pytest.raises(CacheError, match="only after verify"):
        LogitCache.open(tmp_path, KEY).read(ORDER)
    for number in (0, 1):
        chunk(tmp_path, number).unlink()
    assert cache.missing() == [0, 1]
    assert torch.equal(filled(tmp_path, KEY, logits).read(ORDER), logits[ORDER].transpose(0, 1).half().float())


@pytest.mark.parametrize("top_k", [None, 3])
def test_each_flipped_bit_is_found(tmp_path: Path, top_k: int | None) -> None:
    key = replace(KEY, top_k=top_k)
    cache = filled(tmp_path, key, made_logits())
    whole = chunk(tmp_path, 2).read_bytes()
    generator = numpy.random.default_rng(0)
    places = [*generator.choice(8 * len(whole), 60, replace=False), *range(0, 64, 4)]
    for place in map(int, places):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        chunk(tmp_path, 2).write_bytes(flipped)
        with pytest.raises(CacheError):
            cache.verify()
    chunk(tmp_path, 2).write_bytes(whole)
    cache.verify()


def test_resuming_notices_what_is_not_a_chunk(tmp_path: Path) -> None:
    filled(tmp_path, KEY, made_logits())
    damage(lambda data: data[:-1])(tmp_path)
    cache = LogitCache.open(tmp_path, KEY)
    assert cache.missing(0, 2) == [], "rank 0 has chunks 0 and 2"
    with pytest.raises(CacheError, match="cut or extended"):
        cache.missing(1, 2)


def test_chunks_that_are_missing(tmp_path: Path) -> None:
    cache = filled(tmp_path, KEY, made_logits())
    chunk(tmp_path, 1).unlink()
    with pytest.raises(CacheError, match=r"chunk-000001.safetensors is missing: the cache is not filled"):
        cache.verify()
    with pytest.raises(CacheError, match="only after verify"):
        cache.read(ORDER)
    with pytest.raises(CacheError, match="no chunk yet"):
        _ = LogitCache.open(tmp_path / "empty", KEY).shape


def test_what_was_written_since_is_verified_first(tmp_path: Path) -> None:
    cache = filled(tmp_path, KEY, made_logits())
    with cache.filling():
        cache.write(1, 2 * made_logits()[4:8], CHECKSUMS[4:8])
    with pytest.raises(CacheError, match="only after verify"):
        cache.read(ORDER)
    cache.verify()
    assert torch.equal(cache.read(torch.tensor([4])), 2 * made_logits()[4:5].half().float().transpose(0, 1))


def test_chunks_of_another_number_of_classes(tmp_path: Path) -> None:
    cache = filled(tmp_path, KEY, made_logits())
    chunk(tmp_path, 1).unlink()
    with cache.filling(), pytest.raises(CacheError, match="has 8 classes and others have 7"):
        cache.write(1, made_logits(8)[4:8], CHECKSUMS[4:8])
    assert not chunk(tmp_path, 1).exists()


def test_files_are_what_the_library_writes(tmp_path: Path) -> None:
    logits = made_logits()
    filled(tmp_path, replace(KEY, top_k=2), logits)
    stored = safetensors.torch.load_file(chunk(tmp_path, 2))
    assert {name: tuple(value.shape) for name, value in stored.items()} == {
        "checksums": (2,),
        "values": (2, 2, 2),
        "indices": (2, 2, 2),
        "rest": (2, 2),
    }
    assert torch.equal(stored["indices"].long(), logits[8:].topk(2).indices)
    assert torch.equal(stored["checksums"], CHECKSUMS[8:])


def test_samples_that_changed(tmp_path: Path) -> None:
    cache = filled(tmp_path, KEY, made_logits())
    cache.read(ORDER, CHECKSUMS[ORDER])
    changed = CHECKSUMS[ORDER].clone()
    changed[3:5] += 1  # item 3, twice
    with pytest.raises(CacheError, match=r"Sample 1 \(view 1\) is not the one .* not seeded .* delete"):
        cache.read(ORDER, changed)
    with pytest.raises(CacheError, match=r"Sample 1 \(view 1\) is not the one"):
        cache.read(ORDER, changed)
    assert torch.equal(cache.read(ORDER, CHECKSUMS[ORDER]), cache.read(ORDER))


def test_items_that_are_not_there(tmp_path: Path) -> None:
    cache = filled(tmp_path, KEY, made_logits())
    for items in ([-1], [10], [[1]]):
        with pytest.raises(ArgumentError, match="from 0 to 9"):
            cache.read(torch.tensor(items))


def test_logits_that_can_not_be_stored(tmp_path: Path) -> None:
    cache = LogitCache.open(tmp_path, KEY, CHUNK)
    logits = made_logits()
    logits[6, 1, 5] = torch.nan
    told = r"Teacher 1 \(SHA-256 bbbb.*\) gives nan for class 5 of item 6 \(sample 3, view 0\)"
    with cache.filling():
        with pytest.raises(TeacherError, match=told):
            cache.write(1, logits[4:8], CHECKSUMS[4:8])
        logits[6, 1, 5] = -torch.inf
        with pytest.raises(TeacherError, match="gives -inf"):
            cache.write(1, logits[4:8], CHECKSUMS[4:8])
        logits[6, 1, 5] = -65505
        with pytest.raises(ArgumentError, match=r"65505 is beyond fp16.*dtype='fp32'"):
            cache.write(1, logits[4:8], CHECKSUMS[4:8])
        for bad in (logits[4:7], logits[4:8, :1], logits[4:8, 0], logits[4:8, :, :0]):
            with pytest.raises(ArgumentError, match=r"Chunk 1 needs logits \(4, 2, K\)"):
                cache.write(1, bad, CHECKSUMS[4:8])
        with pytest.raises(ArgumentError, match="Chunk 1 needs"):
            cache.write(1, logits[4:8], CHECKSUMS[4:7])
    assert cache.missing() == [0, 1, 2]
    wide = LogitCache.open(tmp_path / "fp32", replace(KEY, dtype="fp32"), CHUNK)
    with wide.filling():
        wide.write(1, logits[4:8], CHECKSUMS[4:8])


@pytest.mark.parametrize("call", ["write", "fsync", "open"])
def test_a_full_disk_leaves_earlier_chunks(tmp_path: Path, call: str) -> None:
    logits = made_logits()
    cache = LogitCache.open(tmp_path, KEY, CHUNK)

    def fill_up(n: int, name: str) -> None:
        if name == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with cache.filling():
        cache.write(0, logits[:4], CHECKSUMS[:4])
        told = (
            r"chunk-000001.safetensors could not be written: No space left.* needs \d+ bytes, \d+ are free.*Make room"
        )
        with watched_disk(fill_up), pytest.raises(SnapshotError, match=told):
            cache.write(1, logits[4:8], CHECKSUMS[4:8])
    assert not list(tmp_path.glob(".*.tmp"))
    assert 0 not in LogitCache.open(tmp_path, KEY).missing()
    assert torch.equal(filled(tmp_path, KEY, logits).read(ORDER), logits[ORDER].transpose(0, 1).half().float())


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_cache_is_not_loaded_as_a_whole(tmp_path: Path) -> None:
    key = replace(KEY, samples=4096, dtype="fp32")
    cache = LogitCache.open(tmp_path, key, 4096)
    with cache.filling():
        for number in range(2):
            cache.write(number, torch.full((4096, 2, 512), float(number)), torch.zeros(4096))
    size = sum(path.stat().st_size for path in tmp_path.glob("chunk*"))
    assert size > 2**25
    descriptors = open_files()
    before = Path("/proc/self/statm").read_text().split()[1]
    cache.verify()
    found = cache.read(torch.tensor([1, 8000]))
    grown = (int(Path("/proc/self/statm").read_text().split()[1]) - int(before)) * os.sysconf("SC_PAGE_SIZE")
    assert grown < size / 4
    assert found[:, :, 0].tolist() == [[0, 1], [0, 1]]
    assert open_files() == descriptors + 2
    del cache
    assert open_files() == descriptors


def test_a_cache_of_many_chunks_keeps_few_files_open(tmp_path: Path) -> None:
    key = replace(KEY, samples=150, views=1)
    logits = torch.randn(150, 2, 3)
    cache = LogitCache.open(tmp_path, key, 1)
    with cache.filling():
        for number in range(150):
            cache.write(number, logits[number : number + 1], torch.tensor([number]))
    cache.verify()
    before = open_files()
    for items in (torch.arange(150), torch.arange(149, -1, -1)):
        assert torch.equal(cache.read(items, items), logits[items].transpose(0, 1).half().float())
        assert open_files() == before + 128


def changed_row(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    with path.open("r+b") as file:  # in place, as a map would see it
        file.write(data)


def cut_short(path: Path) -> None:
    os.truncate(path, 100)


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    other.replace(path)


@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (changed_row, "changed in row 3 since it was verified"),
        (cut_short, "was cut since it was opened"),
        (Path.unlink, "is missing"),
        (replaced, "changed in row"),
    ],
)
def test_what_changes_after_it_was_verified(
    tmp_path: Path, harm: Callable[[Path], None], told: str, read_before: bool
) -> None:
    """A map would give what is there now, and end the process where nothing is."""
    logits, path = made_logits(), tmp_path / "chunk-000001.safetensors"
    cache = filled(tmp_path, KEY, logits)
    right = logits[ORDER].transpose(0, 1).half().float()
    if read_before:
        assert torch.equal(cache.read(ORDER, CHECKSUMS[ORDER]), right)
    harm(path)
    if read_before and harm in (Path.unlink, replaced):  # the file that was verified is still open
        assert torch.equal(cache.read(ORDER), right)
        return
    with pytest.raises(CacheError, match=rf"{path} {told}"):
        cache.read(torch.tensor([7]))
    assert torch.equal(cache.read(torch.tensor([0, 9])), logits[[0, 9]].transpose(0, 1).half().float())
    path.unlink(missing_ok=True)  # the remedy
    assert torch.equal(filled(tmp_path, KEY, logits).read(ORDER), right)


def test_a_disk_that_fails_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = filled(tmp_path, KEY, made_logits())

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CacheError, match=r"chunk-000000.safetensors can't be read \(Input/output error\)"):
        cache.read(torch.tensor([0]))


@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("chunks", [0, 1, 2, 3])
def test_what_fits_into_memory_is_read_once(
    tmp_path: Path, top_k: int | None, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = replace(KEY, top_k=top_k)
    cache = filled(tmp_path, key, made_logits())
    expected = cache.read(ORDER, CHECKSUMS[ORDER])
    row_bytes = 8 + 2 * 7 * 2 if top_k is None else 8 + 2 * (3 * 2 + 3 * 2 + 4)
    memory = row_bytes * min(CHUNK * chunks, 10)
    fits = torch.isin(ORDER // CHUNK, torch.arange(chunks))
    cache.verify(memory)
    assert torch.equal(cache.read(ORDER, CHECKSUMS[ORDER]), expected)
    with pytest.raises(CacheError, match=r"Sample 4 \(view 1\)"):
        cache.read(ORDER, CHECKSUMS[ORDER.flip(0)].where(ORDER == 9, CHECKSUMS[ORDER]))
    read, real = list[int](), os.preadv

    def counted(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        read.append(sum(map(len, buffers)))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    assert torch.equal(cache.read(ORDER), expected)
    assert sum(read) == row_bytes * int((~fits).sum())
    for path in tmp_path.glob("chunk*"):
        path.write_bytes(bytes(path.stat().st_size))
    kept = ORDER[fits]
    assert torch.equal(cache.read(kept, CHECKSUMS[kept]), expected[:, fits]), "what was verified"
    if chunks < 3:
        with pytest.raises(CacheError, match="changed in row"):
            cache.read(ORDER)
    with pytest.raises(CacheError, match="Delete that file"):
        cache.verify(memory)


def test_a_byte_less_than_a_chunk_keeps_none(tmp_path: Path) -> None:
    cache = filled(tmp_path, KEY, made_logits())
    cache.verify(CHUNK * (8 + 2 * 7 * 2) - 1)
    changed_row(tmp_path / "chunk-000000.safetensors")
    with pytest.raises(CacheError, match="changed in row 3"):
        cache.read(torch.tensor([3]))
    with pytest.raises(ArgumentError, match="memory of TeacherCache should be 0 bytes or more, got -1"):
        TeacherCache(tmp_path, memory=-1)
    TeacherCache(tmp_path, memory=0)
