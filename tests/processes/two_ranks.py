"""Fit with both callbacks, then distil, on as many processes as asked for; run by test_ddp.py, once for each number.

The batches that all processes take together are the same for any number of them: the batch size is divided by the
number, and a sampler of its own keeps Lightning from shuffling. The network has no BatchNorm.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lightning_ckptkd import CheckpointHarvester, CkptKDError, DistillationModule, MISelector, TeacherCache
from lightning_ckptkd.teachers import FeatureMatching, LogitCache, RandomTeacher
from lightning_ckptkd.teachers.mixing import Mixup, Pairs
from tests.projects import DigitsData, digits, make_trainer


def network(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))


class Teacher(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_epoch=True, sync_dist=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("own_hook", float(self.current_epoch), sync_dist=True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


class InOrder(DigitsData):
    def train_dataloader(self) -> DataLoader[Any]:
        data = digits(0, self.train_size)
        ranks = {"num_replicas": self.trainer.world_size, "rank": self.trainer.global_rank}
        return DataLoader(data, self.batch_size, sampler=DistributedSampler(data, **ranks, shuffle=False))


class Failing(Dataset[Any]):
    """Digits of which one can't be read on rank 1."""

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> Any:
        if index == 151 and dist.get_rank() == 1:
            raise OSError("the disk is gone")
        return digits(1000, 1200)[index]


class FailingData(InOrder):
    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Failing(), self.batch_size)


def select_in_vain(root: Path, **options: Any) -> None:
    """The selection at the end goes wrong on one rank; both go on."""
    fit = make_trainer(root, CheckpointHarvester(), MISelector(), max_epochs=2, limit_val_batches=0, **options)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit.fit(Teacher(), FailingData(batch_size=16))
    messages = [str(warning.message) for warning in told if "Select by hand" in str(warning.message)]
    fit.strategy.barrier()
    (root / f"rank_{fit.global_rank}.json").write_text(json.dumps([fit.state.finished, *messages]))


def main(devices: int, root: Path, scenario: str) -> None:
    if scenario == "in_vain":
        select_in_vain(root, devices=devices, strategy="ddp")
        return
    options = {"devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
    data = InOrder(batch_size=32 // devices, train_size=256)
    seed_everything(0, verbose=False)
    fit = make_trainer(root, CheckpointHarvester(), MISelector(num_teachers=2), max_epochs=4, **options)
    fit.fit(Teacher(), data)
    snapshots = root / "snapshots"
    if scenario == "damaged":  # on rank 1's share alone
        fit.strategy.barrier()
        files = sorted(snapshots.glob("epoch=1-*"))
        if fit.global_rank == 0:
            files[0].write_bytes(b"damaged")
        fit.strategy.barrier()
        try:
            MISelector().select(snapshots, Teacher(), data.val_dataloader(), progress=False)
        except CkptKDError as error:
            (root / f"rank_{fit.global_rank}.txt").write_text(f"{type(error).__name__}: {error}")
        return
    module, distil = student_of(snapshots, data, **options)
    (result,) = distil.test(module, data, verbose=False)
    assert not any("teacher" in name and "acc" not in name for name, _ in module.named_modules())
    torch.save(module.student.state_dict(), root / f"student_{distil.global_rank}.pt")
    if distil.global_rank == 0:
        (root / "result.json").write_text(json.dumps(result))
    matching = FeatureMatching("2", "net.2", 8, 32, spatial=False)
    part = {"feature_matching": matching, "schedule": RandomTeacher(until_epoch=2)}
    matched, distil = student_of(snapshots, data, part, **options)
    torch.save(matched.state_dict(), root / f"matched_{distil.global_rank}.pt")
    LogitCache.open.__func__.__defaults__ = (50,)  # items a chunk, so that each rank has a share
    cached, distil = student_of(snapshots, data, {"cache": TeacherCache(root / "cache", dtype="fp32")}, **options)
    torch.save(cached.student.state_dict(), root / f"cached_{distil.global_rank}.pt")
    mix = RecordedMixup(1.0)
    mixed, distil = student_of(snapshots, data, {"mix": mix}, **options)
    torch.save({"student": mixed.student.state_dict(), "lam": mix.lam}, root / f"mixed_{distil.global_rank}.pt")


class RecordedMixup(Mixup):
    """Notes the share of each batch."""

    def __init__(self, alpha: float) -> None:
        super().__init__(alpha)
        self.lam: list[float] = []

    def __call__(self, *arguments: Any) -> tuple[Tensor, Pairs]:
        inputs, pairs = super().__call__(*arguments)
        self.lam.append(pairs.lam)
        return inputs, pairs


def student_of(
    snapshots: Path, data: InOrder, module_options: Mapping[str, Any] = MappingProxyType({}), **options: Any
) -> tuple[DistillationModule, Trainer]:
    seed_everything(1, verbose=False)
    sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}
    module = DistillationModule(network(8), Teacher(), snapshots, **sgd, **module_options)
    trainer = make_trainer(snapshots.parent, max_epochs=3, **options)
    trainer.fit(module, data)
    return module, trainer


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # what one process warns of, pytest makes an error; two add only Lightning's advice
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
