"""The command ``ckptkd``: LightningCLI with ``distill``; ``select``, ``harvest`` and ``export`` need no Trainer."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

# the package says only at run time what it exports
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace  # type: ignore[attr-defined]
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from torch import nn
from typing_extensions import override

from lightning_ckptkd.commands.completion import COMPLETION_HELP, SHELLS, PrintCompletion
from lightning_ckptkd.commands.export_command import export, make_export_parser
from lightning_ckptkd.commands.fit_config import (
    bases,
    import_data,
    read_fit_config,
    spell_out_fit_config,
    unnamed_classes,
)
from lightning_ckptkd.commands.harvest_command import harvest, make_harvest_parser
from lightning_ckptkd.commands.rule_words import refuse_moved_options, spell_out_rule
from lightning_ckptkd.commands.words import DESCRIPTION, ENV_PREFIX, name_bare_words
from lightning_ckptkd.commands.written_config import SELECT_CONFIG_NAME, save_config
from lightning_ckptkd.distillation import DistillationModule
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.selector import MISelector
from lightning_ckptkd.snapshots import SnapshotStore
from lightning_ckptkd.snapshots.fields import shown
from lightning_ckptkd.trainer.seeding import seed_all

_EXAMPLES = {"model": "Model", "data": "Data"}
_DISTILL_DEFAULTS = Path(__file__).with_name("distill_defaults.yaml")


class CkptKDTrainer(Trainer):
    """A Trainer that can also distil."""

    def distill(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Trains a student on the chosen snapshots of a harvest.

        Args:
            model: The DistillationModule.
            datamodule: Training and validation data.
            ckpt_path: Checkpoint of an interrupted distillation to resume.
        """
        self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)


class _Parser(LightningArgumentParser):
    """LightningCLI's parser, which remembers where commands are added."""

    commands: Any = None

    @override
    def add_subcommands(self, *args: Any, **kwargs: Any) -> Any:
        self.commands = super().add_subcommands(*args, **kwargs)
        return self.commands

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Of an option that has moved, say where it went."""
        if self.exit_on_error:  # else it is of a parser within, whose errors this one puts together
            DistillationModule.refuse_moved(re.findall(r"Option '(\w+)' is not accepted", message))
        super().error(message, ex)


class _Finished(Exception):  # noqa: N818 - not an error: a command without a Trainer is done
    def __init__(self, result: Any) -> None:
        self.result = result


class CkptKDCLI(LightningCLI):
    """LightningCLI with ``distill`` and with commands that need no Trainer, in one tree of parsers."""

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        return {**LightningCLI.subcommands(), "distill": {"model", "datamodule"}}

    @override
    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        assert isinstance(self.parser, _Parser)
        self.parser.add_argument("--print_completion", action=PrintCompletion, choices=SHELLS, help=COMPLETION_HELP)
        for name, (make_parser, _) in _COMMANDS.items():
            parser = make_parser()
            self.parser.commands.add_subcommand(name, parser, help=parser.description)

    @override
    def _parse_ckpt_path(self) -> None:
        """Leave the configuration as it was given: Lightning would let a checkpoint's hyper-parameters overrule it."""

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        # not super(): it warns where a program with arguments of its own gives some from Python
        self.config = parser.parse_args(args)
        name = self.config.subcommand
        if name in _COMMANDS:
            make_parser, command = _COMMANDS[name]
            raise _Finished(command(make_parser(), self.config[name]))


def main(args: Sequence[str] | None = None) -> Any:
    """Run one command.

    Args:
        args: Its words; None takes those of the process.

    Returns:
        The CLI, with its ``trainer`` and ``model``; for ``select`` the choice; for ``harvest`` the store; for
        ``export`` the weights or the program.

    Raises:
        CkptKDError: One of this package's errors.
    """
    words = list(sys.argv[1:] if args is None else args)
    refuse_moved_options(words)
    with known_warnings_ignored():
        import_data(words)
        try:
            return CkptKDCLI(
                trainer_class=CkptKDTrainer,
                parser_class=_Parser,
                parser_kwargs={
                    "description": DESCRIPTION,
                    "default_env": True,
                    "env_prefix": ENV_PREFIX,
                    "distill": {"default_config_files": [str(_DISTILL_DEFAULTS)]},
                },
                args=spell_out_rule(spell_out_fit_config(name_bare_words(words))),
            )
        except _Finished as finished:
            return finished.result


@contextmanager
def known_warnings_ignored() -> Iterator[None]:
    """Keep from users the warnings that neither they nor this package can do anything about."""
    with warnings.catch_warnings():
        # lightning.pytorch.cli 2.6.6 uses three names that jsonargparse 4.49 renamed
        for renamed in ("add_instantiator", "instantiate_classes", "skip_none parameter", "By default only one"):
            warnings.filterwarnings(
                "ignore", message=rf"\s*(``)?(ArgumentParser\.)?{renamed}", category=DeprecationWarning
            )
        # lightning 2.6.6 asks torch 2.15's pytree in a way that torch calls deprecated
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*", category=FutureWarning)
        yield


def _make_select_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Chooses teachers among the snapshots of a harvest.")
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="Configuration file; each run writes one.")
    parser.add_argument("--snapshots", type=str, help="The harvest's folder; its name alone, first, does as well.")
    parser.add_argument(
        "--fit_config",
        type=str,
        help="Take model and data from a config that a LightningCLI wrote or can read, before other words. Where it "
        "names no classes, name them with --model and --data.",
    )
    parser.add_subclass_arguments(
        nn.Module, "model", required=False, help="What was trained; only rules that run the snapshots need it."
    )
    parser.add_subclass_arguments(
        bases("data"), "data", required=False, help="Gives the probe set; only rules that run them need it."
    )
    parser.add_argument("--device", type=str, default="auto", help="Where the model runs; auto is CUDA or the CPU.")
    parser.add_class_arguments(MISelector, None, skip={"snapshots", "probe", "on_error"})
    return parser


def _select(parser: ArgumentParser, config: Namespace) -> Any:
    if config.snapshots is None:
        raise ArgumentError("snapshots: give the folder of a harvest: `ckptkd select DIR`.")
    path = config.fit_config
    if path is not None:
        config = _with_model_and_data(parser, config)
    seed_all(config.seed)  # a proxy's student has the same first weights each time
    made = parser.instantiate(config)
    options = {
        key: value
        for key, value in vars(made).items()
        if key not in ("config", "snapshots", "fit_config", "model", "data", "device")
    }
    selector = MISelector(**options)
    if path is not None and selector.settings.scoring is not None:
        _refuse_unnamed(path, config, SnapshotStore.open(config.snapshots))
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    selection = selector.select(config.snapshots, made.model, datamodule=made.data, device=device)
    save_config(parser, config, SnapshotStore.open(config.snapshots), SELECT_CONFIG_NAME)
    return selection


def _with_model_and_data(parser: ArgumentParser, config: Namespace) -> Namespace:
    """Without ``fit_config``, of which all is known by now; a written config may have had its parts as null."""
    missing = [key for key in ("model", "data") if config.get(key) is None]
    parts = read_fit_config(config.fit_config, dict.fromkeys(missing)) if missing else {}
    wanted = {key: parts[key] for key in missing if key in parts}
    merged: Namespace = parser.parse_object({**wanted, "fit_config": None}, config)
    return merged


def _refuse_unnamed(path: str, config: Namespace, store: SnapshotStore) -> None:
    """Of a config that has arguments of classes without their names, say what to add."""
    unnamed = [key for key in unnamed_classes(path) if config.get(key) is None]
    if not unnamed:
        return
    trained = shown(store.manifest.source.get("class_path") or "")
    hints = {"model": f" (the harvest is of {trained})" if trained else "", "data": ""}
    words = " and ".join(f"`--{key} my_module.{name}`{hints[key]}" for key, name in _EXAMPLES.items() if key in unnamed)
    raise ArgumentError(
        f"fit_config={path!r} has no class_path for {' and '.join(unnamed)}, as one that LightningCLI(Model, Data) "
        f"wrote. Add {words}, the classes that it was made with."
    )


_COMMANDS: dict[str, tuple[Callable[[], ArgumentParser], Callable[[ArgumentParser, Namespace], Any]]] = {
    "select": (_make_select_parser, _select),
    "harvest": (make_harvest_parser, harvest),
    "export": (make_export_parser, export),
}
