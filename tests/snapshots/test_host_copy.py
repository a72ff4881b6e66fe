"""State dicts of all kinds: a bit-exact round trip through the store, or a refusal that names the key."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from lightning_ckptkd import ArgumentError, SnapshotError, SnapshotStore
from lightning_ckptkd.snapshots.host_copy import HostCopy
from lightning_ckptkd.snapshots.layout import plan_layout
from lightning_ckptkd.snapshots.weights import load_into, module_weights
from tests.projects import Project


def copy_of(weights: dict[str, Tensor], dtype: torch.dtype | None = None) -> HostCopy:
    copy = HostCopy()
    copy.reserve(plan_layout(weights, dtype))
    copy.fill(weights)
    return copy


def round_trip(folder: Path, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    with SnapshotStore.create(folder / "h", "run", {}) as store:
        snapshot = store.commit(weights, epoch=0, global_step=1)
    return SnapshotStore.open(folder / "h").load(snapshot)


def count_native_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def bits(value: Tensor) -> bytes:
    return bytes(value.detach().contiguous().flatten().view(torch.uint8).numpy())


STATE_DICTS = {
    "plain": lambda: module_weights(Project()),
    "compiled": lambda: module_weights(torch.compile(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))),
    "parallel": lambda: module_weights(nn.DataParallel(nn.Linear(3, 2))),
    "bf16": lambda: module_weights(Project().bfloat16()),
    "fp64 and complex": lambda: {"a": torch.randn(3, dtype=torch.float64), "b": torch.randn(2, dtype=torch.complex64)},
    "integers": lambda: {str(kind): torch.tensor([1, 0, 3]).to(kind) for kind in INTEGERS},
    "float8 and float4": lambda: {str(kind): EVERY_BYTE.view(kind) for kind in NARROW},
    "float8 not contiguous": lambda: {str(kind): EVERY_BYTE.view(16, 16).T.view(kind) for kind in NARROW},
    "float4 scalars and empty": lambda: {"e": EVERY_BYTE[:0].view(0, 4).view(FLOAT4), "f": EVERY_BYTE.view(FLOAT4)[:1]},
    "not contiguous": lambda: {
        "t": torch.randn(4, 6).T,
        "strided": torch.randn(9)[::2],
        "expanded": torch.ones(1).expand(5),
    },
    "channels last": lambda: {"w": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)},
    "scalars and empty": lambda: {"s": torch.tensor(2.5), "e": torch.empty(0, 4), "f": torch.empty(3, 0)},
    "not finite": lambda: {"a": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])},
    "names": lambda: {"ünï.weight": torch.ones(2), 'a"b\\c': torch.zeros(1), "": torch.ones(1)},
    "views of one tensor": lambda: (lambda whole: {"left": whole[:3], "right": whole[2:]})(torch.randn(6)),
}
INTEGERS = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64
)  # fmt: skip
FLOAT4 = torch.float4_e2m1fn_x2
NARROW = (
    torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu, FLOAT4
)  # fmt: skip
EVERY_BYTE = torch.arange(256, dtype=torch.int32).to(torch.uint8)


@pytest.mark.parametrize("kind", STATE_DICTS)
def test_a_round_trip_is_bit_exact(tmp_path: Path, kind: str) -> None:
    weights = STATE_DICTS[kind]()
    read = round_trip(tmp_path, weights)
    assert read.keys() == weights.keys()
    for name, value in weights.items():
        assert (read[name].dtype, read[name].shape) == (value.dtype, value.shape)
        assert bits(read[name]) == bits(value)


@pytest.mark.parametrize("kind", STATE_DICTS)
def test_the_file_is_what_the_safetensors_library_reads(tmp_path: Path, kind: str) -> None:
    weights = STATE_DICTS[kind]()
    (tmp_path / "file").write_bytes(b"".join(copy_of(weights).parts()))
    read = safetensors.torch.load_file(tmp_path / "file")
    assert {name: bits(value) for name, value in read.items()} == {name: bits(weights[name]) for name in read}
    assert {name: value.shape for name, value in read.items()} == {name: weights[name].shape for name in read}


@pytest.mark.parametrize("kind", ["plain", "bf16", "integers", "float8 and float4", "not contiguous", "every type"])
def test_the_file_is_byte_for_byte_what_the_library_writes(kind: str) -> None:
    if kind == "every type":
        wider = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64)
        kinds = {**dict.fromkeys(wider), **dict.fromkeys(INTEGERS), **dict.fromkeys(NARROW)}
        weights = {f"{name}.{kind}": torch.arange(16, dtype=torch.uint8).view(kind) for kind in kinds for name in "ba"}
    else:
        weights = {name: value.contiguous().clone() for name, value in STATE_DICTS[kind]().items()}
    assert b"".join(copy_of(weights).parts()) == safetensors.torch.save(weights)


def test_a_scalar_of_float4_is_refused_by_name() -> None:
    with pytest.raises(ArgumentError, match=r"'a' can't be stored in a safetensors file: it is a scalar of .*float4"):
        plan_layout({"a": EVERY_BYTE[0].view(FLOAT4)})


def test_tied_weights_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(50, 8)
            self.head = nn.Linear(8, 50, bias=False)
            self.head.weight = self.embedding.weight

    tied = Tied()
    with SnapshotStore.create(tmp_path, "run", {}) as store:
        snapshot = store.commit(module_weights(tied), epoch=0, global_step=1)
    assert snapshot.size < 1.2 * tied.head.weight.nbytes
    read = SnapshotStore.open(tmp_path).load(snapshot)
    assert read["head.weight"] is read["embedding.weight"]
    assert torch.equal(read["head.weight"], tied.head.weight)
    other = Tied()
    load_into(other, read, snapshot.file)
    assert other.head.weight is other.embedding.weight
    assert torch.equal(other.head.weight, tied.head.weight)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (nn.LazyLinear(3).weight, "has no shape yet"),
        (torch.empty(2, device="meta"), "on the meta device"),
        (torch.eye(2).to_sparse(), "sparse_coo"),
        (torch.ones(2, dtype=torch.complex128), "complex128"),
    ],
)
def test_what_can_not_be_stored_is_refused_by_name(tmp_path: Path, value: Tensor, reason: str) -> None:
    with SnapshotStore.create(tmp_path, "run", {}) as store:
        kept = store.commit({"a": torch.ones(1)}, epoch=0, global_step=1)
        with pytest.raises(ArgumentError, match=rf"'odd\.weight'.*{reason}"):
            store.commit({"a": torch.ones(1), "odd.weight": value}, epoch=1, global_step=2)
    assert SnapshotStore.open(tmp_path).snapshots == (kept,)


def test_copies_are_taken_at_once_and_the_memory_is_used_again() -> None:
    weights = {"a": torch.ones(1000), "b": torch.zeros(7)}
    copy = copy_of(weights)
    place = copy.tensors()["a"].data_ptr()
    first = copy.sha256()
    weights["a"].zero_()
    assert bool(copy.tensors()["a"].eq(1).all())
    assert not copy.matches(weights)
    copy.reserve(plan_layout(weights))
    copy.fill(weights)
    assert copy.tensors()["a"].data_ptr() == place
    assert copy.sha256() != first
    assert copy.matches(weights)


def test_a_copy_matches_nan_but_not_another_sign_of_zero() -> None:
    weights = {"a": torch.tensor([float("nan"), 0.0])}
    copy = copy_of(weights)
    assert copy.matches(weights)
    assert not copy.matches({"a": torch.tensor([float("nan"), -0.0])})


def test_narrower_types(tmp_path: Path) -> None:
    weights = {
        **module_weights(Project()),
        "double": torch.randn(3, dtype=torch.float64),
        "half": torch.randn(3).half(),
    }
    stored = copy_of(weights, torch.bfloat16).tensors()
    for name, value in weights.items():
        wide = value.is_floating_point() and value.dtype != torch.float16
        assert stored[name].dtype == (torch.bfloat16 if wide else value.dtype)
        assert torch.equal(stored[name], value.to(stored[name].dtype))
    with pytest.raises(SnapshotError, match=r"'a' holds values beyond fp16 .*Use dtype='bf16'"):
        copy_of({"a": torch.tensor([1e6])}, torch.float16).parts()


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_what_runs_beside_training_leaves_its_openmp_threads_alone(tmp_path: Path, dtype: torch.dtype | None) -> None:
    weights = {"a": torch.randn(1_000_000)}
    copy = copy_of(weights, dtype)
    native = []

    def run_beside() -> None:
        before = count_native_threads()
        copy.touch()
        copy.sha256()
        with SnapshotStore.create(tmp_path / "h", "run", {}) as store:
            store.commit(copy, epoch=0, global_step=1)
        native.append(count_native_threads() - before)

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        thread = threading.Thread(target=run_beside)
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(threads)
    assert native == [0], "a second team of threads slows all of training down"
