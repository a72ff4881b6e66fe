"""The examples run as they stand, each in an empty folder."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

REPOSITORY = Path(__file__).parents[1]
EXAMPLES = REPOSITORY / "examples"
METRICS = {
    "images_timm": ("multiclass", {"val_acc"}),
    "text_transformers": ("multiclass", {"val_acc"}),
    "segmentation": ("dense", {"val_acc", "val_miou"}),
    "tabular_regression": ("regression", {"val_rmse", "val_r2"}),
    "folder_of_checkpoints": ("multiclass", {"val_acc"}),
    "two_processes": ("multiclass", {"val_acc"}),
}
MOST_LINES = 100


def run(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(root)
    seed_everything(0, verbose=False)
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="example")


def check(name: str, root: Path) -> None:
    """The teachers were chosen for the task, and the student alone is in its checkpoint, with its metrics logged."""
    task, metrics = METRICS[name]
    selection = json.loads((root / "harvest" / "selection.json").read_text())
    assert selection["settings"]["task"]["name"] == task
    assert selection["chosen"]
    (logs,) = (path for path in (root / "lightning_logs").iterdir() if path.name == "version_1")
    (found,) = logs.glob("checkpoints/*.ckpt")
    checkpoint = torch.load(found, weights_only=True)
    weights = checkpoint["state_dict"]
    assert weights and all(key.startswith("student.") for key in weights)
    assert metrics <= checkpoint["lightning_ckptkd_metrics"].keys()


def test_each_example_is_short_and_in_the_recipes() -> None:
    text = (REPOSITORY / "docs" / "recipes.md").read_text()
    names = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert sorted(re.findall(r"literalinclude} \.\./examples/(\w+)\.py", text)) == names
    assert sorted([*METRICS, "noisy_labels", "run_explained"]) == names
    for name in names:
        assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= MOST_LINES, name


@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`")  # once in a process, whoever is first
@pytest.mark.filterwarnings("ignore:The number of training batches")  # fewer than Lightning logs each of
@pytest.mark.parametrize("name", [name for name in METRICS if name != "two_processes"])
def test_an_example(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(name, tmp_path, monkeypatch)
    check(name, tmp_path)


@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_noisy_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What it is there to show: the last snapshot's student is the worse one."""
    run("noisy_labels", tmp_path, monkeypatch)
    found = re.findall(r"student of the (\w+) teacher: ([\d.]+)% of the clean labels", capsys.readouterr().out)
    accuracy = {name: float(value) for name, value in found}
    assert accuracy.keys() == {"full", "selected"}
    assert accuracy["selected"] > accuracy["full"]


@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_the_picture_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each snapshot has its line, and those that teach are marked."""
    run("run_explained", tmp_path, monkeypatch)
    lines = re.findall(
        r"^epoch (\d): .*nats of the label, (\d+)% of all.*rank (\d)( <- teaches)?$", capsys.readouterr().out, re.M
    )
    assert [line[0] for line in lines] == list("012345")
    assert all(0 < int(line[1]) <= 100 for line in lines)
    assert {line[2] for line in lines if line[3]} == {"1", "2", "3"}


def test_two_processes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(EXAMPLES / "two_processes.py")]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "distributed_backend=gloo" in done.stderr and "2 processes" in done.stderr
    check("two_processes", tmp_path)
