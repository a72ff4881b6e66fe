"""Rules on the command line: options that moved onto them, and short names with options of their own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.selecting.rules import RULES, moved_options, where_it_went

_SELECTOR = "MISelector"
_ENVIRONMENT = "CKPTKD_SELECT__"


def refuse_moved_options(args: Sequence[str], environment: Mapping[str, str] = os.environ) -> None:
    """End a command whose words, variables or configs give the selector an option that a rule has now.

    Args:
        args: The command's words.
        environment: Its variables.

    Raises:
        ArgumentError: If one does; says what to write instead.
    """
    found: dict[str, Any] = {}
    selecting = args[:1] == ["select"]
    names = "|".join(moved_options())
    place = "--" if selecting else r"--trainer\.callbacks\.(?:init_args\.)?"
    for word, value in _options(args):
        match = re.fullmatch(f"{place}({names})", word)
        if match:
            found[match[1]] = _read(value)
    for document in _configs(args):
        nodes = [document] if selecting else list(_selectors(document))
        found |= {name: node[name] for node in nodes for name in moved_options() if name in node}
    if selecting:
        variables = {name: f"{_ENVIRONMENT}{name.upper()}" for name in moved_options()}
        found |= {name: _read(environment[key]) for name, key in variables.items() if key in environment}
    if found:
        raise ArgumentError(where_it_went(found))


def spell_out_rule(args: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """``select ... --rule mi --rule.layer head`` with the rule's class, which alone can have options.

    Args:
        args: The command's words.
        environment: Its variables.
    """
    words = list(args)
    first = next((place for place, word in enumerate(words) if word.startswith("--rule.")), None)
    if words[:1] != ["select"] or first is None:
        return words
    rule: Any = environment.get(f"{_ENVIRONMENT}RULE", next(iter(RULES)))
    for document in _configs(words):
        rule = document.get("rule", rule)
    for word, value in _options(words):
        rule = value if word == "--rule" else rule
    if isinstance(rule, str) and rule in RULES:
        words.insert(first, f"--rule={RULES[rule].__name__}")
    return words


def _options(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each option with its value, whether they are one word or two."""
    for word, following in zip(args, [*args[1:], ""], strict=True):
        name, joined, value = word.partition("=")
        yield name, value if joined else following


def _configs(args: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The configs that a command's words name, as far as they can be read; its parser tells of the others."""
    for word, value in _options(args):
        if word in ("-c", "--config"):
            try:
                document = yaml.safe_load(Path(value).read_text())
            except (OSError, ValueError, yaml.YAMLError):
                continue
            if isinstance(document, dict):
                yield document


def _selectors(node: Any) -> Iterator[dict[str, Any]]:
    """The ``init_args`` of each selector in a config."""
    if isinstance(node, list):
        for item in node:
            yield from _selectors(item)
    elif isinstance(node, dict):
        arguments = node.get("init_args")
        if str(node.get("class_path")).rsplit(".", 1)[-1] == _SELECTOR and isinstance(arguments, dict):
            yield arguments
        for item in node.values():
            yield from _selectors(item)


def _read(value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value
