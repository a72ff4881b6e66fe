"""Real gloo processes under FSDP2: the whole weights are harvested though no rank has them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_ckptkd import SnapshotStore

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    roots = {devices: tmp_path_factory.mktemp(f"devices_{devices}") for devices in (1, 2)}
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    for devices, root in roots.items():
        command = [sys.executable, "-m", "tests.processes.fully_shard", str(devices), str(root)]
        log = root / "log.txt"
        with log.open("w") as out:
            done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=out, stderr=out, timeout=240)
        assert done.returncode == 0, log.read_text()
    return roots


def test_the_weights_are_what_torch_gathers(roots: dict[int, Path]) -> None:
    store = SnapshotStore.open(roots[2] / "harvest")
    assert [snapshot.epoch for snapshot in store.snapshots] == [0, 1, 2]
    for snapshot in store.snapshots:
        weights = store.load(snapshot)
        gathered = torch.load(roots[2] / f"gathered_{snapshot.epoch}.pt", weights_only=True)
        assert weights.keys() == gathered.keys()
        assert all(torch.equal(weights[name], value) for name, value in gathered.items())
        assert weights["tied.weight"] is weights["net.3.weight"]


def test_the_snapshots_are_those_of_one_process(roots: dict[int, Path]) -> None:
    one, two = (SnapshotStore.open(roots[devices] / "harvest") for devices in (1, 2))
    for a, b in zip(one.snapshots, two.snapshots, strict=True):
        assert (a.epoch, a.global_step, a.metrics.keys()) == (b.epoch, b.global_step, b.metrics.keys())
        weights = two.load(b)
        for name, value in one.load(a).items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)


def test_selecting_at_the_end_is_refused_before_training(roots: dict[int, Path]) -> None:
    for rank in (0, 1):
        message = (roots[2] / f"refusal_{rank}.txt").read_text()
        assert "MISelector can't run a sharded module" in message
        assert "ckptkd select" in message
