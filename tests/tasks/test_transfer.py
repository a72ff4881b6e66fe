from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch_geometric.data import Batch as GraphBatch
from torch_geometric.data import Data

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.tasks.transfer import BatchTransfer, overridden_hooks

BOTH = pytest.mark.parametrize("pl", [lightning.pytorch, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
X = torch.arange(12.0).reshape(4, 3)
Y = torch.tensor([0, 1, 0, 1])


def classes(pl: Any) -> tuple[type[Any], type[Any]]:
    """A module and a DataModule, each with all hooks, as torchgeo and kornia's users write them."""

    class Hooks:
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            x, y = batch
            return x + 1 + dataloader_idx, y

        def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
            x, y = super().transfer_batch_to_device(batch, device, dataloader_idx)  # type: ignore[misc]
            return x * 2, y

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            trainer: Any = self.trainer  # type: ignore[attr-defined]
            x, y = batch
            if trainer.training:
                return x * 0, y
            if trainer.validating or trainer.sanity_checking:
                return x + 0.25, y
            return x * -1, y

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 2)
            self.seen: list[Tensor] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.seen.append(batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    class PlainData(pl.LightningDataModule):  # type: ignore[misc]
        def train_dataloader(self) -> Any:
            return DataLoader(TensorDataset(X, Y), batch_size=4)

        def val_dataloader(self) -> Any:
            return [DataLoader(TensorDataset(X, Y), batch_size=4) for _ in range(2)]

    return type("HookedModule", (Hooks, Module), {}), type("HookedData", (Hooks, PlainData), {})


def plain(pl: Any) -> tuple[type[Any], type[Any]]:
    hooked = classes(pl)
    return hooked[0].__mro__[2], hooked[1].__mro__[2]


def make_trainer(pl: Any, folder: Path) -> Any:
    return pl.Trainer(
        default_root_dir=folder,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


AFTER = [(X + 1) * 2 + 0.25, (X + 2) * 2 + 0.25]  # of both dataloaders


@BOTH
@pytest.mark.parametrize("whose", ["module", "data", "both"])
@pytest.mark.filterwarnings("ignore:.*have overridden.*", "ignore:.*Consider increasing the value.*")
def test_batches_are_those_of_the_validation_step(pl: Any, whose: str, tmp_path: Path) -> None:
    hooked, simple = classes(pl), plain(pl)
    module = (hooked if whose != "data" else simple)[0]()
    data = (hooked if whose != "module" else simple)[1]()
    # without a Trainer, as in ckptkd select
    transfer = BatchTransfer(module, data)
    assert list(transfer.hooks) == ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"]
    assert set(transfer.hooks.values()) == {module if whose == "module" else data}
    before = [transfer((X, Y), "cpu", index)[0] for index in range(2)]
    assert module._trainer is None and data.trainer is None
    trainer = make_trainer(pl, tmp_path)
    trainer.fit(module, data)
    for index in range(2):
        torch.testing.assert_close(module.seen[index], AFTER[index])  # what Lightning gave the step
        torch.testing.assert_close(before[index], module.seen[index])
    # with the Trainer, at the end of fit
    stage = trainer.state.stage
    module.train()
    after = [BatchTransfer(module, data)((X, Y), "cpu", index)[0] for index in range(2)]
    assert torch.equal(after[0], before[0]) and torch.equal(after[1], before[1])
    assert trainer.state.stage == stage
    assert module.training and module.net.training


@BOTH
def test_nothing_is_overridden(pl: Any) -> None:
    module, data = (kind() for kind in plain(pl))
    assert overridden_hooks(module, data) == {}
    assert overridden_hooks(nn.Linear(3, 2)) == {}
    assert torch.equal(BatchTransfer(module, data)((X, Y), "cpu")[0], X)
    assert BatchTransfer(nn.Linear(3, 2))((X, Y), "meta")[0].device.type == "meta"


@BOTH
def test_each_hook_has_its_own_owner(pl: Any) -> None:
    class Module(pl.LightningModule):  # type: ignore[misc]
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            assert not self.training
            return batch * 10

    class Data(pl.LightningDataModule):  # type: ignore[misc]
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch + 1

    module, data = Module(), Data()
    found = overridden_hooks(module, data)
    assert found == {"on_before_batch_transfer": data, "on_after_batch_transfer": module}
    assert torch.equal(BatchTransfer(module, data)(X, "cpu"), (X + 1) * 10)
    assert module.training


def test_compiled_modules_have_their_hooks() -> None:
    module = classes(lightning.pytorch)[0]()
    compiled = torch.compile(module, backend="eager")
    assert set(overridden_hooks(compiled).values()) == {module}
    assert torch.equal(BatchTransfer(compiled)((X, Y), "cpu")[0], AFTER[0])


def test_other_namespaces_mix() -> None:
    module, data = plain(lightning.pytorch)[0](), classes(pytorch_lightning)[1]()
    assert torch.equal(BatchTransfer(module, data)((X, Y), "cpu")[0], AFTER[0])


@BOTH
def test_a_hook_that_asks_too_much_of_a_missing_trainer(pl: Any, tmp_path: Path) -> None:
    class Asking(pl.LightningModule):  # type: ignore[misc]
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch * self.trainer.max_epochs

    module = Asking()
    with pytest.raises(ArgumentError, match=r"Asking changes batches .* by self.trainer.max_epochs, and there is no"):
        BatchTransfer(module)(X, "cpu")
    assert module._trainer is None
    module.trainer = make_trainer(pl, tmp_path)
    assert torch.equal(BatchTransfer(module)(X, "cpu"), X)


@BOTH
def test_an_error_in_a_hook_leaves_everything_as_it_was(pl: Any, tmp_path: Path) -> None:
    class Failing(pl.LightningModule):  # type: ignore[misc]
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            raise RuntimeError("of the user's")

    module = Failing()
    module.trainer = trainer = make_trainer(pl, tmp_path)
    stage = trainer.state.stage
    with pytest.raises(RuntimeError, match="of the user's"):
        BatchTransfer(module)(X, "cpu")
    assert module.training and trainer.state.stage == stage and module.trainer is trainer


def test_what_the_loader_keeps_stays_where_it_is() -> None:
    batch: Any = GraphBatch.from_data_list([Data(x=torch.randn(2, 2), y=torch.tensor([1]))])
    kept = copy.copy(batch)
    moved = BatchTransfer(nn.Linear(2, 2))(batch, "meta")
    assert moved.x.device.type == "meta" and batch.x.device.type == "cpu"
    assert torch.equal(batch.x, kept.x)
