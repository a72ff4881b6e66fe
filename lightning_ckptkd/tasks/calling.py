"""How a network takes its inputs: one tensor, several by position, or those keywords that its ``forward`` has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.tasks.batch import Batch, describe
from lightning_ckptkd.tasks.reading import INPUT_NAMES

_BATCH_NAMES = ("batch",)  # a forward with such a parameter, alone, takes the batch as the loader gave it
_NEEDED = ("attention_mask", "mask", "lengths", "length", "padding_mask")  # without them results are others


@dataclass(frozen=True)
class _Signature:
    """Parameters of a ``forward`` besides self.

    Attributes:
        names: Of those that can be given by name.
        required: Number of positional ones without a default.
        most: Number of positional ones; None where there is no limit.
        any_name: Whether it takes any keyword.
    """

    names: tuple[str, ...]
    required: int
    most: int | None
    any_name: bool


def call(network: nn.Module, batch: Batch) -> Any:
    """Call a network on a batch's inputs.

    A mapping goes by keyword, those left out that ``forward`` does not take; one of a single array goes as it is. A
    tuple goes by position where ``forward`` takes so many. A ``forward`` with one parameter called ``batch`` gets the
    whole batch.

    Args:
        network: Any module.
        batch: On the network's device.

    Raises:
        ArgumentError: If the network has no ``forward``, or takes nothing of the batch.
    """
    inputs = batch.inputs
    if batch.whole is not None and takes_whole(network):
        return network(batch.whole)
    if isinstance(inputs, Tensor):
        return network(inputs)
    if isinstance(inputs, Mapping):
        return _call_by_name(network, inputs)
    if isinstance(inputs, (tuple, list)) and type(inputs) in (tuple, list) and len(inputs) != 1:
        takes = _signature(network)
        if takes.required <= len(inputs) and (takes.most is None or len(inputs) <= takes.most):
            return network(*inputs)
    return network(inputs)


def takes_whole(network: nn.Module) -> bool:
    """Whether a network's ``forward`` takes the batch as the loader gives it."""
    takes = _signature(network)
    return takes.most == 1 and takes.names[:1] in [(name,) for name in _BATCH_NAMES]


def _call_by_name(network: nn.Module, inputs: Mapping[str, Any]) -> Any:
    takes = _signature(network)
    known = {name: value for name, value in inputs.items() if takes.any_name or name in takes.names}
    if known and not (takes.any_name and not set(takes.names) & set(known)):
        _tell_of_left_out(type(network).__name__, tuple(name for name in inputs if name not in known))
        return network(**known)
    alone = next((name for name in INPUT_NAMES if name in inputs), None)
    if takes.required <= 1 and takes.most != 0:
        if alone is not None:
            _tell_of_left_out(type(network).__name__, tuple(name for name in inputs if name != alone))
            return network(inputs[alone])
        return network(inputs)
    raise ArgumentError(
        f"{type(network).__name__}.forward takes {', '.join(takes.names) or 'nothing by name'}, and the inputs are "
        f"{describe(inputs)}. Say which of them with input_keys, in the order of forward's parameters."
    )


@cache
def _tell_of_left_out(network: str, names: tuple[str, ...]) -> None:
    needed = [name for name in names if name in _NEEDED]
    if needed:
        rank_zero_warn(
            f"{network}.forward does not take {', '.join(needed)} of the batch, so that its results are those without "
            "(told once). If it should, name its parameters so, or give unpack_batch."
        )


def _signature(network: nn.Module) -> _Signature:
    inner = getattr(network, "_orig_mod", network)  # what torch.compile wraps
    forward: Any = inner.forward
    return _parameters(getattr(forward, "__func__", forward))


@lru_cache(maxsize=256)
def _parameters(forward: Callable[..., Any]) -> _Signature:
    parameters = [p for p in inspect.signature(forward).parameters.values() if p.name != "self"]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    kinds = [parameter.kind for parameter in parameters]
    return _Signature(
        names=tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)),
        required=sum(p.default is p.empty for p in positional),
        most=None if inspect.Parameter.VAR_POSITIONAL in kinds else len(positional),
        any_name=inspect.Parameter.VAR_KEYWORD in kinds,
    )
