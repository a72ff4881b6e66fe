"""Cached logits of other shapes than (K,) a sample: of pixels, of tokens, or one number."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.utils.data import TensorDataset, default_collate

from lightning_ckptkd import ArgumentError, CacheError, TeacherError
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.reading import BatchReader
from lightning_ckptkd.teachers import CacheKey, LogitCache, Views, fill, fingerprint
from lightning_ckptkd.teachers.chunk_file import ChunkSpec, chunk_parts, read_shape
from tests.teachers.test_cache import CHECKSUMS, CHUNK, KEY, ORDER, chunk, damage, filled

SHAPES = [(7,), (3, 4, 5), (6, 7), (1,), ()]


def made(*shape: int) -> Tensor:
    return torch.randn(10, 2, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_they_come_back(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    logits = made(*shape)
    cache = filled(tmp_path, replace(KEY, dtype=dtype), logits)
    expected = logits.half().float() if dtype == "fp16" else logits
    assert torch.equal(cache.read(ORDER, CHECKSUMS[ORDER]), expected[ORDER].transpose(0, 1))
    again = LogitCache.open(tmp_path, replace(KEY, dtype=dtype))
    assert again.missing() == [] and again.shape == cache.shape == shape
    stored = safetensors.torch.load_file(chunk(tmp_path, 0))
    assert stored["logits"].shape == (CHUNK, 2, *shape)
    size = sum(path.stat().st_size for path in tmp_path.glob("chunk*"))
    assert size <= logits.numel() * (2 if dtype == "fp16" else 4) + 3 * 600, "nothing but the logits, and headers"


def test_a_chunk_of_classes_is_the_file_that_it_was() -> None:
    """Byte for byte, so that caches of before are read."""
    spec = ChunkSpec("k" * 64, 3, 2, 2, "fp16", None)
    tensors = {"checksums": torch.tensor([5, 6]), "logits": torch.arange(12, dtype=torch.float16).view(2, 2, 3)}
    data = b"".join(bytes(part) for part in chunk_parts(spec, (3,), tensors))
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"]["classes"] == "3"
    assert hashlib.sha256(data).hexdigest() == "ba06eb96240a55e36d56f8989a06aa450fd4c05f28dd11bccb92f649890d0c1d"


@pytest.mark.parametrize(
    ("classes", "told"),
    [
        (b"12x5", "was changed"),
        (b"4x3x5", "was changed"),
        (b"3x4x6", "was changed"),
        (b"03x20", "was changed"),
        (b"-3x20", "was changed"),
        (b"none", "was changed"),
        (b"60", "was changed"),
    ],
)
def test_headers_that_were_changed(tmp_path: Path, classes: bytes, told: str) -> None:
    logits = made(3, 4, 5)
    cache = filled(tmp_path, KEY, logits)
    damage(lambda data: data.replace(b'"3x4x5"', (b'"' + classes + b'"').ljust(7)))(tmp_path)
    with pytest.raises(CacheError, match=f"a header that {told}.*Delete that file; it is filled again"):
        cache.verify()
    chunk(tmp_path, 1).unlink()
    assert torch.equal(filled(tmp_path, KEY, logits).read(ORDER), logits[ORDER].transpose(0, 1).half().float())


def test_the_largest_of_classes_alone(tmp_path: Path) -> None:
    for shape in ((3, 4, 5), (6, 7), ()):
        with pytest.raises(
            ArgumentError, match=r"top_k=2 needs logits \(N, K\), but a teacher gives the shape .*Leave"
        ):
            filled(tmp_path, replace(KEY, top_k=2), made(*shape))
    filled(tmp_path, KEY, made(6, 7))
    spec = ChunkSpec(KEY.digest(), 0, CHUNK, 2, "fp16", 2)
    with pytest.raises(CacheError, match="was changed"):
        read_shape(chunk(tmp_path, 0), spec)


def test_chunks_of_another_shape(tmp_path: Path) -> None:
    cache = filled(tmp_path, KEY, made(6, 7))
    chunk(tmp_path, 1).unlink()
    told = r"has logits of the shape \(5, 7\) and others have logits of the shape \(6, 7\): the teachers' network or"
    with cache.filling(), pytest.raises(CacheError, match=told):
        cache.write(1, made(5, 7)[4:8], CHECKSUMS[4:8])


def test_a_logit_that_is_not_finite(tmp_path: Path) -> None:
    logits = made(3, 4, 5)
    logits[6, 1, 2, 0, 4] = torch.nan
    with pytest.raises(TeacherError, match=r"gives nan for output \[2, 0, 4\] of item 6 \(sample 3, view 0\)"):
        filled(tmp_path, KEY, logits)


def test_batches_that_are_padded_each_for_itself(tmp_path: Path) -> None:
    """What a token's logits are, and how many, would depend on who shared the batch."""
    words = torch.arange(24).view(12, 2)
    dataset = TensorDataset(words, words[:, 0])
    key = CacheKey(("a" * 64,), 12, fingerprint(dataset), dtype="fp32")

    def teachers(batch: Batch) -> Tensor:
        length = int(batch.inputs.max()) // 8 + 1
        return torch.zeros(1, len(batch), length, 3)

    def filled_by(cache: LogitCache, run: object) -> None:
        fill(cache, Views(dataset, 1, 0), run, BatchReader(), default_collate, batch_size=4, progress=False)

    cache = LogitCache.open(tmp_path, key)
    with pytest.raises(
        ArgumentError, match=r"shape \(1, 3\) for those before it and \(2, 3\) for item 4.* Pad samples to one length"
    ):
        filled_by(cache, teachers)
    filled_by(cache, lambda batch: torch.zeros(1, len(batch), 3, 3))
    cache.verify()
    assert cache.read(torch.arange(12)).shape == (1, 12, 3, 3)
