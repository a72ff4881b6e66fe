"""Commands that need neither a Trainer nor an object of a user's, run without importing Lightning.

Only plain words go this way. Whatever else is given (a config, a variable, an option that names a class, a word that
can't be read) goes by the parsers of :mod:`.cli`, which knows all and says what is wrong.
"""

from __future__ import annotations

import os
from argparse import ArgumentError as UnreadableError
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from lightning_ckptkd.commands.words import ENV_PREFIX, given, name_bare_words, options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

_PLAIN = {
    "harvest": {"--checkpoints", "--snapshots", "--submodule", "--files"},
    "export": {"--checkpoint", "--out", "--card", "--snapshots"},
    "select": {"--snapshots", "--rule", "--num_teachers", "--seed"},
}


def run_light(args: Sequence[str], environment: Mapping[str, str] = os.environ) -> bool:
    """Run a command, if it can be run so.

    Args:
        args: Its words.
        environment: Its variables.

    Returns:
        Whether it was run.

    Raises:
        CkptKDError: As the command does.
    """
    if len(args) < 2:
        return False
    name = args[0]
    words = name_bare_words(list(args))[1:]
    plain = all(word in _PLAIN.get(name, ()) for word, _ in options(words) if word.startswith("-"))
    if name not in _PLAIN or not plain or any(key.startswith(ENV_PREFIX) for key in environment):
        return False
    return {"harvest": _harvest, "export": _export, "select": _select}[name](words)


def _parse(parser: ArgumentParser, words: list[str]) -> Namespace | None:
    """None where the words can't be read."""
    parser.exit_on_error = False
    try:
        return parser.parse_args(words)
    except UnreadableError:
        return None


def _harvest(words: list[str]) -> bool:
    from lightning_ckptkd.commands.harvest_command import harvest, make_harvest_parser

    config = _parse(make_harvest_parser(), words)
    if config is None:
        return False
    harvest(make_harvest_parser(), config)
    return True


def _export(words: list[str]) -> bool:
    from lightning_ckptkd.commands.export import WEIGHTS
    from lightning_ckptkd.commands.export_command import export, make_export_parser

    parser = make_export_parser(weights_alone=True)
    config = _parse(parser, words)
    if config is None or not str(config.out).endswith(WEIGHTS):
        return False
    export(parser, config)
    return True


def _select(words: list[str]) -> bool:
    """By the place in training; other rules run the snapshots."""
    rule = given(words, {}, "rule")
    if rule is None:
        return False
    from lightning_ckptkd.commands.written_config import SELECT_CONFIG_NAME, save_config
    from lightning_ckptkd.selecting.on_disk import choose_by_place
    from lightning_ckptkd.selecting.rules import make_rule, names_of_rules
    from lightning_ckptkd.selecting.settings import SelectionSettings
    from lightning_ckptkd.snapshots import SnapshotStore

    config = _parse(make_place_parser(), words) if rule in names_of_rules(by_position=True) else None
    if config is None or config.snapshots is None:
        return False
    settings = SelectionSettings(rule=make_rule(config.rule), num_teachers=config.num_teachers, seed=config.seed)
    store = SnapshotStore.open(config.snapshots)
    choose_by_place(store, settings, progress=True)
    save_config(make_place_parser(), config, store, SELECT_CONFIG_NAME)
    return True


def make_place_parser() -> ArgumentParser:
    """The options of ``ckptkd select`` that are not null in ``select.yaml``, with their defaults and in their order."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_argument("--snapshots", type=str)
    parser.add_argument("--device", type=str, default="auto")
    parser.add_argument("--rule", type=str)
    parser.add_argument("--num_teachers", type=int | Literal["auto"] | None)
    parser.add_argument("--probe_split", type=str, default="val")
    parser.add_argument("--probe_size", type=int, default=2000)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", type=str, default="auto")
    parser.add_argument("--ignore_index", type=int, default=-100)
    parser.add_argument("--race", type=bool | None, default=False)
    return parser
