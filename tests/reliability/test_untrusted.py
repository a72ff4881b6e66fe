"""Files of a harvest and checkpoints are untrusted: all that damage and hostility may cause is one clear error."""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_ckptkd import CkptKDError, MISelector, SnapshotError, SnapshotStore, harvest_checkpoints
from tests.reliability.corruption import clean_trials, damage_trials
from tests.reliability.forking import run_trials


def test_damage_is_found_before_a_tensor_is_made(tmp_path: Path) -> None:
    assert damage_trials(tmp_path, 300, seed=0) == 300


def test_what_is_undamaged_is_never_refused(tmp_path: Path) -> None:
    assert clean_trials(tmp_path, 200, seed=0) == 200


def test_mutated_manifests() -> None:
    result = run_trials("hostile_manifests", 1500, 0)
    assert result["accepted"] + result["refused"] == 1500
    assert result["refused"] > result["accepted"] > 0
    assert result["memory_growth_bytes"] < 200 * 2**20


def test_names_and_links_that_lead_elsewhere() -> None:
    assert run_trials("hostile_names", 200, 0) == {"trials": 200, "refused": 200}


def test_code_in_checkpoints_is_not_run() -> None:
    result = run_trials("hostile_checkpoints", 120, 0)
    assert (result["refused"], result["taken"], result["executing"]) == (90, 30, 90)


class Reduced:
    """Pickles as a call, with the object's state and items if they are given."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def shadowed(method: str, items: dict[str, object]) -> Reduced:
    """An OrderedDict that has a number in place of a method."""
    return Reduced(OrderedDict, (), {method: 5}, None, iter(items.items()))


def document(**parts: object) -> dict[str, object]:
    return {"state_dict": {"a": torch.ones(2)}, "epoch": 0, "global_step": 1, **parts}


def scored(score: object) -> dict[str, object]:
    return document(callbacks={"ModelCheckpoint": {"monitor": "val_loss", "current_score": score}})


def cyclic() -> dict[str, object]:
    mapping: dict[str, object] = {}
    mapping["itself"] = mapping
    return mapping


def nested(depth: int, width: int) -> object:
    """A list of lists that takes few bytes in a pickle, which refers again to what it has, and many in JSON."""
    value: object = "x"
    for _ in range(depth):
        value = [value] * width
    return value


def with_attribute(name: str) -> torch.Tensor:
    value = torch.ones(2)
    setattr(value, name, 5)
    return value


ODD_CHECKPOINTS: dict[str, Any] = {
    "key that is no string": document(state_dict={1: torch.ones(2)}),
    "key that is no Unicode": document(state_dict={"\ud800": torch.ones(2)}),
    "key of the format": document(state_dict={"__metadata__": torch.ones(2)}),
    "key with NUL": document(state_dict={"a\0b\n": torch.ones(2)}),
    "value that is no tensor": document(state_dict={"a": None}),
    "no weights": document(state_dict={}),
    "sparse tensor": document(state_dict={"a": torch.eye(2).to_sparse()}),
    "meta tensor": document(state_dict={"a": torch.ones(2, device="meta")}),
    "tensor of 4 TiB in 4 bytes": document(state_dict={"a": torch.ones(1).expand(2**40)}),
    "tensor of 64 MiB in 4 bytes": document(state_dict={"a": torch.ones(1).expand(2**24)}),
    "tensor with an attribute": document(state_dict={"a": with_attribute("detach")}),
    "tensor without a size": document(state_dict={"a": with_attribute("numel")}),
    "weights without items": document(state_dict=shadowed("items", {"a": torch.ones(2)})),
    "document without get": shadowed("get", document()),
    "step beyond 64 bits": document(global_step=2**63),
    "step that is a truth value": document(global_step=True),
    "epoch of 300 digits": document(epoch=10**300),
    "hyper-parameters that are a tensor": document(hyper_parameters=torch.ones(2)),
    "hyper-parameters in themselves": document(hyper_parameters=cyclic()),
    "hyper-parameters without items": document(hyper_parameters=shadowed("items", {"lr": 0.1})),
    "hyper-parameters that are deep": document(hyper_parameters=nested(2000, 1)),
    "hyper-parameters that explode": document(hyper_parameters=nested(5, 10)),
    "hyper-parameter of 16 MiB": document(hyper_parameters={"a": Reduced(bytearray, (2**24,))}),
    "callbacks without values": document(callbacks=shadowed("values", {"a": 1})),
    "score of two numbers": scored(torch.ones(2)),
    "score of 400 digits": scored(10**400),
    "score without a value": scored(torch.ones(1, device="meta")),
}


@pytest.mark.parametrize("kind", ODD_CHECKPOINTS)
def test_odd_checkpoints_are_refused_or_harvested(kind: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)  # to write what is deep
    torch.save(ODD_CHECKPOINTS[kind], tmp_path / "checkpoints" / "odd.ckpt")
    sys.setrecursionlimit(limit)
    tracemalloc.start()
    try:
        harvest_checkpoints(tmp_path / "checkpoints", tmp_path / "harvest", progress=False)
    except CkptKDError:
        pass
    else:
        store = SnapshotStore.open(tmp_path / "harvest")
        assert (tmp_path / "harvest" / "manifest.json").stat().st_size < 2**20
        (weights,) = store.load(store.snapshots[0]).values()
        assert torch.equal(weights, torch.ones(2))
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 48 * 2**20


def make_finite_harvest(folder: Path) -> None:
    with SnapshotStore.create(folder, "run", {}) as store:
        for step in range(1, 5):
            store.commit({"a": torch.full((2,), float(step))}, epoch=step, global_step=step)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("run_id", ["\ud800", "\0", "x" * 100_000], ids=["surrogate", "NUL", "long"])
def test_run_ids_that_are_no_text(run_id: str, tmp_path: Path) -> None:
    make_finite_harvest(tmp_path)
    edit(tmp_path, run_id=run_id)
    try:
        MISelector(rule="spaced", num_teachers=2).select(tmp_path, progress=False)
    except CkptKDError as error:
        assert str(error).isprintable()


@pytest.mark.parametrize(
    "source",
    [
        pytest.param({"lr": float("nan")}, id="NaN"),
        pytest.param(nested(900, 1), id="deep"),
        pytest.param({"key": "\ud800"}, id="text"),
    ],
)
def test_going_on_in_a_harvest_of_odd_source(source: object, tmp_path: Path) -> None:
    make_finite_harvest(tmp_path)
    edit(tmp_path, source={"hyper_parameters": source})
    try:
        with SnapshotStore.create(tmp_path, "run", {}) as store:
            store.commit({"a": torch.ones(2)}, epoch=9, global_step=99)
    except CkptKDError:
        return
    assert len(SnapshotStore.open(tmp_path).snapshots) == 5


@pytest.mark.parametrize("key", ["run_id", "version", "format"])
def test_messages_quote_little_and_no_control_characters(key: str, tmp_path: Path) -> None:
    make_finite_harvest(tmp_path)
    edit(tmp_path, **{key: "\x1b[2J\n" + "x" * 10_000})
    with pytest.raises(SnapshotError) as caught:
        SnapshotStore.create(tmp_path, "run", {})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000


def test_many_empty_snapshots_are_refused_at_once(tmp_path: Path) -> None:
    make_finite_harvest(tmp_path)
    edit(tmp_path, snapshots=[{}] * 1_000_000)
    with pytest.raises(SnapshotError, match="'epoch' should be"):
        SnapshotStore.open(tmp_path)


def test_a_file_beyond_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the manifest names the right size of a sparse file."""
    make_finite_harvest(tmp_path)
    store = SnapshotStore.open(tmp_path)

    def fail(*_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(os, "read", fail)
    with pytest.raises(SnapshotError):
        store.load(store.snapshots[0])


def test_a_tied_tensor_may_have_any_name(tmp_path: Path) -> None:
    value = torch.ones(2)
    with SnapshotStore.create(tmp_path, "run", {}) as store:
        snapshot = store.commit({"a": value, "format": value}, epoch=0, global_step=1)
    assert set(store.load(snapshot)) == {"a", "format"}
