"""How to select by hand, in words, where a selection at the end of a training went wrong."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_ckptkd.selecting.rules import Rule
from lightning_ckptkd.selecting.soup import NAME as SOUP
from lightning_ckptkd.selecting.soup import Soup

_PLAIN = (bool, int, float, str)


def command_by_hand(
    folder: str, options: Mapping[str, Any], model: Any, datamodule: Any, fit_config: str | None, *, runs: bool
) -> str:
    """The ``ckptkd select`` that makes the same choice, and what it does not say.

    Where module and data can't be named on a command line (classes of the script itself, dataloaders that were given to
    ``fit``), the command chooses by position, and the call in Python is named beside it.

    Args:
        folder: The harvest's.
        options: Those of the selector that are not its defaults, in the command's names.
        model: The module that was trained.
        datamodule: Its data; None where there is no DataModule.
        fit_config: The configuration that LightningCLI saved; None where there is none.
        runs: Whether the rule runs the snapshots.
    """
    words = ["ckptkd", "select", folder]
    if not runs:
        return f"`{shlex.join([*words, *_words(options)])}`"
    if fit_config is not None:
        return f"`{shlex.join([*words, '--fit_config', fit_config, *_words(options)])}`{_left_out(options)}"
    owner = model if datamodule is None else datamodule
    loaders = any(callable(vars(kind).get("val_dataloader")) for kind in type(owner).__mro__ if _is_users(kind))
    named = [_arguments("model", model), [] if datamodule is None else _arguments("data", datamodule)]
    if not loaders or any(part is None for part in named):
        return (
            f"`{shlex.join([*words, '--rule', 'spaced'])}`, which goes by position, or in Python "
            f"MISelector(...).select({folder!r}, model, val_dataloader)"
        )
    found = [word for part in named for word in part or ()]
    return f"`{shlex.join([*words, *found, *_words(options)])}`{_left_out(options)}"


def changed_options(init: Callable[..., None], named: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a selector that are not its defaults, as the command names them.

    Args:
        init: Says the defaults.
        named: Their values by name, and whatever else.
    """
    options: dict[str, Any] = {}
    for name, default in _defaults(init).items():
        value = named.get(name, default)
        if isinstance(value, Rule):
            own = {f"rule.{key}": found for key, found in _changed(type(value).__init__, value.options()).items()}
            options |= {"rule": value.name, **own} if own or value.name != default else {}
        elif isinstance(value, Soup):
            own = {f"{name}.{key}": found for key, found in _changed(Soup.__init__, vars(value)).items()}
            options |= {name: SOUP, **own}
        elif name not in ("snapshots", "on_error") and value is not default and value != default:
            options[name] = value
    return options


def saved_config(trainer: Any) -> str | None:
    """The configuration that LightningCLI saved beside the logs; every rank must ask."""
    for callback in trainer.callbacks:
        if getattr(callback, "already_saved", False) and trainer.log_dir is not None:
            name = getattr(callback, "config_filename", None)
            if isinstance(name, str):
                return str(Path(trainer.log_dir) / name)
    return None


def _words(options: Mapping[str, Any]) -> list[str]:
    words = []
    for name, value in options.items():
        if isinstance(value, _PLAIN):
            words += [f"--{name}", str(value)]
        elif _is_list(value):
            words += [f"--{name}", "[" + ", ".join(map(str, value)) + "]"]
    return words


def _left_out(options: Mapping[str, Any]) -> str:
    names = [name for name, value in options.items() if not isinstance(value, _PLAIN) and not _is_list(value)]
    return f" (with {', '.join(names)} as in MISelector)" if names else ""


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, _PLAIN) for item in value)


def _arguments(option: str, made: Any) -> list[str] | None:
    """Class path and arguments of an object; None where a new process could not make it."""
    kind = type(made)
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        return None
    words = [f"--{option}", f"{kind.__module__}.{kind.__qualname__}"]
    known = {**vars(made), **getattr(made, "hparams", {})}
    for name, default in _defaults(kind.__init__).items():
        value = known.get(name, default)
        if value is inspect.Parameter.empty or not (value == default or isinstance(value, _PLAIN)):
            return None
        if value != default:
            words += [f"--{option}.{name}", str(value)]
    return words


def _is_users(kind: type) -> bool:
    return kind.__module__.partition(".")[0] not in ("lightning", "pytorch_lightning", "torch", "builtins")


def _defaults(init: Callable[..., None]) -> dict[str, Any]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = list(inspect.signature(init).parameters.items())[1:]
    return {name: parameter.default for name, parameter in parameters if parameter.kind in named}


def _changed(init: Callable[..., None], options: Mapping[str, Any]) -> dict[str, Any]:
    defaults = _defaults(init)
    return {name: value for name, value in options.items() if value is not defaults[name] and value != defaults[name]}
