"""Files of ``torch.save``, whose tensors are made of checked bytes; nothing else in them is built.

Read by Python alone: no function that the file names is called, and of torch only what makes a tensor of bytes.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import zipfile
import zlib
from abc import ABC, abstractmethod
from typing import BinaryIO

import torch
from torch import Tensor

from lightning_ckptkd.snapshots.inert_pickle import PickleError, Reference, read_pickle
from lightning_ckptkd.snapshots.tensor_plan import TensorPlan, read_storage

_MAX_GROWTH = 4  # a file of torch.save is not compressed; one that was packed again may be
_ZIP, _ZIP_MEMBER = b"PK\x03\x04", struct.Struct("<4s22xHH")
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of files before torch 1.6


class TorchArchive(ABC):
    """An open file of ``torch.save``.

    Attributes:
        size: Its size in bytes.
        content: What it holds, as :func:`read_pickle` gives it.
    """

    content: object

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size
        self._left = _MAX_GROWTH * size + 2**20  # bytes that may still be read into memory
        self._storages: dict[str, Tensor] = {}

    def read(self, plan: TensorPlan) -> Tensor:
        """The tensor, on the CPU; tensors of one storage share its memory.

        Raises:
            PickleError: If the file does not hold its storage whole.
        """
        if plan.storage not in self._storages:
            self._storages[plan.storage] = self._read_storage(plan.storage, plan.dtype)
        storage = self._storages[plan.storage]
        if storage.numel() < plan.held:
            raise PickleError(f"it holds {storage.numel()} bytes of a storage that should have {plan.held}")
        if plan.numel == 0:
            return torch.empty(plan.shape, dtype=plan.dtype)
        elements = storage[: plan.held // plan.dtype.itemsize * plan.dtype.itemsize].view(plan.dtype)
        if plan.conjugated:  # of what the file holds, which a tensor may repeat for ever
            elements = elements.conj().resolve_conj()
        if plan.negated:
            elements = elements.neg()
        return elements.as_strided(plan.shape, plan.stride, plan.offset)

    def _spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise PickleError(f"it has {self.size} bytes and would take far more in memory")

    @abstractmethod
    def _read_storage(self, key: str, dtype: torch.dtype) -> Tensor:
        """The bytes of a storage, in this machine's order."""


class _Zip(TorchArchive):
    """What torch writes since 1.6."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, size)
        self._archive = zipfile.ZipFile(file)
        members = self._archive.infolist()
        self._members = {member.filename: member for member in members}
        self._folder = members[0].filename.partition("/")[0] if members else ""
        if len(self._members) < len(members):
            raise PickleError("it holds two records of one name")
        if f"{self._folder}/constants.pkl" in self._members:
            raise PickleError("it is a TorchScript archive")
        pickled = self._read_member("data.pkl").numpy().tobytes()
        order = f"{self._folder}/byteorder"
        self._byteorder = self._read_member("byteorder").numpy().tobytes() if order in self._members else b"little"
        if self._byteorder not in (b"little", b"big"):
            raise PickleError("its byte order is neither little nor big")
        self.content, _ = read_pickle(io.BytesIO(pickled), len(pickled))

    def _read_storage(self, key: str, dtype: torch.dtype) -> Tensor:
        memory = self._read_member(f"data/{key}")
        if self._byteorder.decode() != sys.byteorder:
            width = dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize
            memory = memory[: memory.numel() // width * width].view(-1, width).flip(1).flatten()
        return memory

    def _read_member(self, name: str) -> Tensor:
        member = self._members.get(f"{self._folder}/{name}")
        if member is None:
            raise PickleError(f"it has no record {name[:80]!r}")
        self._spend(member.file_size)
        memory = torch.empty(member.file_size, dtype=torch.uint8)
        view = memory.numpy().data
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise PickleError("a record is encrypted or compressed in another way than deflate")
        if member.compress_type == zipfile.ZIP_DEFLATED:
            with self._archive.open(member) as stream:
                _fill(stream, view)  # type: ignore[arg-type]
            return memory
        self._file.seek(member.header_offset)
        mark, name_length, extra_length = _ZIP_MEMBER.unpack(self._file.read(_ZIP_MEMBER.size))
        if mark != _ZIP:
            raise PickleError("a record is not where it should be")
        self._file.seek(name_length + extra_length, os.SEEK_CUR)
        _fill(self._file, view)
        if member.CRC and zlib.crc32(view) != member.CRC:  # 0 where torch was told to write none
            raise PickleError(f"its record {name[:80]!r} has another checksum than it should: it was changed")
        return memory


class _Legacy(TorchArchive):
    """What torch wrote before 1.6, and writes with ``_use_new_zipfile_serialization=False``."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, size)
        for wanted in (_MAGIC, _PROTOCOL):
            found = self._next_pickle()[0]
            if type(found) is not int or found != wanted:
                raise PickleError("it is no file of torch.save")
        self._next_pickle()  # what kind of machine wrote it
        self.content, references = self._next_pickle()
        widths: dict[str, int] = {}
        for reference in references:
            named = read_storage(reference)
            if named is None:
                raise PickleError("it holds a storage of a type that is not read")
            widths.setdefault(named[1], named[0].itemsize)
        keys = self._next_pickle()[0]
        self._places: dict[str, tuple[int, int]] = {}
        for key in keys if isinstance(keys, list) else ():
            if not isinstance(key, str) or key not in widths:
                raise PickleError("it holds a storage that nothing refers to")
            (count,) = struct.unpack("<q", file.read(8))
            place, length = file.tell(), count * widths[key]
            if not 0 <= length <= size - place:
                raise PickleError("a storage is cut off")
            self._places[key] = place, length
            file.seek(length, os.SEEK_CUR)

    def _next_pickle(self) -> tuple[object, list[Reference]]:
        return read_pickle(self._file, self.size - self._file.tell())

    def _read_storage(self, key: str, dtype: torch.dtype) -> Tensor:
        if key not in self._places:
            raise PickleError("it does not hold a storage that it refers to")
        place, length = self._places[key]
        self._spend(length)
        memory = torch.empty(length, dtype=torch.uint8)
        self._file.seek(place)
        _fill(self._file, memory.numpy().data)
        return memory


def open_archive(file: BinaryIO) -> TorchArchive:
    """Read what an open file of ``torch.save`` holds; tensors can be read until the file is closed.

    Raises:
        Exception: Of any kind, if it is no such file, or damaged.
    """
    size = os.fstat(file.fileno()).st_size
    is_zip = file.read(len(_ZIP)) == _ZIP
    file.seek(0)
    return _Zip(file, size) if is_zip else _Legacy(file, size)


def _fill(source: BinaryIO, target: memoryview) -> None:
    while target:
        count = source.readinto(target)  # type: ignore[attr-defined]
        if not count:
            raise PickleError("it is cut off")
        target = target[count:]
