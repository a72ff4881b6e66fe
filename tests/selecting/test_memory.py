"""Wide inputs: what they need is known when fitting starts, and they are scored in about the memory that they have."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_ckptkd import ArgumentError, CheckpointHarvester, MISelector
from lightning_ckptkd.selecting import memory
from lightning_ckptkd.selecting.memory import check_memory, machine_bytes
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.selecting.rules import MI, make_rule
from lightning_ckptkd.tasks.batch import Batch
from tests.projects import make_trainer

WIDTH = 160_000  # ten seconds of sound at 16 kHz


class Sounds(Dataset[Any]):
    """Noise of a pitch; one of two."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.randn(WIDTH // 100, generator=torch.Generator().manual_seed(index))
        return (noise.repeat_interleave(100) if index % 2 else noise.repeat(100)), index % 2


class Listener(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv1d(1, 4, 50, stride=50), nn.ReLU(), nn.AdaptiveAvgPool1d(8), nn.Flatten(), nn.Linear(32, 2)
        )

    def forward(self, x: Tensor) -> Any:
        return self.network(x[:, None])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 1e-2)


def fit(root: Path, **options: Any) -> MISelector:
    selector = MISelector(probe=DataLoader(Sounds(250), 20), on_error="raise", **options)
    trainer = make_trainer(root, CheckpointHarvester(root / "harvest"), selector, max_epochs=2)
    trainer.fit(Listener(), DataLoader(Sounds(16), 8))
    return selector


def sounds(number: int = 16) -> Probe:
    return Probe((Batch(torch.randn(number, WIDTH), torch.arange(number) % 2),))


def test_sound_that_the_machine_can_not_hold_and_less_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_TOLD_FROM", 2**20)
    monkeypatch.setattr(memory, "machine_bytes", lambda: 350 * 2**20)
    told = r"probe_size: the 250 samples of the probe set and I\(X;F\) of 160,000 numbers each take .* probe_size=(\d+)"
    with pytest.raises(ArgumentError, match=told) as caught:
        fit(tmp_path)
    assert not list((tmp_path / "harvest").glob("*.safetensors")), "nothing was trained"
    smaller = re.search(told, str(caught.value))
    assert smaller is not None
    selection = fit(tmp_path / "smaller", probe_size=int(smaller[1])).selection
    assert selection is not None and selection.probe["size"] == int(smaller[1]) >= 50
    assert all(isinstance(candidate.input_information, float) for candidate in selection.candidates)
    monkeypatch.setattr(memory, "machine_bytes", lambda: 2**20)
    with pytest.raises(ArgumentError, match=r"this machine has 0\.0\. Give a rule that goes by position"):
        fit(tmp_path)
    assert fit(tmp_path, rule="half").selection is not None


def test_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(memory, "rank_zero_info", lines.append)
    monkeypatch.setattr(memory, "machine_bytes", lambda: 2**33)
    check_memory(sounds(), 100, MI())
    assert not lines, "less than a GiB is nobody's business"
    check_memory(sounds(), 2000, MI())
    check_memory(sounds(), 2000, make_rule("accuracy"))
    assert "I(X;F) of 160,000 numbers each take about 5.0 GiB of memory when fitting ends" in lines[0]
    assert "the 2000 samples of the probe set take about 2.4 GiB" in lines[1]
    with pytest.raises(ArgumentError, match=r"this machine has 8\.0"):
        check_memory(sounds(), 4000, MI())
    check_memory(sounds(), 4000, MI(), at_most=True)  # a stream may end before


def test_a_limit_of_the_control_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_GROUP_LIMIT", tmp_path / "memory.max")
    whole = machine_bytes()
    (tmp_path / "memory.max").write_text("max\n")
    assert machine_bytes() == whole > 2**20
    (tmp_path / "memory.max").write_text("1048576\n")
    assert machine_bytes() == 2**20
