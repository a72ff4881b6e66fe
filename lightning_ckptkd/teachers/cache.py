"""The cache of the teachers' logits: a folder of chunks, so that teachers run once and not once an epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from torch import Tensor
from typing_extensions import Self

from lightning_ckptkd.errors import ArgumentError, CacheError, TeacherError
from lightning_ckptkd.snapshots.folders import LocalFolder, open_folder, run_tag
from lightning_ckptkd.teachers.cache_index import INDEX_NAME, index_document, read_index
from lightning_ckptkd.teachers.cache_key import CacheKey
from lightning_ckptkd.teachers.chunk_file import ChunkSpec, Shape, chunk_parts, damaged, read_shape
from lightning_ckptkd.teachers.chunk_rows import ChunkRows, OpenChunks, Rows
from lightning_ckptkd.teachers.logit_checks import name_place
from lightning_ckptkd.teachers.logit_codec import decode, encode

#: Items a chunk.
CHUNK = 4096


class LogitCache:
    """The logits of M teachers on the n * V items of a dataset, on disk.

    ``cache.json`` says what the logits depend on and is written just before the first chunk: a folder is for no
    teachers and data as long as it holds no logits. Then there is one file for each chunk of items, whole or not at
    all. All is verified before any is read. What of it fits is then kept in memory; of the rest each row is verified
    again when it is read. It is never unpickled.

    Use :meth:`open`, then ``filling.fill``, then :meth:`verify`, then :meth:`read`.

    Attributes:
        key: What the logits depend on.
        chunk_items: Items a chunk; the last may have fewer.
    """

    def __init__(self, folder: LocalFolder, key: CacheKey, chunk_items: int) -> None:
        self._folder, self.key, self.chunk_items = folder, key, chunk_items
        self._digest = key.digest()
        self._shape: Shape | None = None
        self._tag: str | None = None  # marks this process's temporary files, while it fills
        self._chunks: list[ChunkRows] | None = None
        self._open = OpenChunks()

    @classmethod
    def open(cls, folder: str | Path, key: CacheKey, chunk_items: int = CHUNK) -> Self:
        """Open a cache; where the folder has none, the first chunk that is written makes one.

        Args:
            folder: On this machine's file system; several ranks may open it at once.
            key: What the logits depend on.
            chunk_items: Items a chunk of a new cache; one that exists keeps its own.

        Raises:
            ArgumentError: If the folder is not local, or ``chunk_items`` is below 1.
            CacheError: If the folder has a cache for something else, or an index that can't be read.
        """
        if chunk_items < 1:
            raise ArgumentError(f"chunk_items should be 1 or more, got {chunk_items}.")
        place = open_folder(folder)
        if not isinstance(place, LocalFolder):
            raise ArgumentError(f"{folder}: a cache of logits is read sample by sample. Give a local folder.")
        if place.exists(INDEX_NAME):
            chunk_items = read_index(place, key)
        return cls(place, key, chunk_items)

    @property
    def num_chunks(self) -> int:
        """Number of chunks."""
        return -(-self.key.num_items // self.chunk_items)

    @property
    def shape(self) -> Shape:
        """Of one sample's logits by one teacher, such as (K,); it is known as soon as there is a chunk.

        Raises:
            CacheError: If there is none yet.
        """
        if self._shape is None:
            raise CacheError(f"{self._folder} has no chunk yet. Fill it first.")
        return self._shape

    def items(self, chunk: int) -> range:
        """The items of a chunk."""
        return range(chunk * self.chunk_items, min((chunk + 1) * self.chunk_items, self.key.num_items))

    def missing(self, rank: int = 0, num_ranks: int = 1) -> list[int]:
        """The chunks that a rank has still to fill; of ``num_ranks`` ranks, each has every num_ranks-th.

        Headers and sizes of those that exist are checked, their content is by :meth:`verify`.

        Raises:
            CacheError: If a file is damaged or belongs to another cache.
        """
        missing = []
        for chunk in range(rank, self.num_chunks, num_ranks):
            if self._folder.exists(self._name(chunk)):
                self._set_shape(read_shape(self._path(chunk), self._spec(chunk)), chunk)
            else:
                missing.append(chunk)
        return missing

    @contextlib.contextmanager
    def filling(self, rank: int = 0) -> Iterator[None]:
        """Within the block, this process may write the chunks of a rank, and no other process may.

        What a killed process of the same rank left is cleaned.

        Raises:
            CacheError: If another process has meanwhile made a cache for something else.
            SnapshotError: If another process fills the same rank's share, or the folder can't be written.
        """
        lock = LocalFolder(self._folder.path / f"rank-{rank}")
        lock.make()
        with lock.lock(self._digest):
            if self._folder.exists(INDEX_NAME):
                self.chunk_items = read_index(self._folder, self.key)
            self._tag = run_tag(f"{self._digest} {rank}")
            self._folder.clean(self._tag, lambda _: False)
            try:
                yield
            finally:
                self._tag = None

    def write(self, chunk: int, logits: Tensor, checksums: Tensor) -> None:
        """Write one chunk, whole or not at all; within :meth:`filling`.

        Args:
            chunk: Its number.
            logits: Shape (rows, M, K), or (rows, M, ...), where the rows are ``items(chunk)``.
            checksums: Shape (rows,): the items' samples.

        Raises:
            ArgumentError: If shapes do not fit, top_k is more than K, or a logit is beyond fp16.
            TeacherError: If a logit is not finite; names the item and the teacher.
            SnapshotError: If the file can't be written, as on a full disk; the other chunks stay.
        """
        if self._tag is None:
            raise ArgumentError("A cache is written within `with cache.filling(rank):`, which keeps others out.")
        items, teachers = self.items(chunk), len(self.key.teachers)
        fits = logits.dim() >= 2 and logits.shape[:2] == (len(items), teachers) and logits.numel() > 0
        if not fits or checksums.shape != (len(items),):
            raise ArgumentError(
                f"Chunk {chunk} needs logits ({len(items)}, {teachers}, K) and checksums ({len(items)},), got "
                f"{tuple(logits.shape)} and {tuple(checksums.shape)}."
            )
        logits = logits.detach().to("cpu", torch.float32)
        self._check_finite(items, logits)
        tensors = encode(logits, self.key.dtype, self.key.top_k)
        shape = tuple(logits.shape[2:])
        self._set_shape(shape, chunk)
        tensors = {"checksums": checksums.to("cpu", torch.long), **tensors}
        parts = chunk_parts(self._spec(chunk), shape, tensors)
        if not self._folder.exists(INDEX_NAME):
            self._folder.write_json(INDEX_NAME, index_document(self.key, self.chunk_items), self._tag)
        self._folder.write(self._name(chunk), parts, self._tag)
        self._chunks = None

    def verify(self, memory: int = 0) -> None:
        """Check every chunk's header, size and SHA-256: afterwards the cache can be read.

        Of chunks that are not kept in memory a CRC-32 of each item is, 4 bytes, by which :meth:`read` sees what changes
        later.

        Args:
            memory: Bytes that the chunks may take that are kept, from the first one on.

        Raises:
            CacheError: If a chunk is missing, damaged or belongs to another cache.
        """
        self._chunks = None
        self._open.close()
        chunks = []
        for chunk in range(self.num_chunks):
            verified = ChunkRows(self._path(chunk), self._spec(chunk), memory)
            memory -= verified.kept_bytes
            self._set_shape(verified.shape, chunk)
            chunks.append(verified)
        self._chunks = chunks

    def read(self, items: Tensor, checksums: Tensor | None = None) -> Tensor:
        """The teachers' logits on some items.

        Args:
            items: Shape (B,), in any order; on a GPU, reading waits for it.
            checksums: Shape (B,): what the samples hash to now, to be compared with those that the teachers saw; None
                compares nothing.

        Returns:
            fp32 on the CPU, shape (M, B, K), or (M, B, ...).

        Raises:
            ArgumentError: If an item is not in the cache.
            CacheError: If the cache was not verified, a file changed or was cut since, or a checksum differs; names
                the sample and the view.
        """
        found = self._gather(items)
        cached = found.pop("checksums")
        if checksums is not None:
            self._compare(items, cached, checksums)
        return decode(found, self.shape)

    def _compare(self, items: Tensor, cached: Tensor, checksums: Tensor) -> None:
        wrong = (cached != checksums.cpu()).nonzero()
        if len(wrong):
            sample, view = divmod(int(items[int(wrong[0])]), self.key.views)
            raise CacheError(
                f"Sample {sample} (view {view}) is not the one whose logits are in {self._folder}: the dataset or its "
                "transforms changed since, or they draw from a generator that is not seeded (one of their own). "
                f"Use Python's, NumPy's or torch's global generator, and delete {self._folder} to fill it again."
            )

    def _gather(self, items: Tensor) -> dict[str, Tensor]:
        chunks = self._verified()
        wanted = items.cpu().numpy()
        if wanted.ndim != 1 or (len(wanted) and not 0 <= wanted.min() <= wanted.max() < self.key.num_items):
            raise ArgumentError(f"items should be of shape (B,), from 0 to {self.key.num_items - 1}.")
        found: Rows = {
            name: numpy.empty((len(wanted), size), numpy.uint8) for name, size in chunks[0].row_bytes.items()
        }
        order = numpy.argsort(wanted, kind="stable")
        numbers, rows = numpy.divmod(wanted[order], self.chunk_items)
        present, starts = numpy.unique(numbers, return_index=True)
        pieces = zip(numpy.split(rows, starts[1:]), numpy.split(order, starts[1:]), strict=True)
        for number, (picked, places) in zip(present.tolist(), pieces, strict=False):  # one empty piece of no items
            chunk = chunks[number]
            if chunk.kept is not None:
                for name, values in chunk.kept.items():
                    found[name][places] = values[picked]
                continue
            try:
                chunk.read(self._open.descriptor(chunk.path), picked.tolist(), found, places.tolist())
            except OSError as error:
                raise damaged(chunk.path, f"can't be read ({error.strerror})") from error
        layout = self._spec(0).layout(self.shape)
        return {
            name: torch.from_numpy(found[name].reshape(-1)).view(dtype).view(len(wanted), *whole[1:])
            for name, (dtype, whole) in layout.items()
        }

    def _verified(self) -> list[ChunkRows]:
        if self._chunks is None:
            raise CacheError(f"{self._folder} is read only after verify(), which finds what is damaged.")
        return self._chunks

    def _check_finite(self, items: range, logits: Tensor) -> None:
        wrong = (~logits.isfinite()).nonzero()
        if len(wrong):
            first = wrong[0].tolist()
            row, teacher, *place = first
            sample, view = divmod(items[row], self.key.views)
            raise TeacherError(
                f"Teacher {teacher} (SHA-256 {self.key.teachers[teacher][:16]}…) gives "
                f"{logits[tuple(first)]} for {name_place(place)} of item {items[row]} (sample {sample}, view "
                f"{view}). Choose another teacher, or mend the sample."
            )

    def _set_shape(self, shape: Shape, chunk: int) -> None:
        if self._shape is None:
            self._shape = shape
        elif self._shape != shape:
            found, others = (
                f"{one[0]} classes" if len(one) == 1 else f"logits of the shape {one}" for one in (shape, self._shape)
            )
            raise CacheError(
                f"{self._path(chunk)} has {found} and others have {others}: the teachers' network or the samples' "
                f"shapes changed. Delete {self._folder}; it is filled again."
            )

    def _name(self, chunk: int) -> str:
        return f"chunk-{chunk:06d}.safetensors"

    def _path(self, chunk: int) -> Path:
        return self._folder.path / self._name(chunk)

    def _spec(self, chunk: int) -> ChunkSpec:
        key = self.key
        return ChunkSpec(self._digest, chunk, len(self.items(chunk)), len(key.teachers), key.dtype, key.top_k)
