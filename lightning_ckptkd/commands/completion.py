"""Shell completion of commands and options.

jsonargparse has one of its own, but it writes down the options of every class that an argument could take, and for
``nn.Module`` that does not end in minutes. Here the names of commands and options are enough.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHELLS = ("bash", "zsh", "tcsh")
COMPLETION_HELP = "Print a completion script and exit."


@dataclass(frozen=True)
class Described:
    """A parser as completion sees it.

    Attributes:
        description: What it does.
        options: Each by all of its names.
        commands: Those under it, by name.
    """

    description: str | None
    options: Sequence[Sequence[str]]
    commands: Mapping[str, Described]

    @classmethod
    def of(cls, parser: argparse.ArgumentParser) -> Described:
        """What there is of a parser."""
        options, commands = [], {}
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                commands = {name: cls.of(command) for name, command in action.choices.items()}
            elif action.help == argparse.SUPPRESS:  # jsonargparse's own completion
                continue
            elif action.option_strings and "--help" not in action.option_strings:
                options.append(list(action.option_strings))
        return cls(parser.description, options, commands)


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
        print(completion_script(Described.of(parser), str(values)))
        parser.exit()


def completion_script(described: Described, shell: str) -> str:
    """A script that completes the names of commands and options.

    Args:
        described: The parser above the commands.
        shell: One of ``SHELLS``.
    """
    import shtab

    plain = argparse.ArgumentParser(prog="ckptkd")
    _add_options(described, plain)
    added = plain.add_subparsers()
    for name, command in described.commands.items():
        _add_options(command, added.add_parser(name, help=command.description))
    script: str = shtab.complete(plain, shell)
    return script


def _add_options(described: Described, target: argparse.ArgumentParser) -> None:
    import shtab

    for names in described.options:
        option = target.add_argument(*names)
        option.complete = shtab.FILE  # type: ignore[attr-defined]
