"""State dicts as snapshots hold them: names without wrappers, detached copies, part of a module by its path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_ckptkd.errors import ArgumentError, TeacherError, near_names
from lightning_ckptkd.snapshots.fields import shown

_COMPILED = "_orig_mod."  # torch.compile wraps a module and puts this before its names
_PARALLEL = "module."  # so do these two
_PARALLEL_TYPES = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_NAMES_SHOWN = 5
# Types whose values isfinite does not tell: the bits that are NaN, under a mask. None of them has an infinity.
_NAN_BITS = {
    torch.float8_e4m3fn: (0x7F, 0x7F),
    torch.float8_e4m3fnuz: (0xFF, 0x80),
    torch.float8_e5m2fnuz: (0xFF, 0x80),
    torch.float8_e8m0fnu: (0xFF, 0xFF),
}
_ALL_FINITE = torch.float4_e2m1fn_x2


class Unread:
    """In a state dict that was read from a file: a value that is no plain tensor and was not made.

    Args:
        kind: What it is.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind


def get_submodule(module: nn.Module, path: str | None, argument: str) -> nn.Module:
    """The part of ``module`` at the attribute path, or ``module`` itself where the path is None.

    Raises:
        ArgumentError: If there is no such part; names ``argument`` and the near names.
    """
    if path is None:
        return module
    try:
        return module.get_submodule(path)
    except AttributeError:
        near = near_names(path, (name for name, _ in module.named_modules()))
        raise ArgumentError(
            f"{argument}={path!r}: {type(module).__name__} has no module of that name. Near names: {near}."
        ) from None


def find_unmade(module: nn.Module) -> str | None:
    """The name of a parameter or buffer of a lazy layer that has not run yet, or None."""
    named = (*module.named_parameters(), *module.named_buffers())
    return next((name for name, value in named if is_lazy(value)), None)


def check_made(module: nn.Module, argument: str) -> None:
    """Check that each weight of a module has a shape.

    Raises:
        ArgumentError: If a lazy layer has not run yet; names ``argument`` and the weight.
    """
    name = find_unmade(module)
    if name is not None:
        raise ArgumentError(
            f"{argument}={type(module).__name__}: {name!r} has no shape yet, since a lazy layer makes its weights when "
            "it first runs. Run a batch through the module before you give it, or in its __init__."
        )


def harvested_part(module: nn.Module, submodule: object, weights: Mapping[str, Tensor]) -> nn.Module:
    """The part of a skeleton that a snapshot's weights belong to.

    Args:
        module: The skeleton: what was trained, or the harvested part of it.
        submodule: What the manifest says was harvested (untrusted, so of any type).
        weights: The snapshot's weights.

    Returns:
        ``module`` itself where it has the weights' names, or where it has no such part.
    """
    children = dict(module.named_modules())
    if not isinstance(submodule, str) or submodule not in children:
        return module
    return module if set(module_weights(module)) == set(weights) else children[submodule]


def module_weights(module: nn.Module, submodule: str | None = None) -> dict[str, Tensor]:
    """The live weights of a module, or of one part of it, as :func:`select_weights` names them."""
    return select_weights(module.state_dict(), submodule, find_wrappers(module))


def find_wrappers(module: nn.Module) -> list[str]:
    """The prefixes that data-parallel wrappers inside a module put before names, the innermost first."""
    paths = [path for path, part in module.named_modules() if isinstance(part, _PARALLEL_TYPES)]
    return sorted((f"{path}.{_PARALLEL}".lstrip(".") for path in paths), key=len, reverse=True)


def select_weights(
    state: Mapping[str, Any], submodule: str | None = None, wrappers: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The tensors of a state dict, named as without torch.compile and wrappers, of the whole module or of one part.

    Args:
        state: A state dict.
        submodule: Attribute path of the part; its names are then relative to it.
        wrappers: What :func:`find_wrappers` says of the module.

    Raises:
        ArgumentError: If nothing is left, a value is no tensor, or two names become one.
    """
    prefix = "" if submodule is None else _unwrap(submodule + ".", wrappers)
    weights: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str):
            raise ArgumentError(f"The state dict has the key {shown(key)}, which is no name.")
        name = _unwrap(key, wrappers)
        if not name.startswith(prefix):
            continue
        name = name[len(prefix) :]
        if not isinstance(value, Tensor):
            kind = value.kind if isinstance(value, Unread) else type(value).__name__
            raise ArgumentError(
                f"The state dict holds {kind} at {key!r}; only tensors can be harvested. "
                "Name the network alone with submodule='...'."
            )
        if name in weights:
            raise ArgumentError(
                f"Two entries of the state dict become {name!r} without the prefixes of torch.compile and parallel "
                f"wrappers; one is {key!r}. Rename one."
            )
        weights[name] = value
    if not weights:
        near = near_names(prefix, {key.rsplit(".", 1)[0] for key in state})
        raise ArgumentError(f"submodule={submodule!r}: no weights have that prefix. Near names: {near}.")
    return weights


def plain_names(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state dict with names as without torch.compile; the very same where it has those."""
    if not any(_COMPILED in name for name in state):
        return state
    return {name.replace(_COMPILED, ""): value for name, value in state.items()}


def names_of(module: nn.Module, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state dict with the names that ``module`` gives its weights, whether either was compiled or not."""
    own = {name.replace(_COMPILED, ""): name for name in module.state_dict()}
    renamed = {own.get(name.replace(_COMPILED, ""), name): value for name, value in state.items()}
    return state if renamed.keys() == state.keys() else renamed


def _unwrap(key: str, wrappers: Sequence[str]) -> str:
    for wrapper in wrappers:
        if key.startswith(wrapper):
            key = key[: len(wrapper) - len(_PARALLEL)] + key[len(wrapper) :]
    return key.replace(_COMPILED, "")


def find_non_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or infinity, or None; minus infinity is what masks are made of."""
    return next((name for name, value in weights.items() if not _is_finite(value)), None)


def _is_finite(value: Tensor) -> bool:
    if value.dtype in _NAN_BITS:
        mask, nan = _NAN_BITS[value.dtype]
        return not bool((value.view(torch.uint8) & mask == nan).any())
    if value.dtype == _ALL_FINITE or not (value.is_floating_point() or value.is_complex()):
        return True
    finite = torch.isfinite(value)
    if value.is_floating_point() and value.itemsize > 1:
        finite |= torch.isneginf(value)  # of an attention's mask; weights that diverge are NaN within a step
    return bool(finite.all())


def load_into(module: nn.Module, weights: Mapping[str, Tensor], file: str, argument: str = "teacher") -> None:
    """Load a snapshot's weights into a module that must fit exactly.

    Args:
        module: The skeleton; its weights are overwritten.
        weights: Name to tensor.
        file: The snapshot's file, for messages.
        argument: The argument that the skeleton came from, for messages.

    Raises:
        TeacherError: If keys or shapes differ, or a type is float4, which torch does not convert;
            names the file, the first keys that differ and the remedy.
    """
    expected = module_weights(module)
    missing = [name for name in expected if name not in weights]
    extra = [name for name in weights if name not in expected]
    reshaped = [
        f"{name} is {tuple(weights[name].shape)} in the file, {tuple(value.shape)} in the module"
        for name, value in expected.items()
        if name in weights and weights[name].shape != value.shape
    ]
    retyped = [
        f"{name} is of {weights[name].dtype} in the file, of {value.dtype} in the module"
        for name, value in expected.items()
        if name in weights and weights[name].dtype != value.dtype and _ALL_FINITE in (weights[name].dtype, value.dtype)
    ]
    if missing or extra or reshaped or retyped:
        differences = [
            f"{title}: {', '.join(items[:_NAMES_SHOWN])}{' …' if len(items) > _NAMES_SHOWN else ''}"
            for title, items in (
                ("shapes or types differ" if retyped else "shapes differ", [*reshaped, *retyped]),
                ("missing in the file", missing),
                ("extra", extra),
            )
            if items
        ]
        raise TeacherError(
            f"{file} does not fit {argument}={type(module).__name__}. {'; '.join(differences)}. "
            f"{_remedy(set(expected), set(weights))}"
        )
    with torch.no_grad():
        for name, value in expected.items():
            value.copy_(weights[name])


def _remedy(expected: set[str], given: set[str]) -> str:
    heads = sorted({name.split(".", 1)[0] for name in given if "." in name})
    for head in heads:
        if {name[len(head) + 1 :] for name in given if name.startswith(head + ".")} == expected:
            return f"The file holds the weights under '{head}.': give submodule={head!r}."
    return (
        "Give the architecture (and number of classes) that was trained, or the part of it that was harvested, "
        "with submodule=..."
    )
