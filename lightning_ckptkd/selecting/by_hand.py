"""How to select by hand, in words, where a selection at the end of a training went wrong."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

from lightning_ckptkd.selecting.rules import Rule
from lightning_ckptkd.selecting.soup import NAME as SOUP
from lightning_ckptkd.selecting.soup import Soup

_PLAIN = (bool, int, float, str)


@dataclass(frozen=True)
class SavedConfig:
    """A configuration that LightningCLI saved.

    Attributes:
        path: The file.
        named: Of ``model`` and ``data``, those whose class it says; a user's own ``LightningCLI(Model, Data)`` says
            none.
        can_be_read: Whether the files that it names are found from its folder.
    """

    path: str
    named: frozenset[str]
    can_be_read: bool = True


def command_by_hand(
    folder: str, options: Mapping[str, Any], model: Any, datamodule: Any, fit_config: SavedConfig | None, *, runs: bool
) -> str:
    """The ``ckptkd select`` that makes the same choice, and what it does not say.

    Where module and data can't be named on a command line (classes of the script itself, dataloaders that were given to
    ``fit`` or to the selector), the command chooses by position, and the call in Python is named beside it.

    Args:
        folder: The harvest's.
        options: Those of the selector that are not its defaults, in the command's names.
        model: The module that was trained.
        datamodule: Its data; None where there is no DataModule.
        fit_config: What LightningCLI saved; None where there is none.
        runs: Whether the rule runs the snapshots.
    """
    words = ["ckptkd", "select", folder]
    if not runs:
        return f"`{shlex.join([*words, *_words(options)])}`"
    made = {"model": model} if datamodule is None else {"model": model, "data": datamodule}
    words = [*_place(made.values()), *words]
    known = all(_is_known(type(one)) for one in made.values()) and "probe" not in options
    if fit_config is not None and fit_config.can_be_read and known:
        classes = [word for key, one in made.items() if key not in fit_config.named for word in _class_word(key, one)]
        found = ["--fit_config", fit_config.path, *classes, *_words(options)]
        return f"`{shlex.join([*words, *found])}`{_left_out(options)}"
    owner = model if datamodule is None else datamodule
    loaders = any(callable(vars(kind).get("val_dataloader")) for kind in type(owner).__mro__ if _is_users(kind))
    named = [_arguments(key, one) for key, one in made.items()]
    if not loaders or not known or any(part is None for part in named):
        return (
            f"`{shlex.join(['ckptkd', 'select', folder, '--rule', 'spaced'])}`, which goes by position, or in Python "
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


def saved_config(trainer: Any) -> SavedConfig | None:
    """The configuration that LightningCLI saved beside the logs; every rank must ask."""
    for callback in trainer.callbacks:
        if getattr(callback, "already_saved", False) and trainer.log_dir is not None:
            name = getattr(callback, "config_filename", None)
            if isinstance(name, str):
                path, config = Path(trainer.log_dir) / name, getattr(callback, "config", {})
                parts = {key: config.get(key) for key in ("model", "data")}
                named = frozenset(key for key, part in parts.items() if part is not None and "class_path" in part)
                return SavedConfig(str(path), named, all(map(_is_found(path.parent), _paths(parts))))
    return None


def _paths(part: Any) -> Iterator[tuple[str, str]]:
    """Paths in a configuration, as it has them and absolute; jsonargparse's types of path are told by these two."""
    if isinstance(getattr(part, "absolute", None), str):
        yield str(part.relative), part.absolute
    elif isinstance(part, (list, tuple)):
        for item in part:
            yield from _paths(item)
    elif part is not None and not isinstance(part, (*_PLAIN, Path)):
        for name, item in (part if isinstance(part, dict) else getattr(part, "__dict__", {})).items():
            if not name.startswith("__"):  # jsonargparse's notes of where a part came from
                yield from _paths(item)


def _is_found(folder: Path) -> Callable[[tuple[str, str]], bool]:
    """Whether a path means the same from a folder, since a configuration that is saved elsewhere keeps it as it was."""
    return lambda path: "://" in path[0] or (folder / path[0]).resolve() == Path(path[1]).resolve()


def _place(made: Iterable[Any]) -> list[str]:
    """The variable by which the modules beside a script are found, where it was run from another folder."""
    if not sys.path or not sys.path[0] or Path(sys.path[0]).resolve() == Path.cwd():
        return []
    beside = Path(sys.path[0]).resolve()
    for one in made:
        top = sys.modules.get(type(one).__module__.partition(".")[0])
        file = getattr(top, "__file__", None)
        if file is not None and beside in (Path(file).resolve().parent, Path(file).resolve().parent.parent):
            return [f"PYTHONPATH={beside}"]
    return []


def _is_known(kind: type | FunctionType) -> bool:
    """Whether a new process can import a class or a function by its path."""
    return kind.__module__ != "__main__" and "<locals>" not in kind.__qualname__


def _class_word(option: str, made: Any) -> list[str]:
    return [f"--{option}", f"{type(made).__module__}.{type(made).__qualname__}"]


def _plain(value: Any) -> Any:
    """What a command line can say: a value as it is, a function by its path; None for others."""
    if isinstance(value, _PLAIN):
        return value
    if _is_list(value):
        return "[" + ", ".join(map(str, value)) + "]"
    if isinstance(getattr(value, "absolute", None), str):
        return value.absolute
    return f"{value.__module__}.{value.__qualname__}" if inspect.isfunction(value) and _is_known(value) else None


def _words(options: Mapping[str, Any]) -> list[str]:
    said = {name: _plain(value) for name, value in options.items()}
    return [word for name, value in said.items() if value is not None for word in (f"--{name}", str(value))]


def _left_out(options: Mapping[str, Any]) -> str:
    names = [name for name, value in options.items() if _plain(value) is None]
    return f" (with {', '.join(names)} as in MISelector)" if names else ""


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, _PLAIN) for item in value)


def _arguments(option: str, made: Any) -> list[str] | None:
    """Class path and arguments of an object; None where a new process could not make it."""
    kind, words = type(made), _class_word(option, made)
    known = {**vars(made), **getattr(made, "hparams", {})}
    for name, default in _defaults(kind.__init__).items():
        value = known.get(name, default)
        said = None if value is inspect.Parameter.empty else _plain(value)
        if value is not inspect.Parameter.empty and (value is default or (said is not None and value == default)):
            continue
        if said is None:
            return None
        words += [f"--{option}.{name}", str(said)]
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
