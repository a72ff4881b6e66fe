"""What the words of a command, its variables and its configs say, before a parser is made of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

SELECT_ENVIRONMENT = "CKPTKD_SELECT__"


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
