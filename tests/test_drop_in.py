"""Two added lines change nothing about a project's run but the snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

from lightning_ckptkd import CheckpointHarvester, MISelector, SnapshotStore
from tests.projects import DigitsData, ManualProject, Project, make_trainer, own_callbacks


def run(root: Path, kind: type[Project], added: list[Any]) -> Project:
    seed_everything(1, verbose=False)
    project = kind()
    trainer = make_trainer(root, *own_callbacks(root), *added, enable_checkpointing=True)
    trainer.fit(project, DigitsData())
    return project


@pytest.mark.parametrize("kind", [Project, ManualProject])
def test_nothing_else_changes(tmp_path: Path, kind: type[Project]) -> None:
    plain = run(tmp_path / "plain", kind, [])
    random_after_plain = torch.rand(3)
    dropped_in = run(tmp_path / "ours", kind, [CheckpointHarvester(), MISelector(num_teachers=2)])
    assert torch.equal(torch.rand(3), random_after_plain)

    assert [module.training for module in plain.modules()] == [module.training for module in dropped_in.modules()]
    for (name, a), (_, b) in zip(plain.state_dict().items(), dropped_in.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    own = sorted(path.name for path in (tmp_path / "plain" / "own").iterdir())
    assert sorted(path.name for path in (tmp_path / "ours" / "own").iterdir()) == own
    for file in own:
        a, b = (torch.load(tmp_path / side / "own" / file, weights_only=True) for side in ("plain", "ours"))
        assert_equal({**a, "callbacks": {}}, {**b, "callbacks": {}})
        ours = {key for key in b["callbacks"] if "CheckpointHarvester" in key}
        assert {key.split("{")[0] for key in a["callbacks"]} == {
            key.split("{")[0] for key in set(b["callbacks"]) - ours
        }

    folder = tmp_path / "ours" / "snapshots"
    assert len(SnapshotStore.open(folder).snapshots) == 4
    assert (folder / "selection.json").exists()
    assert (folder / "selection.png").exists()
    assert not (tmp_path / "plain" / "snapshots").exists()


def assert_equal(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b
