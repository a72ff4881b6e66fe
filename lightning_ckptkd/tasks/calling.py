"""How a network takes its inputs: one tensor, several by position, or those keywords that its ``forward`` has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from torch import Tensor, nn

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.rank_zero import rank_zero_warn
from lightning_ckptkd.tasks.batch import Batch, describe, tensors_in
from lightning_ckptkd.tasks.reading import INPUT_NAMES

_BATCH_NAMES = ("batch",)  # a forward whose one parameter is called so takes the batch as the loader gave it
_NEEDED = ("attention_mask", "mask", "lengths", "length", "padding_mask")  # without them results are others
_BOOKKEEPING = ("id", "ids", "idx", "index", "indices", "sample_id", "sample_idx")  # what **kwargs is not meant for


@dataclass(frozen=True)
class _Signature:
    """Parameters of a ``forward`` besides self.

    Attributes:
        names: Of those that can be given by name.
        required: Of those without a default.
        positional: Names of those that can be given by position.
        unlimited: Whether any number can be given by position.
        any_name: Whether it takes any keyword.
    """

    names: tuple[str, ...]
    required: tuple[str, ...]
    positional: tuple[str, ...]
    unlimited: bool
    any_name: bool

    def takes(self, count: int) -> bool:
        """Whether so many by position are enough, and not too many."""
        first = self.positional[:count]
        return set(self.required) <= set(first) and (self.unlimited or count <= len(self.positional))


def call(network: nn.Module, batch: Batch) -> Any:
    """Call a network on a batch's inputs.

    A mapping goes by keyword, those left out that ``forward`` does not take; of a ``forward`` that takes any keyword,
    numbers of samples and what holds no tensor. Where ``forward`` takes one array under another name, it gets the one
    of the usual names. An array that was alone in a mapping goes by its name where ``forward`` has it, else by
    position. A tuple goes by position where ``forward`` takes so many. A graph goes as it is, or its parts by keyword
    where ``forward`` asks for several. A ``forward`` with one parameter called ``batch`` gets the whole batch.

    Args:
        network: Any module.
        batch: On the network's device.

    Raises:
        ArgumentError: If the network can't take the inputs; says what it takes and what there is.
    """
    inputs = batch.inputs
    if batch.whole is not None and takes_whole(network):
        return network(batch.whole)
    if isinstance(inputs, Tensor):
        by_name = batch.name is not None and _takes_by_name(network, batch.name)
        return network(**{str(batch.name): inputs}) if by_name else network(inputs)
    takes = _signature(network)
    if isinstance(inputs, Mapping):
        return _call_by_name(network, takes, inputs)
    if type(inputs) in (tuple, list) and len(inputs) != 1:
        if takes.takes(len(inputs)):
            return network(*inputs)
        if not takes.takes(1):
            raise ArgumentError(_refusal(network, takes, inputs))
        return network(inputs)
    if not takes.takes(1) and callable(getattr(inputs, "to_dict", None)):
        return _call_by_name(network, takes, inputs.to_dict())
    return network(inputs)


def takes_whole(network: nn.Module) -> bool:
    """Whether a network's ``forward`` takes the batch as the loader gives it."""
    takes = _signature(network)
    return not takes.unlimited and takes.positional in [(name,) for name in _BATCH_NAMES] and takes.takes(1)


def _takes_by_name(network: nn.Module, name: str) -> bool:
    """Whether an array of this name is to be given by it."""
    takes = _signature(network)
    by_any = takes.any_name and not takes.positional and not takes.unlimited
    return by_any or (name in takes.names and set(takes.required) <= {name})


def _call_by_name(network: nn.Module, takes: _Signature, inputs: Mapping[str, Any]) -> Any:
    named = {name: value for name, value in inputs.items() if name in takes.names}
    known = dict(named)
    if takes.any_name:
        known |= {name: value for name, value in inputs.items() if name not in _BOOKKEEPING and tensors_in(value)}
    missing = [name for name in takes.required if name not in known]
    if not missing and (named or (known and not takes.positional)):
        _tell_of_left_out(type(network).__name__, tuple(name for name in inputs if name not in known))
        return network(**known)
    if takes.takes(1) or (missing and missing == list(takes.positional[:1])):
        alone = next((name for name in INPUT_NAMES if name in inputs and name not in named), None)
        if alone is not None:
            left_out = tuple(name for name in inputs if name != alone and name not in named)
            _tell_of_left_out(type(network).__name__, left_out)
            return network(inputs[alone], **named)
        if not named and takes.takes(1):
            return network(inputs)
    raise ArgumentError(_refusal(network, takes, inputs))


def _refusal(network: nn.Module, takes: _Signature, inputs: Any) -> str:
    return (
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
    return _parameters(getattr(forward, "__func__", forward), bound=hasattr(forward, "__self__"))


@lru_cache(maxsize=256)
def _parameters(forward: Callable[..., Any], *, bound: bool) -> _Signature:
    parameters = list(inspect.signature(forward).parameters.values())[1 if bound else 0 :]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    kinds = [parameter.kind for parameter in parameters]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return _Signature(
        names=tuple(p.name for p in named),
        required=tuple(p.name for p in required),
        positional=tuple(p.name for p in positional),
        unlimited=inspect.Parameter.VAR_POSITIONAL in kinds,
        any_name=inspect.Parameter.VAR_KEYWORD in kinds,
    )
