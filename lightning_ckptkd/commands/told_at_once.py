"""What ``ckptkd`` tells of itself without making its parsers, which takes Lightning and some seconds: help, completion.

The names are in ``parsers.json``, written from the real parsers by ``python -m tests.commands.test_run``. It is read
where Lightning and jsonargparse are those that it was written with; else the real parsers tell.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_ckptkd.commands.completion import COMPLETION_HELP, SHELLS, Described, completion_script
from lightning_ckptkd.commands.words import DESCRIPTION, ENV_PREFIX

RECORD = Path(__file__).with_name("parsers.json")
_MAKERS = ("lightning", "jsonargparse")  # whose versions decide what the parsers are


def told_at_once(words: Sequence[str], environment: Mapping[str, str] = os.environ) -> str | None:
    """The text that a command's words ask for; None where only the real parsers know.

    Args:
        words: Of the command.
        environment: Its variables.
    """
    if any(name.startswith(ENV_PREFIX) for name in environment):
        return None
    if list(words) in (["-h"], ["--help"]):
        described = read_record()
        return None if described is None else _help(described)
    option, _, shell = "=".join(words).partition("=")
    if option == "--print_completion" and shell in SHELLS and len(words) <= 2:
        described = read_record()
        return None if described is None else completion_script(described, shell) + "\n"
    return None


def makers() -> dict[str, str]:
    """The versions that decide what the parsers are."""
    return {name: version(name) for name in _MAKERS}


def read_record() -> Described | None:
    """The parser above the commands, as it was recorded; None where it may be another one here."""
    document = json.loads(RECORD.read_text())
    return _described(document["parser"]) if document["made_with"] == makers() else None


def _described(found: Mapping[str, Any]) -> Described:
    commands = {name: _described(command) for name, command in found["commands"].items()}
    return Described(found["description"], found["options"], commands)


def _help(described: Described) -> str:
    """As LightningCLI's parser and ours make it, of the terminal's width."""
    # the package says only at run time what it exports
    from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

    parser = ArgumentParser(description=DESCRIPTION, default_env=True, env_prefix=ENV_PREFIX)
    parser.add_argument(
        "-c", "--config", action=ActionConfigFile, help="Path to a configuration file in json or yaml format."
    )
    commands = parser.add_subcommands()
    parser.add_argument("--print_completion", choices=SHELLS, help=COMPLETION_HELP)
    for name, command in described.commands.items():
        commands.add_subcommand(name, ArgumentParser(description=command.description), help=command.description)
    text: str = parser.format_help()
    return text
