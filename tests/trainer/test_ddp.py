"""Real gloo processes: two ranks make the same snapshots, ranking and student as one process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_ckptkd import SnapshotStore
from lightning_ckptkd.snapshots import Selection

REPOSITORY = Path(__file__).parents[2]


def run(devices: int, root: Path, scenario: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.processes.two_ranks", str(devices), str(root), scenario]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    run(1, one, "whole")
    run(2, two, "whole")
    return one, two


def test_the_same_snapshots(roots: tuple[Path, Path]) -> None:
    one, two = (SnapshotStore.open(root / "snapshots") for root in roots)
    assert [(s.epoch, s.global_step) for s in one.snapshots] == [(s.epoch, s.global_step) for s in two.snapshots]
    for a, b in zip(one.snapshots, two.snapshots, strict=True):
        weights_a, weights_b = one.load(a), two.load(b)
        assert weights_a.keys() == weights_b.keys()
        for name, value in weights_a.items():
            torch.testing.assert_close(weights_b[name], value, rtol=1e-4, atol=1e-5)
        assert a.metrics.keys() == b.metrics.keys()
        assert {"train_loss", "own_hook", "val_loss"} <= a.metrics.keys()
        assert b.metrics["own_hook"] == a.metrics["own_hook"] == a.epoch
        assert b.metrics["val_loss"] == pytest.approx(a.metrics["val_loss"], rel=1e-3)


def test_the_same_ranking(roots: tuple[Path, Path]) -> None:
    one, two = (Selection.read(SnapshotStore.open(root / "snapshots")) for root in roots)
    assert [candidate.rank for candidate in two.candidates] == [candidate.rank for candidate in one.candidates]
    for a, b in zip(one.candidates, two.candidates, strict=True):
        assert b.input_information == pytest.approx(a.input_information, rel=1e-3)
        assert b.label_information == pytest.approx(a.label_information, rel=1e-3)
        assert b.epoch == a.epoch
    assert two.probe == one.probe


def test_the_same_student(roots: tuple[Path, Path]) -> None:
    one = torch.load(roots[0] / "student_0.pt", weights_only=True)
    ranks = [torch.load(roots[1] / f"student_{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, value in one.items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-4, atol=1e-5)
    results = [json.loads((root / "result.json").read_text()) for root in roots]
    assert results[1] == pytest.approx(results[0], abs=0.011)


def test_the_same_student_from_a_cache_that_all_ranks_fill(roots: tuple[Path, Path]) -> None:
    live = torch.load(roots[0] / "student_0.pt", weights_only=True)
    for root, ranks in zip(roots, (1, 2), strict=True):
        assert len(list((root / "cache").glob("chunk-*.safetensors"))) == 6
        assert len(list((root / "cache").glob("rank-*"))) == ranks
        for rank in range(ranks):
            cached = torch.load(root / f"cached_{rank}.pt", weights_only=True)
            for name, value in live.items():
                torch.testing.assert_close(cached[name], value, rtol=1e-4, atol=1e-5)


def test_each_rank_mixes_in_its_own_way(roots: tuple[Path, Path]) -> None:
    alone = torch.load(roots[0] / "mixed_0.pt", weights_only=True)
    first, second = (torch.load(roots[1] / f"mixed_{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(first["lam"]) == 3 * 8
    assert first["lam"] == alone["lam"]
    assert not set(first["lam"]) & set(second["lam"])
    assert all(torch.equal(first["student"][name], value) for name, value in second["student"].items())


def test_the_same_projectors_where_one_teacher_runs_at_a_time(roots: tuple[Path, Path]) -> None:
    one = torch.load(roots[0] / "matched_0.pt", weights_only=True)
    ranks = [torch.load(roots[1] / f"matched_{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert sum(name.startswith("projectors.") for name in one) == 4
    for name, value in one.items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-4, atol=1e-5)


def test_any_number_of_ranks_gives_the_same_scores(harvest: Path, tmp_path: Path) -> None:
    """203 samples and 4 snapshots do not divide by 3 ranks as by one."""
    documents: dict[str, list[Any]] = {"top": [], "greedy": [], "soup": [], "race": [], "proxy": []}
    for ranks in (1, 3):
        folder = tmp_path / str(ranks)
        shutil.copytree(harvest, folder)
        select_on(ranks, folder)
        for ensemble, found in documents.items():
            found.append(json.loads((folder / f"{ensemble}.json").read_text()))
    for name, (first, *others) in documents.items():
        assert len(others) == 1
        rounding = 1e-5 if name == "proxy" else 1e-10  # students that step as one are three, or two and one
        for other in others:
            assert other["chosen"] == first["chosen"]
            assert other["probe"] == first["probe"]
            for part in ("snapshots", "joint"):
                assert [words(item) for item in other[part]] == [words(item) for item in first[part]]
                for a, b in zip(first[part], other[part], strict=True):
                    assert numbers(b) == pytest.approx(numbers(a), rel=rounding)
    assert len(documents["greedy"][0]["joint"]) == 2
    assert any(item["scored_on"] is not None for item in documents["race"][0]["snapshots"])
    soups = [found["soup"] for found in documents["soup"]]
    assert soups[0]["batch_norm"]["samples"] == 300 and soups[0]["batch_norm"]["of"] == "training"
    for other in soups[1:]:
        assert words(other) == words(soups[0]) | {name: other[name] for name in ("best", "weights") if name in other}
        assert other["information"] == pytest.approx(soups[0]["information"], rel=1e-10)
    assert sum(item["student_information"] is not None for item in documents["proxy"][0]["snapshots"]) == 3


def select_on(ranks: int, folder: Path) -> None:
    shared = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    shared |= {"WORLD_SIZE": str(ranks), "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.processes.select_ranks", str(folder)],
            cwd=REPOSITORY,
            env={**os.environ, **shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, outputs


def numbers(item: dict[str, Any]) -> list[float]:
    return [value for value in item.values() if isinstance(value, float)]


def words(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if not isinstance(value, float)}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def test_an_error_on_one_rank_ends_both_with_its_message(tmp_path: Path) -> None:
    run(2, tmp_path, "damaged")
    messages = [(tmp_path / f"rank_{rank}.txt").read_text() for rank in (0, 1)]
    for message in messages:
        assert message.startswith("SnapshotError"), message
        assert "epoch=1-" in message, message
        assert "has 7 bytes where the manifest says" in message, message
        assert "rank 1 failed, so all ranks stop" in message, message


def test_a_selection_that_goes_wrong_on_one_rank_ends_none(tmp_path: Path) -> None:
    run(2, tmp_path, "in_vain")
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in (0, 1))
    assert second == [True]
    assert first[0] is True
    assert "rank 1 failed, so all ranks stop: OSError: the disk is gone. Select by hand: `ckptkd select" in first[1]
    assert len(SnapshotStore.open(tmp_path / "snapshots").snapshots) == 2
