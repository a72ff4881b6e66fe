"""``select --fit_config``: model and data of a training run's config, as LightningCLI reads them.

A config of ``ckptkd fit``, and of any LightningCLI that was not given classes, names them. One of a user's own
``LightningCLI(Model, Data)`` holds only what these are made with; the classes then come from ``--model`` and
``--data``.
"""

from __future__ import annotations

import glob
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

# the package says only at run time what it exports
from jsonargparse import ArgumentParser, Namespace
from jsonargparse import Path as ConfigPath  # type: ignore[attr-defined]
from lightning.pytorch import LightningDataModule
from torch import nn

from lightning_ckptkd.commands.words import given, options
from lightning_ckptkd.errors import ArgumentError, near_names
from lightning_ckptkd.trainer.namespaces import copies

_BASES = {"model": nn.Module, "data": LightningDataModule}


def bases(key: str) -> tuple[type, ...]:
    """What ``model`` and ``data`` may be: of Lightning's classes also the copy of the other name, where it is there."""
    return tuple(copies(_BASES[key]))


def import_data(args: Sequence[str], environment: Mapping[str, str] = os.environ) -> None:
    """Import the module of the class that ``select --data`` names, so that it is known which Lightning it is of.

    Args:
        args: The command's words.
        environment: Its variables.
    """
    name = _class_path(given(args, environment, "data")) if args[:1] == ["select"] else None
    if name is not None and "." in name:
        with suppress(Exception):  # the parser tells of it
            import_module(name.rpartition(".")[0])


def spell_out_fit_config(args: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """``select ... --fit_config FILE`` with what the file says of model and data before all other words.

    Args:
        args: The command's words.
        environment: Its variables.

    Raises:
        ArgumentError: As :func:`read_fit_config`.
    """
    words = list(args)
    if words[:1] != ["select"] or any(word in ("-h", "--help") for word in words):
        return words
    path = given(words, environment, "fit_config")
    if path is None:
        return words
    named = {key: _class_path(given(words, environment, key)) for key in _BASES}
    parts = read_fit_config(path, named)
    options_given = {name for name, _ in options(words)}
    wanted = {
        key: part
        for key, part in parts.items()
        if f"--{key}" not in options_given or _is_same(named[key], part["class_path"])
    }
    return [words[0], f"--config={json.dumps(wanted)}", *words[1:]] if wanted else words


def unnamed_classes(path: str) -> list[str]:
    """Of ``model`` and ``data``, those that a config has without a class.

    Args:
        path: The config.

    Raises:
        ArgumentError: If it can't be read.
    """
    document = _load(path)
    return [key for key in _BASES if _lacks_class(_resolved(document, key, path))]


def read_fit_config(path: str, named: Mapping[str, str | None]) -> dict[str, dict[str, Any]]:
    """Model and data of a config, with their classes.

    Files in its subfolders and relative paths are found from the config's folder. What has no class there and is not
    named either is left out.

    Args:
        path: The config.
        named: ``model`` and ``data`` to the class path that goes with arguments that have none.

    Returns:
        ``model`` and ``data`` to ``class_path`` and ``init_args``, paths absolute.

    Raises:
        ArgumentError: If the config can't be read, or a class can't be imported or does not take what is there.
    """
    document = _load(path)
    parser = ArgumentParser(exit_on_error=False)
    classes: dict[str, str] = {}
    for key in _BASES:
        part = _resolved(document, key, path)
        name = named.get(key)
        if part is None or (_lacks_class(part) and name is None):
            parser.add_argument(f"--{key}", type=Any)
        elif _lacks_class(part):
            assert name is not None
            classes[key] = name
            _add_class(parser, key, name, part, path)
        else:
            class_path = _class_path(part)
            if class_path is not None and "." in class_path:  # else a short name, which the parser looks up
                _find(class_path, f"fit_config={path!r} names")
            parser.add_subclass_arguments(bases(key), key, required=False, fail_untyped=False)
            classes[key] = ""
    parser.default_config_files = [glob.escape(path)]
    try:
        found = parser.get_defaults(skip_validation=True)
        parts_found = {key: found[key] for key in classes if found.get(key) is not None}
        wanted = _absolute(Namespace(parts_found))  # type: ignore[no-untyped-call]
        text = parser.dump(wanted.clone(with_meta=False), format="json", skip_validation=True, skip_unset=False)
    except Exception as error:  # parsers raise what they like, some of it without a word
        reason = " ".join((str(error).strip() or type(error).__name__).split("\n")[:3])
        raise ArgumentError(
            f"fit_config={path!r} can't be read as `ckptkd fit` reads it: {reason}. "
            "Mend it, or leave it out and give --model and --data."
        ) from None
    parts: dict[str, dict[str, Any]] = {}
    for key, part in json.loads(text).items():
        if key in classes:
            own = _resolved(document, key, path)
            parts[key] = part
            if classes[key]:
                parts[key] = {"class_path": classes[key], "init_args": {name: part[name] for name in own}}
    return parts


def _load(path: str) -> dict[str, Any]:
    try:
        document = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ArgumentError(f"fit_config={path!r} can't be read as YAML: {error}.") from None
    if not isinstance(document, dict):
        raise ArgumentError(f"fit_config={path!r} is no configuration of `ckptkd fit`.")
    return document


def _resolved(document: Mapping[str, Any], key: str, path: str) -> Any:
    """What a config says of a key, in itself or in a file beside it."""
    part = document.get(key)
    beside = Path(path).parent / part if isinstance(part, str) else None
    return _load(str(beside)) if beside is not None and beside.is_file() else part


def _lacks_class(part: Any) -> bool:
    return isinstance(part, dict) and "class_path" not in part


def _class_path(value: Any) -> str | None:
    """The class that ``--model`` or ``--data`` names, by itself or in a mapping."""
    name = value.get("class_path") if isinstance(value, dict) else value
    return name if isinstance(name, str) else None


def _add_class(parser: ArgumentParser, key: str, name: str, part: Mapping[str, Any], path: str) -> None:
    found = _find(name, f"--{key} names")
    if inspect.isclass(found):
        parser.add_class_arguments(found, key, fail_untyped=False, sub_configs=True)
    else:
        parser.add_function_arguments(found, key, fail_untyped=False, sub_configs=True)
    taken = {action.dest.removeprefix(f"{key}.").split(".")[0] for action in parser._actions}
    unknown = [option for option in part if option not in taken]
    if unknown:
        raise ArgumentError(
            f"fit_config={path!r} has {key}.{unknown[0]}, which {name} does not take (near ones: "
            f"{near_names(unknown[0], taken - {key, 'help'})}). Name the class that this LightningCLI was made with, "
            f"or leave --fit_config out and give {name}'s options as --{key}.NAME."
        )


def _find(name: str, who: str) -> Any:
    module, _, attribute = name.rpartition(".")
    if not module:
        raise ArgumentError(f"{who} {name!r} without its module. Give both: module.{name}.")
    try:
        holder = import_module(module)
    except Exception as error:  # importing runs the user's code
        raise ArgumentError(
            f"{who} {name!r}, and {module} can't be imported: {error}. Run the command in the folder that has the "
            "module, as training was, or put that folder into PYTHONPATH."
        ) from None
    found = getattr(holder, attribute, None)
    if found is None:
        near = near_names(attribute, [known for known in vars(holder) if not known.startswith("_")])
        raise ArgumentError(f"{who} {name!r}, and {module} has no such class. Near ones: {near}.")
    return found


def _is_same(named: str | None, class_path: str) -> bool:
    """Whether nothing else is named than a config has, under whatever path."""
    if named is None or named == class_path:
        return True
    if "." not in named or "." not in class_path:  # a short name, whose class is not known here
        return False
    same: bool = _find(named, "The command names") is _find(class_path, "fit_config names")
    return same


def _absolute(value: Any) -> Any:
    """Paths that a config has, whatever folder they are read from."""
    if isinstance(value, ConfigPath):
        return value.absolute
    if isinstance(value, Namespace):
        return Namespace(_absolute(vars(value)))  # type: ignore[no-untyped-call]
    if isinstance(value, dict):
        return {key: _absolute(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_absolute(item) for item in value)
    return value
