"""What benchmarks/distillation/peers.py compares does the same work: one step leaves the same student."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.distillation import peer_loops, peers
from benchmarks.distillation.step_parts import step_parts
from lightning_ckptkd import DistillationModule, SnapshotStore
from lightning_ckptkd.teachers import TeacherCache, TeacherEnsemble
from lightning_ckptkd.zoo import CIFARResNet
from tests.teachers.test_folding import trained

CPU = torch.device("cpu")
IMAGES = 128  # one step, so that the order of the images does not matter


def network() -> nn.Module:
    return CIFARResNet(8, 10, 2, 1)


@pytest.fixture
def data() -> TensorDataset:
    return TensorDataset(torch.rand(IMAGES, 1, 8, 8), torch.randint(10, (IMAGES,)))


@pytest.fixture
def harvested(tmp_path: Path) -> tuple[Path, list[nn.Module]]:
    with SnapshotStore.create(tmp_path / "harvest", "run", {}) as store:
        for epoch in range(2):
            store.commit(trained(network()).state_dict(), epoch=epoch, global_step=epoch + 1)
        return tmp_path / "harvest", TeacherEnsemble.load(store, store.snapshots, network()).members


def weights_after_a_step(training: peer_loops.Training, student: nn.Module) -> torch.Tensor:
    watch = peer_loops.Stopwatch(CPU, each_step=False)
    training.run_epoch(watch)
    assert len(watch.steps) == 1
    assert 0 < sum(watch.steps) <= watch.epoch
    return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])


def published(first: nn.Module, teachers: list[nn.Module], data: TensorDataset) -> torch.Tensor:
    student = copy.deepcopy(first)
    return weights_after_a_step(peer_loops.PublishedLoop(student, teachers, data, CPU), student)


@pytest.mark.filterwarnings("ignore:.*no .val_dataloader.*")
@pytest.mark.parametrize("cached", [False, True])
def test_ours(tmp_path: Path, harvested: tuple[Path, list[nn.Module]], data: TensorDataset, cached: bool) -> None:
    folder, teachers = harvested
    first = network()
    student = copy.deepcopy(first)
    cache = TeacherCache(tmp_path / "cache", dtype="fp32") if cached else None
    module = DistillationModule(student, network(), folder, choice=[0, 1], cache=cache)
    training = peer_loops.LightningTraining(module, data, CPU, tmp_path)
    theirs = published(first, teachers, data)
    torch.testing.assert_close(weights_after_a_step(training, student), theirs, atol=1e-4, rtol=1e-3)
    parts = step_parts(training, CPU)
    assert (parts["teachers"] == 0) == cached
    assert parts["teachers"] < parts["step"]


def test_where_a_published_step_goes(harvested: tuple[Path, list[nn.Module]], data: TensorDataset) -> None:
    parts = step_parts(peer_loops.PublishedLoop(network(), harvested[1], data, CPU), CPU)
    assert 0 < parts["teachers"] < parts["step"]


@pytest.mark.parametrize("number", [1, 2])
def test_torchdistill(harvested: tuple[Path, list[nn.Module]], data: TensorDataset, number: int) -> None:
    pytest.importorskip("torchdistill", reason="pip install 'lightning-ckptkd[bench]'")
    teachers = harvested[1][:number]
    first = network()
    student = copy.deepcopy(first)
    training = peer_loops.TorchdistillTraining(student, teachers, data, CPU)
    theirs = published(first, copy.deepcopy(teachers), data)
    torch.testing.assert_close(weights_after_a_step(training, student), theirs, atol=1e-4, rtol=1e-3)


def test_a_ratio_says_where_we_lose() -> None:
    assert peers.Ratio.of([1, 1, 1], [2, 2, 2]).verdict == "faster"
    assert peers.Ratio.of([3, 3, 3], [2, 2, 2]).verdict == "SLOWER"
    assert peers.Ratio.of([1, 3, 5], [2, 2, 2]).verdict == "SLOWER, but within the noise"


def test_the_section_names_what_is_slower_and_what_is_missing() -> None:
    ways = {
        name: {
            "epochs": [epoch] * 2,
            "steps": [epoch / 2] * 2,
            "first_epoch": 3 * epoch,
            "first_preparation": epoch,
            "parts": [{"step": epoch / 2, "teachers": epoch / 8}] * 3,
        }
        for name, epoch in (
            (peers.LIVE, 2.0),
            (peers.COMPILED, 1.6),
            (peers.CACHED, 1.0),
            (peers.PUBLISHED, 4.0),
            (peers.ALONE, 1.5),
        )
    }
    about = {"machine": {"gpu": "a GPU"}, "settings": {"steps": 2}, "others_share": 0.25}
    seconds = {peers.SELECTOR: [1.0, 1.0], peers.BRUTE_FORCE: [8.0, 8.0], peers.DECODERS: [0.5, 0.5]}
    document = {
        "distillation": {**about, "seconds": {"4": ways}},
        "selection": {**about, "seconds": {"seconds": seconds, "chosen_epochs": {}}},
    }
    rows = [[cell.strip() for cell in line.split("|")] for line in peers.make_section({"x": document}).splitlines()]
    assert ["", "published loop", "4", "live", "0.5", "0.5", "faster", "0.5 to 0.5", ""] in rows
    assert ["", "published loop", "4", "live, compiled", "0.4", "0.4", "faster", "0.4 to 0.4", ""] in rows
    assert ["", "published loop", "4", "2000", "500", "1500", ""] in rows  # where a step's time goes
    assert ["", "training without a teacher", "4", "live", "1.33", "1.33", "SLOWER", "1.33 to 1.33", ""] in rows
    assert ["", "training without a teacher", "4", "cached", "0.667", "0.667", "faster", "0.667 to 0.667", ""] in rows
    assert any(row[1:4] == ["MISelector / the paper's decoders", "2", "SLOWER"] for row in rows if len(row) > 3)
    text = str(rows)
    assert "torchdistill" not in text and "bfloat16" not in text  # they were not there
    assert "ModelCheckpoint" not in text  # harvest.json is of no GPU
    assert "25.0% during distillation, 25.0% during selection" in text
