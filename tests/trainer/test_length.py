from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_ckptkd.trainer.length import share_done, step_number, training_batches
from tests.projects import make_trainer

DATA = TensorDataset(torch.arange(10.0).view(10, 1))


class Stream(IterableDataset[Any]):
    """The same five batches, without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter([DATA[index] for index in range(10)])


class Module(LightningModule):
    """Steps by Lightning, by hand with several optimisers, or behind Lightning's back."""

    def __init__(self, by_hand: int = 0, raw: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(1, 1) for _ in range(by_hand or 1)])
        self.automatic_optimization, self.raw = not by_hand, raw
        self.seen: list[tuple[float | None, int]] = []
        self.batches = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        self.seen.append((share_done(self.trainer), step_number(self)))
        self.batches = training_batches(self.trainer)
        loss: Tensor = sum(layer(batch[0]).square().mean() for layer in self.layers)  # type: ignore[assignment]
        if self.automatic_optimization:
            return loss
        self.manual_backward(loss)
        for optimizer in self.optimizers(use_pl_optimizer=not self.raw):  # type: ignore[union-attr, call-arg]
            optimizer.step()
            optimizer.zero_grad()
        return None

    def configure_optimizers(self) -> Any:
        made = [torch.optim.SGD(layer.parameters(), lr=1e-3) for layer in self.layers]
        return made[0] if self.automatic_optimization else made


class Saved(Callback):
    """A checkpoint of each epoch; ModelCheckpoint saves none where Lightning counts no steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt")


def fit(folder: Path, module: Module, stream: bool = False, ckpt_path: Path | None = None, **options: Any) -> Module:
    loader: Any = DataLoader(Stream() if stream else DATA, 2)
    make_trainer(folder, Saved(folder), **options).fit(module, loader, ckpt_path=ckpt_path)
    return module


SIXTHS = [number / 6 for number in (0, 0, 1, 1, 2, 3, 3, 4, 4, 5)]  # the fifth batch of an epoch is a step of its own
TENTHS = [number / 10 for number in range(10)]


@pytest.mark.parametrize(
    ("module", "options", "shares", "batches"),
    [
        ({}, {"max_epochs": 2}, TENTHS, 10),
        ({}, {"max_epochs": 2, "accumulate_grad_batches": 2}, SIXTHS, 10),
        ({}, {"max_epochs": 9, "max_steps": 4}, [0, 1 / 4, 2 / 4, 3 / 4], 4),
        ({}, {"max_epochs": -1, "max_steps": 2, "accumulate_grad_batches": 2}, [0, 0, 1 / 2, 1 / 2], 4),
        ({}, {"max_epochs": 2, "stream": True}, [None] * 10, math.inf),
        ({}, {"max_epochs": -1, "max_steps": 4, "stream": True}, [0, 1 / 4, 2 / 4, 3 / 4], 4),
        ({"by_hand": 2}, {"max_epochs": 2}, TENTHS, 10),
        ({"by_hand": 2}, {"max_epochs": 9, "max_steps": 8}, [0, 1 / 4, 2 / 4, 3 / 4], 4),
        ({"by_hand": 2, "raw": True}, {"max_epochs": 2}, TENTHS, 10),
    ],
)  # fmt: skip
def test_how_far_a_training_is(
    tmp_path: Path, module: dict[str, Any], options: dict[str, Any], shares: list[float | None], batches: float
) -> None:
    trained = fit(tmp_path, Module(**module), **options)
    assert [share for share, _ in trained.seen] == shares
    assert trained.batches == batches


@pytest.mark.parametrize(("module", "each"), [({}, 1), ({"by_hand": 2}, 2), ({"by_hand": 2, "raw": True}, 1)])
def test_each_step_has_a_number_that_a_resumed_run_finds_again(
    tmp_path: Path, module: dict[str, Any], each: int
) -> None:
    whole = fit(tmp_path, Module(**module), max_epochs=2)
    assert [number for _, number in whole.seen] == list(range(0, 10 * each, each))
    resumed = fit(tmp_path, Module(**module), ckpt_path=tmp_path / "0.ckpt", max_epochs=2)
    assert resumed.seen == whole.seen[5:]


def test_without_a_trainer() -> None:
    assert step_number(Module()) == 0
