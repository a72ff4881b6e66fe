"""Shell completion of commands and options.

jsonargparse has one of its own, but it writes down the options of every class that an argument could take, and for
``nn.Module`` that does not end in minutes. Here the names of commands and options are enough.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import shtab

SHELLS = ("bash", "zsh", "tcsh")


class PrintCompletion(argparse.Action):
    """Print the completion script of a parser with commands, and exit."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Called by argparse."""
        commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        print(completion_script(parser, commands.choices, str(values)))
        parser.exit()


def completion_script(
    parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser], shell: str
) -> str:
    """A script that completes the names of commands and options.

    Args:
        parser: The parser above the commands.
        commands: Name and parser of each.
        shell: One of ``SHELLS``.
    """
    plain = argparse.ArgumentParser(prog="ckptkd")
    _copy_options(parser, plain)
    added = plain.add_subparsers()
    for name, command in commands.items():
        _copy_options(command, added.add_parser(name, help=command.description))
    script: str = shtab.complete(plain, shell)
    return script


def _copy_options(source: argparse.ArgumentParser, target: argparse.ArgumentParser) -> None:
    for action in source._actions:
        if action.option_strings and "--help" not in action.option_strings:
            option = target.add_argument(*action.option_strings)
            option.complete = shtab.FILE  # type: ignore[attr-defined]
