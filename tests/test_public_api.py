"""Names and defaults that users write: none changes unannounced.

After a change that is meant, `python -m tests.test_public_api` writes public_api.json anew; say it in CHANGELOG.
"""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any, get_origin

RECORD = Path(__file__).with_name("public_api.json")
MODULES = tuple(
    f"lightning_ckptkd{name}"
    for name in ("", ".losses", ".selecting.rules", ".teachers", ".teachers.mixing", ".tasks.base")
)
REMEDY = "Was it meant? Then say it in CHANGELOG, and run `python -m tests.test_public_api`."


def public_api() -> dict[str, dict[str, Any]]:
    """Module to name to what it is called with: parameter to its default, or ``required``."""
    found: dict[str, dict[str, Any]] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        names = getattr(module, "__all__", None) or [
            key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == name
        ]
        found[name] = {key: describe(getattr(module, key)) for key in sorted(names) if not key.startswith("_")}
    return found


def describe(value: Any) -> Any:
    is_alias = get_origin(value) is not None  # before Python 3.11 one passes for a class
    if is_alias or not (inspect.isclass(value) or inspect.isroutine(value)):
        return "a constant or type"
    if inspect.isclass(value) and issubclass(value, BaseException):
        return " > ".join(kind.__name__ for kind in value.__mro__ if kind is not object)
    marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return {
        marks.get(item.kind, "") + item.name: shown(item.default)
        for item in inspect.signature(value).parameters.values()
    }


def shown(default: Any) -> Any:
    if default is inspect.Parameter.empty:
        return "required"
    if inspect.isfunction(default):
        return "a function"
    return default if isinstance(default, (bool, int, float, str, type(None))) else repr(default)


def test_names_and_defaults() -> None:
    assert json.loads(RECORD.read_text()) == json.loads(json.dumps(public_api())), REMEDY


def test_a_change_is_seen() -> None:
    """Of a name, a parameter, an order or a default."""

    def before(a: int, b: int = 1) -> None: ...

    def after(a: int, b: int = 2) -> None: ...

    def renamed(a: int, c: int = 1) -> None: ...

    assert describe(before) == {"a": "required", "b": 1}
    assert describe(before) != describe(after) and describe(before) != describe(renamed)
    api = public_api()
    assert api["lightning_ckptkd"]["MISelector"]["probe_size"] == 2000
    assert {"CheckpointHarvester", "DistillationModule", "MISelector"} <= api["lightning_ckptkd"].keys()


if __name__ == "__main__":
    RECORD.write_text(json.dumps(public_api(), indent=1) + "\n")
