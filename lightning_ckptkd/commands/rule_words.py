"""Rules on the command line: options that moved onto them, and short names with options of their own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_ckptkd.commands.words import SELECT_ENVIRONMENT, configs, options, read
from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.selecting.rules import RULES, moved_options, where_it_went

_SELECTOR = "MISelector"


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
    for word, value in options(args):
        match = re.fullmatch(f"{place}({names})", word)
        if match:
            found[match[1]] = read(value)
    for document in configs(args):
        nodes = [document] if selecting else list(_selectors(document))
        found |= {name: node[name] for node in nodes for name in moved_options() if name in node}
    if selecting:
        variables = {name: f"{SELECT_ENVIRONMENT}{name.upper()}" for name in moved_options()}
        found |= {name: read(environment[key]) for name, key in variables.items() if key in environment}
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
    rule: Any = environment.get(f"{SELECT_ENVIRONMENT}RULE", next(iter(RULES)))
    for document in configs(words):
        rule = document.get("rule", rule)
    for word, value in options(words):
        rule = value if word == "--rule" else rule
    if isinstance(rule, str) and rule in RULES:
        words.insert(first, f"--rule={RULES[rule].__name__}")
    return words


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
