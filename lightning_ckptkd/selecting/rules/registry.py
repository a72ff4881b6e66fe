"""Rules by their short names, and where options went that were the selector's own once."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

from lightning_ckptkd.errors import ArgumentError, near_names
from lightning_ckptkd.selecting.rules.base import PositionRule, Rule
from lightning_ckptkd.selecting.rules.held_out import Accuracy, Loss
from lightning_ckptkd.selecting.rules.mcmi import MCMI
from lightning_ckptkd.selecting.rules.mi import MI
from lightning_ckptkd.selecting.rules.position import Full, Half, Spaced

RULES: dict[str, type[Rule]] = {kind.short_name: kind for kind in (MI, MCMI, Accuracy, Loss, Full, Half, Spaced)}


def make_rule(rule: Rule | str, **options: Any) -> Rule:
    """The rule that an option names.

    Args:
        rule: A rule, or the short name of one.
        **options: Of one that is named.

    Raises:
        ArgumentError: If the name is unknown; lists near names.
    """
    if isinstance(rule, Rule):
        return rule
    if rule not in RULES:
        raise ArgumentError(
            f"rule={rule!r} is unknown. Near names: {near_names(str(rule), RULES)}. A rule of your own goes by an "
            "object from Python, and by its class path, module.Class, elsewhere."
        )
    return RULES[rule](**options)


def names_of_rules(*, by_position: bool) -> list[str]:
    """Short names of the rules that go by position, or of those that don't."""
    return [name for name, kind in RULES.items() if issubclass(kind, PositionRule) is by_position]


def moved_options() -> dict[str, type[Rule]]:
    """Options that belong to a rule, with the first rule that has each."""
    found: dict[str, type[Rule]] = {}
    for kind in RULES.values():
        for name in list(inspect.signature(kind).parameters):
            found.setdefault(name, kind)
    return found


def where_it_went(given: Mapping[str, Any]) -> str:
    """What to write in place of options that are a rule's, in Python, YAML and on the command line.

    Args:
        given: Names of :func:`moved_options`, and their values.
    """
    kind = moved_options()[next(iter(given))].__name__
    python = ", ".join(f"{name}={value!r}" for name, value in given.items())
    yaml = ", ".join(f"{name}: {_in_yaml(value)}" for name, value in given.items())
    words = " ".join(f"--rule.{name} {_in_yaml(value)}" for name, value in given.items())
    verb = "is an option" if len(given) == 1 else "are options"
    return (
        f"{', '.join(given)} {verb} of the rule now: rule={kind}({python}) in Python (from {__package__} import "
        f"{kind}), rule: {{class_path: {kind}, init_args: {{{yaml}}}}} in YAML, --rule {kind} {words} on the command "
        "line."
    )


def no_such_option(door: type, given: Mapping[str, Any]) -> str:
    """The message where a door is given options that it does not have.

    Args:
        door: Whose option some rule's could be taken for.
        given: Names and values.
    """
    moved = moved_options()
    unknown = next((name for name in given if name not in moved), None)
    if unknown is None:
        return where_it_went(given)
    known = [name for name, option in inspect.signature(door).parameters.items() if option.kind != option.VAR_KEYWORD]
    return f"{door.__name__} has no option {unknown!r}. Near names: {near_names(unknown, known)}."


def _in_yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
