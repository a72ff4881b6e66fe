"""What the words of a command, its variables and its configs say, before a parser is made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

DESCRIPTION = "Harvest checkpoints of a training run, select teachers, distil a student."
ENV_PREFIX = "CKPTKD"
SELECT_ENVIRONMENT = f"{ENV_PREFIX}_SELECT__"
_BARE_WORDS = {"select": ("snapshots",), "harvest": ("checkpoints", "snapshots"), "export": ("checkpoint", "out")}


def options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each option with its value, whether they are one word or two."""
    for word, following in zip(args, [*args[1:], ""], strict=True):
        name, joined, value = word.partition("=")
        yield name, value if joined else following


def configs(args: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The configs that a command's words name, as far as they can be read; its parser tells of the others."""
    for word, value in options(args):
        if word in ("-c", "--config"):
            try:
                document = yaml.safe_load(Path(value).read_text())
            except (OSError, ValueError, yaml.YAMLError):
                continue
            if isinstance(document, dict):
                yield document


def given(args: Sequence[str], environment: Mapping[str, str], name: str) -> Any:
    """What ``select`` is given for an option: by a variable, a config or a word, each before the next; or None."""
    value: Any = read(environment.get(f"{SELECT_ENVIRONMENT}{name.upper()}", "null"))
    for document in configs(args):
        value = document.get(name) or value
    for word, text in options(args):
        value = read(text) if word == f"--{name}" else value
    return value


def read(value: str) -> Any:
    """A word's value as YAML has it."""
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def name_bare_words(args: list[str]) -> list[str]:
    """``select DIR`` as ``select --snapshots DIR``: unlike a positional, an option can come from a file or variable."""
    named = list(args)
    for place, option in enumerate(_BARE_WORDS.get(args[0] if args else "", ()), start=1):
        if len(args) <= place or args[place].startswith("-"):
            break
        named[place] = f"--{option}={args[place]}"
    return named
