"""What ``ckptkd export`` traces: the student and a sample, as its words or a run's config say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

# the package says only at run time what it exports
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule
from torch import nn

from lightning_ckptkd.commands.exporting.sample import draw_samples, noise
from lightning_ckptkd.commands.fit_config import read_fit_config
from lightning_ckptkd.distillation import DistillationModule
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.calling import takes_whole
from lightning_ckptkd.tasks.reading import BatchReader


@dataclass(frozen=True)
class Traced:
    """What is traced.

    Attributes:
        student: The network, with weights of no meaning.
        samples: What it is called with.
        logits_key: Where its logits are.
    """

    student: nn.Module
    samples: list[Batch]
    logits_key: str | int | None


def make_student(config: Namespace, made: Namespace) -> Traced:
    """The student and its sample.

    Args:
        config: Of ``ckptkd export``: ``fit_config``, ``shape``, ``student_logits_key``.
        made: The same with its ``student`` and ``data`` as objects, where they were given.

    Raises:
        ArgumentError: If one is missing, or the config is of something else.
    """
    student, data, reader, key = made.student, made.data, BatchReader(), config.student_logits_key
    hooked = student
    if config.fit_config is not None:
        of_run = _make_run(config.fit_config)
        module = of_run.model
        if not isinstance(module, DistillationModule):
            raise ArgumentError(
                f"fit_config={config.fit_config!r} is of {type(module).__name__}, which is no DistillationModule. Give "
                "the config.yaml that `ckptkd distill` wrote, or name the network with --student."
            )
        data = of_run.data if data is None else data
        key = module._student_logits_key if key is None else key
        if student is None:
            student, reader, hooked = module.student, module._read, module
    if student is None:
        raise ArgumentError(
            "student: .onnx and .pt2 hold the network, too, and a checkpoint has its weights alone. Give --fit_config, "
            "the config.yaml that `ckptkd distill` wrote, or the network as --student CLASS."
        )
    if config.shape is not None:
        return Traced(student, [noise(config.shape)], key)
    if data is None:
        raise ArgumentError(
            "shape, data: the student is traced on a sample. Give its shape, as --shape 3 32 32, or --data CLASS."
        )
    read = replace(reader, whole=takes_whole(student))
    return Traced(student, draw_samples(data, hooked, read), key)


def _make_run(path: str) -> Any:
    parts = read_fit_config(path, dict.fromkeys(("model", "data")))
    if "model" not in parts:
        raise ArgumentError(
            f"fit_config={path!r} names no class of a model. Give the config that `ckptkd distill` wrote."
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "model", required=True)
    parser.add_subclass_arguments(LightningDataModule, "data", required=False)
    return parser.instantiate(parser.parse_object(parts))
