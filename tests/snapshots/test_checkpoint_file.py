"""Checkpoints of other people's projects, through the one door that harvest and export share."""

from __future__ import annotations

import argparse
import enum
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from omegaconf import OmegaConf
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from lightning_ckptkd import ArgumentError, SnapshotError, export_student, harvest_checkpoints
from lightning_ckptkd.snapshots import SnapshotStore
from tests.projects import DigitsData, Project, make_trainer


class Mode(enum.Enum):
    FAST = "fast"


class Config:
    def __init__(self) -> None:
        self.lr = 0.1


def document(**parts: Any) -> dict[str, Any]:
    return {"state_dict": {"a": torch.ones(2)}, "epoch": 0, "global_step": 1, **parts}


def take(content: object, folder: Path, **options: Any) -> SnapshotStore:
    (folder / "checkpoints").mkdir()
    torch.save(content, folder / "checkpoints" / "other.ckpt")
    return harvest_checkpoints(folder / "checkpoints", folder / "harvest", progress=False, **options)


OTHERS: dict[str, Callable[[], dict[str, Any]]] = {
    "OmegaConf": lambda: {"hyper_parameters": OmegaConf.create({"lr": 0.1, "layers": [1, 2], "name": "${lr}"})},
    "Namespace": lambda: {"hyper_parameters": {"args": argparse.Namespace(lr=0.1)}},
    "Namespace alone": lambda: {"hyper_parameters": argparse.Namespace(lr=0.1)},
    "Path": lambda: {"hyper_parameters": {"root": Path("data")}},
    "numpy scalars": lambda: {"hyper_parameters": {"lr": numpy.float64(0.1), "n": numpy.int64(3)}},
    "numpy array": lambda: {"hyper_parameters": {"mean": numpy.ones(3)}},
    "enum": lambda: {"hyper_parameters": {"mode": Mode.FAST}},
    "own class": lambda: {"hyper_parameters": {"config": Config()}},
    "module": lambda: {"hyper_parameters": {"net": nn.Linear(2, 2)}},
    "functions": lambda: {"hyper_parameters": {"activation": torch.relu, "loss": partial(math.pow, 2)}},
    "class as key": lambda: {"callbacks": {ModelCheckpoint: {"monitor": "loss", "current_score": torch.tensor(0.5)}}},
    "numpy score": lambda: {"callbacks": {"EarlyStopping": {"best_score": numpy.float32(1), "patience": 3}}},
    "sets and bytes": lambda: {"hyper_parameters": {"set": {1, 2}, "frozen": frozenset("a"), "raw": b"\x00"}},
    "optimizer": lambda: {"optimizer_states": [{"state": {0: {"step": numpy.int64(3), "object": Config()}}}]},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_only_the_weights_are_made(tmp_path: Path, kind: str) -> None:
    store = take(document(**OTHERS[kind]()), tmp_path)
    (weight,) = store.load(store.snapshots[0]).values()
    assert torch.equal(weight, torch.ones(2))


def test_what_is_plain_is_told(tmp_path: Path) -> None:
    hyper_parameters = {"lr": 0.1, "sizes": (1, 2), "root": Path("data"), "loss": Config, "n": numpy.int64(3), 4: None}
    callbacks = {
        ModelCheckpoint: {"monitor": "loss", "current_score": torch.tensor(0.5)},
        "other": {"monitor": "accuracy", "current_score": 2},
        "nan": {"monitor": "nan", "current_score": torch.tensor(float("nan"))},
        "none": {"monitor": "none", "current_score": torch.ones(2)},
    }
    store = take(document(hyper_parameters=hyper_parameters, callbacks=callbacks), tmp_path)
    assert store.snapshots[0].metrics == {"loss": 0.5, "accuracy": 2.0, "nan": None}
    told = store.manifest.source["hyper_parameters"]
    assert (told["lr"], told["sizes"], told["4"]) == (0.1, [1, 2], None)
    assert told["loss"] == "tests.snapshots.test_checkpoint_file.Config"
    assert told["root"].startswith("<pathlib.") and told["n"].startswith("<numpy.")


def test_a_run_with_omegaconf_and_callbacks(tmp_path: Path) -> None:
    """As Lightning itself writes it, of a user whose hyper-parameters are objects."""

    class Configured(Project):
        def __init__(self, config: Any, root: Path) -> None:
            super().__init__()
            self.save_hyperparameters()

    own = ModelCheckpoint(dirpath=tmp_path / "own", monitor="val_loss", save_top_k=-1)
    module = Configured(OmegaConf.create({"lr": 0.1}), Path("data"))
    trainer = make_trainer(tmp_path, own, EarlyStopping("val_loss"), max_epochs=2, enable_checkpointing=True)
    trainer.fit(module, DigitsData())
    store = harvest_checkpoints(tmp_path / "own", tmp_path / "harvest", progress=False)
    assert [snapshot.epoch for snapshot in store.snapshots] == [0, 1]
    last = store.load(store.snapshots[-1])
    assert all(torch.equal(last[name], value) for name, value in module.state_dict().items())


@pytest.fixture
def shards() -> Any:
    """What two ranks of FSDP2 hold of a weight, as rank 0 saves it."""
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=fake_store())
    mesh = init_device_mesh("cpu", (2,))
    yield lambda placement: distribute_tensor(torch.arange(8.0).view(4, 2), mesh, [placement], src_data_rank=None)
    torch.distributed.destroy_process_group()


def fake_store() -> Any:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    return FakeStore()


@pytest.mark.parametrize("wrapped", [False, True], ids=["tensor", "parameter"])
@pytest.mark.parametrize("placement", [Shard(0), Replicate()], ids=["sharded", "replicated"])
def test_shards_are_refused_at_each_door(tmp_path: Path, shards: Any, placement: Any, wrapped: bool) -> None:
    value = shards(placement)
    assert isinstance(value, DTensor)
    state = {"student.a": torch.ones(1), "student.weight": nn.Parameter(value) if wrapped else value}
    torch.distributed.destroy_process_group()
    message = r"other\.ckpt holds one rank's shards \('student\.weight' is torch\.distributed\..*DTensor\), not whole"
    with pytest.raises(SnapshotError, match=message):
        take(document(state_dict=state), tmp_path)
    for out in ("student.pt", "student.safetensors"):
        with pytest.raises(SnapshotError, match=message):
            export_student(tmp_path / "checkpoints" / "other.ckpt", tmp_path / out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints"]
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=fake_store())


def test_the_remedy_for_shards(tmp_path: Path, shards: Any) -> None:
    """What the error advises: a full state dict."""
    store = take(document(state_dict={"weight": shards(Replicate()).to_local()}), tmp_path)
    (weight,) = store.load(store.snapshots[0]).values()
    assert torch.equal(weight, torch.arange(8.0).view(4, 2))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (lambda: torch.eye(2).to_sparse(), r"torch\._utils\._rebuild_sparse_tensor"),
        (lambda: torch.ones(2, device="meta"), r"torch\._utils\._rebuild_meta_tensor_no_storage"),
        (lambda: {"scale": 2}, "dict"),
        (lambda: numpy.ones(2), r"numpy.*_reconstruct"),
        (lambda: None, "NoneType"),
        (lambda: Config, r"tests\.snapshots\.test_checkpoint_file\.Config"),
    ],
)
def test_what_is_no_plain_tensor_is_named_where_it_is_asked_for(tmp_path: Path, value: Any, kind: str) -> None:
    state = {"net.a": torch.ones(2), "odd": value()}
    with pytest.raises(ArgumentError, match=rf"holds {kind} at 'odd'.*with submodule='\.\.\.'"):
        take(document(state_dict=state), tmp_path)
    taken = harvest_checkpoints(tmp_path / "checkpoints", tmp_path / "harvest", submodule="net", progress=False)
    assert set(taken.load(taken.snapshots[0])) == {"a"}


@pytest.mark.parametrize("size", [2**24, 2**40])
def test_weights_far_larger_than_their_file(tmp_path: Path, size: int) -> None:
    state = {"a": torch.ones(1).expand(size)}
    with pytest.raises(
        SnapshotError, match=rf"other\.ckpt has \d+ bytes, but its weights would take {4 * size}\. It is"
    ):
        take(document(state_dict=state), tmp_path)
    assert not (tmp_path / "harvest").exists()


def test_damage_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "damaged.ckpt"
    torch.save(document(state_dict={"student.a": torch.ones(10_000)}), path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(SnapshotError, match=r"damaged\.ckpt can't be taken over: .*another checksum.*Move it out"):
        harvest_checkpoints(path.parent, tmp_path / "harvest", progress=False)
    with pytest.raises(SnapshotError, match=r"damaged\.ckpt can't be exported: .*another checksum.*Give a \.ckpt"):
        export_student(path, tmp_path / "student.pt")


def test_links_are_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    torch.save(document(global_step=7), tmp_path / "elsewhere" / "linked.ckpt")
    (tmp_path / "checkpoints").mkdir()
    link = tmp_path / "checkpoints" / "linked.ckpt"
    link.symlink_to(tmp_path / "elsewhere" / "linked.ckpt")
    with pytest.raises(ArgumentError, match=r"checkpoints holds no \.ckpt files"):
        harvest_checkpoints(link.parent, tmp_path / "harvest", progress=False)
    torch.save(document(global_step=3), link.parent / "own.ckpt")
    store = harvest_checkpoints(link.parent, tmp_path / "harvest", progress=False)
    assert [snapshot.global_step for snapshot in store.snapshots] == [3]


def test_no_class_of_the_file_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.py").write_text("class Config:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import theirs  # type: ignore[import-not-found]

    content = document(hyper_parameters={"config": theirs.Config()})
    (tmp_path / "checkpoints").mkdir()
    torch.save(content, tmp_path / "checkpoints" / "a.ckpt")
    monkeypatch.delitem(sys.modules, "theirs")
    (tmp_path / "theirs.py").unlink()
    store = harvest_checkpoints(tmp_path / "checkpoints", tmp_path / "harvest", progress=False)
    assert store.manifest.source["hyper_parameters"] == {"config": "<theirs.Config>"}
    assert "theirs" not in sys.modules
