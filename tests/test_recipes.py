"""The recipes run as they stand in the docs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

RECIPES = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()
BLOCKS = dict(re.findall(r"^## (.+?)$.*?^```python\n(.+?)^```$", RECIPES, re.MULTILINE | re.DOTALL))
METRICS = {
    "Images": ("multiclass", {"val_acc"}),
    "Text, with transformers": ("multiclass", {"val_acc"}),
    "Segmentation": ("dense", {"val_acc", "val_miou"}),
    "Regression on a table": ("regression", {"val_rmse", "val_r2"}),
}


def test_each_section_has_a_program() -> None:
    assert set(BLOCKS) == set(METRICS) == set(re.findall(r"^## (.+)$", RECIPES, re.MULTILINE))


@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX`")  # once in a process, whoever is first
@pytest.mark.filterwarnings("ignore:The number of training batches")  # fewer than Lightning logs each of
@pytest.mark.parametrize("name", list(METRICS))
def test_a_recipe(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seed_everything(0, verbose=False)
    names: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(BLOCKS[name], f"docs/recipes.md, {name}", "exec"), names)
    task, metrics = METRICS[name]
    selection = json.loads((tmp_path / "harvest" / "selection.json").read_text())
    assert selection["settings"]["task"]["name"] == task
    assert selection["chosen"]
    found = sorted((tmp_path / "lightning_logs").glob("version_1/checkpoints/*.ckpt"))
    weights = torch.load(found[0], weights_only=True)["state_dict"]
    assert weights and all(key.startswith("student.") for key in weights)
    (logged,) = (tmp_path / "lightning_logs").glob("version_1/metrics.csv")
    assert metrics <= set(logged.read_text().splitlines()[0].split(","))
