"""Fit under FSDP2 on two processes and harvest; run by test_fully_shard.py."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from lightning_ckptkd import CheckpointHarvester, CkptKDError, MISelector
from tests.processes.two_ranks import InOrder, Teacher
from tests.projects import make_trainer


class ShardedTeacher(Teacher):
    """The teacher of the DDP test, with a tied layer, sharded over the ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.tied = self.net[3]

    def configure_model(self) -> None:
        if self.trainer.world_size > 1:
            fully_shard(self.net[1], mesh=self.device_mesh["data_parallel"])
            fully_shard(self, mesh=self.device_mesh["data_parallel"])


class Gather(Callback):
    """Saves what torch itself gathers, at each epoch's end."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(pl_module, options=options)
        if trainer.global_rank == 0:
            torch.save(state, self.root / f"gathered_{trainer.current_epoch}.pt")


def make_strategy(devices: int) -> Any:
    return ModelParallelStrategy(data_parallel_size=devices, tensor_parallel_size=1) if devices > 1 else "auto"


def main(devices: int, root: Path) -> None:
    seed_everything(0, verbose=False)
    strategy = make_strategy(devices)
    own = ModelCheckpoint(dirpath=root / "own", filename="{epoch}", save_top_k=-1)
    callbacks = [CheckpointHarvester(root / "harvest"), Gather(root), own]
    trainer = make_trainer(
        root, *callbacks, max_epochs=3, devices=devices, strategy=strategy, enable_checkpointing=True
    )
    data = InOrder(batch_size=32 // devices, train_size=256)
    trainer.fit(ShardedTeacher(), data)
    if devices > 1:
        selecting = make_trainer(
            root, CheckpointHarvester(root / "refused"), MISelector(), devices=2, strategy=make_strategy(2)
        )
        try:
            selecting.fit(ShardedTeacher(), data)
        except CkptKDError as error:
            (root / f"refusal_{trainer.global_rank}.txt").write_text(str(error))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(int(sys.argv[1]), Path(sys.argv[2]))
