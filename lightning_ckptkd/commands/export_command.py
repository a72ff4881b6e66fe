"""The command ``ckptkd export``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# the package says only at run time what it exports
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]
from torch import nn

from lightning_ckptkd.commands.export import export_network, export_student
from lightning_ckptkd.commands.exporting.card import free_place, write_model_card
from lightning_ckptkd.commands.exporting.network import FORMATS
from lightning_ckptkd.commands.words import options
from lightning_ckptkd.errors import ArgumentError

_OF_USERS = ("--student", "--fit_config", "--data")


def runs_code(words: Sequence[str]) -> bool:
    """Whether the command makes objects of a user's, by what it is given; weights alone need none."""
    return any(name.split(".")[0] in (*_OF_USERS, "--config", "-c") for name, _ in options(words))


def make_export_parser(*, weights_alone: bool = False) -> ArgumentParser:
    """The command's options.

    Args:
        weights_alone: Without those that need Lightning, which files of weights do not.
    """
    parser = ArgumentParser(description="Writes the student of a checkpoint into a file of its own.")
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="Configuration file.")
    parser.add_argument("--checkpoint", type=str, help="A .ckpt file of a distillation; its name alone does as well.")
    parser.add_argument(
        "--out",
        type=str,
        help="File to write: weights (.safetensors, .pt, .pth), or network and weights (.onnx, .pt2); likewise.",
    )
    if not weights_alone:
        _add_what_is_traced(parser)
    parser.add_argument("--card", type=bool, default=False, help="Write a model card, README.md, beside the file.")
    parser.add_argument("--snapshots", type=str, help="For the card: the harvest that the teachers are from.")
    return parser


def _add_what_is_traced(parser: ArgumentParser) -> None:
    from lightning.pytorch import LightningDataModule

    parser.add_argument(
        "--fit_config", type=str, help="For .onnx and .pt2: network and data of the config that `ckptkd distill` wrote."
    )
    parser.add_subclass_arguments(
        nn.Module, "student", required=False, help="For .onnx and .pt2: the network, instead of a config."
    )
    parser.add_subclass_arguments(
        LightningDataModule, "data", required=False, help="For .onnx and .pt2: gives the sample to trace on."
    )
    parser.add_argument(
        "--shape", type=int, nargs="+", help="Traces on noise instead: the shape of one sample, as in 3 32 32."
    )
    parser.add_argument("--student_logits_key", type=str | int | None, help="Where its logits are, as in distilling.")


def export(parser: ArgumentParser, config: Namespace) -> Any:
    """Write what the options say; returns the weights by name, or the program."""
    if config.checkpoint is None or config.out is None:
        raise ArgumentError(
            "checkpoint, out: give the checkpoint and the file to write: `ckptkd export RUN.ckpt STUDENT.safetensors`."
        )
    folder = config.out.rpartition("/")[0] or "."
    if config.card:
        free_place(folder)  # else the student is written, and the command fails all the same
    written: Any
    if Path(config.out).suffix in FORMATS:
        from lightning_ckptkd.commands.exporting.from_config import make_student  # which imports Lightning

        FORMATS[Path(config.out).suffix].check_packages()
        traced = make_student(config, parser.instantiate(config))
        written = export_network(config.checkpoint, config.out, traced.student, traced.samples, traced.logits_key)
        print(written)
    else:
        written = export_student(config.checkpoint, config.out)
        print(f"The student's {len(written)} tensors, as its state_dict() names them, are in {config.out}.")
    if config.card:
        print(f"Its model card is {write_model_card(config.checkpoint, folder, config.snapshots)}.")
    return written
