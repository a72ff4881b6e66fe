"""Tensors of torch.save files, read without torch.load: they equal what it reads."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from lightning_ckptkd.snapshots.inert_pickle import Items, PickleError
from lightning_ckptkd.snapshots.tensor_plan import plan_tensor
from lightning_ckptkd.snapshots.torch_archive import open_archive

BYTES = torch.arange(256, dtype=torch.int32).to(torch.uint8)
DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64,
    torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
    torch.float4_e2m1fn_x2,
)  # fmt: skip


def with_attribute() -> Tensor:
    value = torch.randn(3)
    value.note = "kept by torch"
    return value


STATES: dict[str, Any] = {
    **{str(dtype): lambda dtype=dtype: {"a": BYTES.view(dtype)} for dtype in DTYPES},
    "views": lambda: (lambda whole: {"a": whole[2:5], "b": whole.T, "c": whole[::2, 1:]})(torch.randn(6, 4)),
    "expanded": lambda: {"a": torch.randn(3, 1).expand(3, 5)},
    "scalars and empty": lambda: {"a": torch.tensor(2.5), "b": torch.empty(0, 4), "c": torch.empty(3, 0)},
    "conjugates": lambda: {"a": torch.randn(3, dtype=torch.complex64).conj(), "b": BYTES.view(torch.complex64).imag},
    "negatives": lambda: {"a": torch.randn(3, dtype=torch.complex64).conj().imag},
    "parameters": lambda: {"a": nn.Parameter(torch.randn(2)), "b": nn.Parameter(torch.randn(1), requires_grad=False)},
    "attributes": lambda: {"a": with_attribute(), "b": nn.Parameter(with_attribute())},
    "module": lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).state_dict(),
}


def saved(value: object, path: Path, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


def tensors(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        archive = open_archive(file)
        assert isinstance(archive.content, Items)
        plans = {name: plan_tensor(value) for name, value in archive.content.named()}
        return {name: archive.read(plan) for name, plan in plans.items() if plan is not None}


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    def bits(value: Tensor) -> bytes:
        return value.detach().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8).numpy().tobytes()

    return found.keys() == wanted.keys() and all(
        (value.dtype, value.shape) == (wanted[name].dtype, wanted[name].shape) and bits(value) == bits(wanted[name])
        for name, value in found.items()
    )


@pytest.mark.parametrize("form", ["zip", "before torch 1.6"])
@pytest.mark.parametrize("kind", STATES)
def test_tensors_are_those_that_torch_reads(tmp_path: Path, kind: str, form: str) -> None:
    state = STATES[kind]()
    path = saved(state, tmp_path / "file", _use_new_zipfile_serialization=form == "zip")
    assert same(tensors(path), state)
    if form == "zip":  # torch itself can't read the newest types in the old form
        assert same(tensors(path), torch.load(path, weights_only=True))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_other_protocols(tmp_path: Path, protocol: int) -> None:
    state = STATES["module"]()
    assert same(tensors(saved(state, tmp_path / "file", pickle_protocol=protocol)), state)


def test_ties_stay_ties(tmp_path: Path) -> None:
    value = torch.randn(4)
    found = tensors(saved({"a": value, "b": value, "c": value.clone(), "d": value[1:]}, tmp_path / "file"))
    assert found["a"].data_ptr() == found["b"].data_ptr() == found["d"].data_ptr() - 4
    assert found["c"].data_ptr() != found["a"].data_ptr()


def repacked(path: Path, method: int = zipfile.ZIP_STORED, drop: tuple[str, ...] = (), **records: bytes) -> Path:
    """The same zip file written anew, as other tools and older releases of torch did."""
    with zipfile.ZipFile(path) as source:
        content = {member.filename: source.read(member) for member in source.infolist()}
    with zipfile.ZipFile(path, "w", method) as target:
        for name, data in content.items():
            title = name.partition("/")[2]
            if title not in drop:
                target.writestr(name, records.get(title, data))
    return path


NEW_RECORDS = (".format_version", ".storage_alignment", "byteorder", ".data/serialization_id")


@pytest.mark.parametrize("kind", ["torch 1.6", "deflated", "no checksums"])
def test_other_zip_files(tmp_path: Path, kind: str) -> None:
    state = STATES["module"]()
    if kind == "no checksums":
        torch.serialization.set_crc32_options(False)
    try:
        path = saved(state, tmp_path / "file")
    finally:
        torch.serialization.set_crc32_options(True)
    if kind == "torch 1.6":
        repacked(path, drop=NEW_RECORDS)
    if kind == "deflated":
        repacked(path, zipfile.ZIP_DEFLATED)
    assert same(tensors(path), state)


def test_the_order_of_bytes(tmp_path: Path) -> None:
    state = {"a": torch.randn(4), "b": torch.arange(3), "c": torch.randn(2, dtype=torch.complex64)}
    path = saved(state, tmp_path / "file")
    swapped = {
        f"data/{key}": value.numpy().byteswap().tobytes() for key, value in enumerate(state.values())
    }  # numpy swaps each half of a complex number
    repacked(path, byteorder=b"big", **swapped)
    assert same(tensors(path), state)
    assert same(torch.load(path, weights_only=True), state)


def test_a_changed_bit_is_found(tmp_path: Path) -> None:
    path = saved({"a": torch.ones(1000)}, tmp_path / "file")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert not torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(1000)), "torch does not see it"
    with pytest.raises(PickleError, match="its record 'data/0' has another checksum than it should"):
        tensors(path)


class Subclass(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(lambda: torch.eye(2).to_sparse(), id="sparse"),
        pytest.param(lambda: torch.ones(2, device="meta"), id="meta"),
        pytest.param(lambda: torch.ones(2).as_subclass(Subclass), id="subclass"),
        pytest.param(lambda: nn.Parameter(torch.ones(2).as_subclass(Subclass)), id="parameter of a subclass"),
        pytest.param(lambda: numpy.ones(2), id="numpy"),
        pytest.param(lambda: nn.Linear(1, 1), id="module"),
        pytest.param(lambda: OrderedDict(a=torch.ones(1)), id="dict"),
        pytest.param(lambda: 3, id="number"),
    ],
)
def test_what_is_no_plain_tensor_is_none(tmp_path: Path, value: Any) -> None:
    assert tensors(saved({"a": value()}, tmp_path / "file")) == {}


class Storages(pickle.Pickler):
    """Pickles a tuple that begins with "storage" as torch refers to a record of the same file."""

    def persistent_id(self, value: object) -> object:
        return value if isinstance(value, tuple) and value[:1] == ("storage",) else None


class Rebuilt:
    def __init__(self, *arguments: Any, function: Any = torch._utils._rebuild_tensor_v2) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


FLOATS = ("storage", torch.FloatStorage, "0", "cpu", 4)


@pytest.mark.parametrize(
    ("reference", "offset", "size", "stride", "message"),
    [
        (FLOATS, 0, (5,), (1,), "reaches beyond its storage"),
        (FLOATS, 4, (1,), (1,), "reaches beyond its storage"),
        (FLOATS, 0, (2, 2), (3, 1), "reaches beyond its storage"),
        (FLOATS, 0, (2**61, 2), (0, 0), "reaches beyond its storage"),
        (FLOATS, 0, (1,) * 65, (1,) * 65, "no row of numbers"),
        (FLOATS, -1, (1,), (1,), "no row of numbers"),
        (FLOATS, 0, (2,), (-1,), "no row of numbers"),
        (FLOATS, 0, (-2,), (1,), "no row of numbers"),
        (FLOATS, 0, (2.0,), (1,), "no row of numbers"),
        (FLOATS, 0, (True,), (1,), "no row of numbers"),
        (FLOATS, 0, (2,), (1, 1), "no row of numbers"),
        (FLOATS, 0, 4, (1,), "no row of numbers"),
        ((*FLOATS[:4], 5), 0, (5,), (1,), "holds 16 bytes of a storage that should have 20"),
        ((*FLOATS[:4], 2**60), 0, (1,), (1,), "holds 16 bytes of a storage that should have"),
        ((*FLOATS[:4], -1), 0, (1,), (1,), "without a type, a name or a size"),
        ((*FLOATS[:2], 0, *FLOATS[3:]), 0, (1,), (1,), "without a type, a name or a size"),
        (("storage", "FloatStorage", *FLOATS[2:]), 0, (1,), (1,), "without a type, a name or a size"),
        ((*FLOATS[:2], "1", *FLOATS[3:]), 0, (1,), (1,), "has no record 'data/1'"),
        ((*FLOATS[:2], "../data.pkl", *FLOATS[3:]), 0, (1,), (1,), r"has no record 'data/\.\./data.pkl'"),
        ((*FLOATS, ("0", 0, 4)), 0, (1,), (1,), "refers to something else than a storage"),
        (("storage",), 0, (1,), (1,), "refers to something else than a storage"),
    ],
)
def test_tensors_that_claim_what_can_not_be(
    tmp_path: Path, reference: Any, offset: Any, size: Any, stride: Any, message: str
) -> None:
    file = io.BytesIO()
    Storages(file, 2).dump({"a": Rebuilt(reference, offset, size, stride, False, OrderedDict())})
    with zipfile.ZipFile(tmp_path / "file", "w") as archive:
        archive.writestr("archive/data.pkl", file.getvalue())
        archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
    with pytest.raises(PickleError, match=message):
        tensors(tmp_path / "file")


@pytest.mark.parametrize("kind", ["bomb", "bomb of a storage", "overlapping records"])
def test_memory_is_bounded_by_the_file(tmp_path: Path, kind: str) -> None:
    file = io.BytesIO()
    count = 2**22
    reference = ("storage", torch.FloatStorage, "0", "cpu", count)
    calls = {"a": Rebuilt(reference, 0, (count,), (1,), False, OrderedDict())}
    if kind == "overlapping records":
        calls = {
            str(key): Rebuilt(("storage", torch.FloatStorage, str(key), "cpu", 1), 0, (1,), (1,), False, OrderedDict())
            for key in range(100)
        }
    Storages(file, 2).dump(calls)
    with zipfile.ZipFile(tmp_path / "file", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**24) if kind == "bomb" else file.getvalue())
        archive.writestr("archive/data/0", bytes(4 * count) if kind == "bomb of a storage" else b"1234" * 2**16)
        if kind == "overlapping records":
            first = archive.getinfo("archive/data/0")
            archive.filelist += [renamed(first, f"archive/data/{key}") for key in range(1, 100)]
    with pytest.raises((PickleError, zipfile.BadZipFile), match=r"would take far more in memory|Overlapped|differ"):
        tensors(tmp_path / "file")


def renamed(member: zipfile.ZipInfo, name: str) -> zipfile.ZipInfo:
    """Another entry of the archive's table for the same bytes."""
    other = zipfile.ZipInfo(name)
    for attribute in ("compress_type", "CRC", "compress_size", "file_size", "header_offset", "flag_bits"):
        setattr(other, attribute, getattr(member, attribute))
    return other
