"""Distil a student that FSDP2 shards over two processes, or in one process; run by test_distillation_devices.py."""

from __future__ import annotations

import json
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from lightning_ckptkd import CkptKDError, DistillationModule, TeacherCache
from lightning_ckptkd.tasks.batch import Batch
from tests.processes.two_ranks import InOrder, network
from tests.projects import Project, digits, make_trainer


class Mark(Callback):
    """Gives each rank teachers of its own, as a broadcast would not leave them."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        teachers: Any = pl_module.teachers
        for member in teachers.members:
            for value in member.state_dict().values():
                value.add_(trainer.global_rank)


class Shards(Callback):
    """How many of the student's numbers each optimiser step finds on this rank, and how many are in shards."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        student: Any = pl_module.student
        parameters = list(student.parameters())
        self.sharded = sum(value.numel() for value in parameters if isinstance(value, DTensor))
        self.local = sum((v.to_local() if isinstance(v, DTensor) else v).numel() for v in parameters)


def strategy_of(devices: int, **options: Any) -> Any:
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, **options) if devices > 1 else "auto"


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.2, momentum=0.9)


def whole_student(module: DistillationModule) -> dict[str, Any]:
    return get_model_state_dict(module.student, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def main(devices: int, root: Path, harvest: Path) -> None:
    data = InOrder(batch_size=32 // devices, train_size=256)

    def fit(
        *callbacks: Callback,
        epochs: int = 1,
        wrap: Any = None,
        strategy: Any = None,
        ckpt_path: Any = None,
        **options: Any,
    ) -> tuple[DistillationModule, Trainer]:
        seed_everything(0, verbose=False)
        options = {"optimizer": sgd, "acceleration": "none", "choice": [1, 3], **options}
        module = DistillationModule(wrap(network(8)) if wrap else network(8), Project(), harvest, **options)
        trainer = make_trainer(
            root,
            *callbacks,
            max_epochs=epochs,
            devices=devices,
            strategy=strategy or strategy_of(devices),
            gradient_clip_val=0.5,
            limit_val_batches=1,
            enable_checkpointing=bool(callbacks) and isinstance(callbacks[0], ModelCheckpoint),
        )
        trainer.fit(module, data, ckpt_path=ckpt_path)
        return module, trainer

    def save(name: str, module: DistillationModule) -> None:
        weights = whole_student(module)
        if weights:
            torch.save(weights, root / f"{name}.pt")

    def parted() -> ModelCheckpoint:
        return ModelCheckpoint(dirpath=root / "parted", filename="{epoch}", save_top_k=-1)

    shards = Shards()
    module, trainer = fit(parted(), shards)
    rank = trainer.global_rank
    save("fitted", module)
    (tested,) = trainer.test(module, data, verbose=False)
    assert module.teachers is not None
    state = [value for member in module.teachers.members for value in member.state_dict().values()]
    found = {
        "tested": tested,
        "sharded": shards.sharded,
        "local": shards.local,
        "whole_teachers": not any(isinstance(value, DTensor) for value in state),
        "teachers": module.teachers(Batch(digits(0, 32).tensors[0])).tolist(),
    }
    resumed, _ = fit(parted(), epochs=2, ckpt_path=root / "parted" / "epoch=0.ckpt")
    save("resumed", resumed)
    save("cached", fit(cache=TeacherCache(root / "cache", dtype="fp32"))[0])
    if devices > 1:
        one_file = ModelCheckpoint(dirpath=root / "file", filename="{epoch}")
        fit(one_file, strategy=strategy_of(2, save_distributed_checkpoint=False))
        save("compiled", fit(wrap=partial(torch.compile, backend="eager"))[0])
        for name, strategy in (("ddp", "ddp"), ("fsdp2", None)):
            marked, _ = fit(Mark(), strategy=strategy)
            fresh = DistillationModule(network(8), Project(), harvest, choice=[1, 3])
            fresh.setup("fit")
            assert marked.teachers is not None and fresh.teachers is not None
            found[name] = [
                float((mine - whole).float().mean())
                for a, b in zip(marked.teachers.members, fresh.teachers.members, strict=True)
                for mine, whole in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
            ]
        try:
            fit(strategy=ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2))
        except CkptKDError as error:
            found["tensor_parallel"] = str(error)
    (root / f"found_{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
