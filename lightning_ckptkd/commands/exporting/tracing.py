"""A student's call as an exported program that takes a batch of any size."""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import logging
import os
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.tasks.batch import Batch, describe
from lightning_ckptkd.tasks.calling import call
from lightning_ckptkd.tasks.outputs import get_output

_LEAST = 2  # torch.export takes a sample of one for a batch that is always one
_PYTHON = str(Path(os.__file__).parent)
_PACKAGE = Path(__file__).parents[2]
_OWN = tuple(f"{folder}{os.sep}" for folder in (Path(torch.__file__).parent, _PACKAGE / "commands", _PACKAGE / "tasks"))


@dataclass(frozen=True)
class Call:
    """How a network is called on one sample batch.

    Attributes:
        args: By position.
        kwargs: By keyword.
        size: N, the number of samples.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    size: int

    def resized(self, size: int) -> Call:
        """The same with ``size`` samples: the first ones, or all and then the first ones again."""

        def change(part: Tensor) -> Tensor:
            if not has_batch(part, self.size):
                return part
            return part[torch.arange(size) % self.size]

        args, kwargs = tree_map_only(Tensor, change, (self.args, self.kwargs))
        return Call(args, kwargs, size)


@contextlib.contextmanager
def logits_alone(network: nn.Module, key: str | int | None) -> Iterator[None]:
    """The network returns its logits alone, shape (N, ...), of whatever it returns, until the end of the block.

    A hook does it and no module around it, which would rename its weights, and whose ``**kwargs`` torch 2.14 loses.

    Args:
        network: Any module.
        key: Where its logits are; see :func:`.get_output`.
    """
    name = type(network).__name__
    handle = network.register_forward_hook(lambda _, args, output: get_output(output, key, name, "student_logits_key"))
    try:
        yield
    finally:
        handle.remove()


def has_batch(part: Tensor, size: int) -> bool:
    """Whether a tensor's first dimension is that of the samples."""
    return part.dim() > 0 and len(part) == size


def find_call(network: nn.Module, sample: Batch) -> Call:
    """How the network is called on a sample; it is, once.

    Args:
        network: In eval mode.
        sample: At least two samples, on the network's device.

    Raises:
        ArgumentError: If the network can't take it, or it is of fewer samples.
    """
    found: list[Call] = []
    size = len(sample)
    if size < _LEAST:
        raise ArgumentError(
            f"sample: it has {size} samples ({describe(sample.inputs)}), and a program that is traced on fewer than "
            f"{_LEAST} takes no other number. Give {_LEAST} samples or more, as the first dimension of each tensor."
        )
    handle = network.register_forward_pre_hook(
        lambda _, args, kwargs: found.append(Call(args, dict(kwargs), size)), with_kwargs=True
    )
    try:
        with torch.no_grad():
            call(network, sample)
    except ArgumentError:
        raise
    except Exception as error:  # of the network, whatever it is
        raise ArgumentError(
            f"The student {type(network).__name__} can't run on the sample, {describe(sample.inputs)}: "
            f"{first_line(error)}. Give a sample as it was trained on: shape is that of one sample, such as 3 32 32, "
            "and inputs that are not one array of floats are taken from data."
        ) from error
    finally:
        handle.remove()
    return found[0]


def trace(network: nn.Module, calls: Sequence[Call]) -> ExportedProgram:
    """The exported program of a network's call, for any number of samples.

    Args:
        network: In eval mode; returns one tensor.
        calls: The call that is traced; others beside it differ in the sizes that may differ.

    Raises:
        ArgumentError: If torch can't trace it, or only for that number of samples; says at which operation.
    """
    first, name = calls[0], type(network).__name__
    shapes = _dynamic_shapes(network, calls)
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(network, first.args, first.kwargs, dynamic_shapes=shapes)
    except Exception as error:  # of torch or the network, of many kinds
        raise ArgumentError(
            f"torch.export can't trace {name} for a batch of any size, at {_operation(error)}: {first_line(error)}. "
            "Rewrite that with torch's operations on tensors and without a fixed number of samples, or write "
            ".safetensors or .pt, which hold the weights."
        ) from error


def first_line(error: BaseException) -> str:
    """An error's first line without its full stop, or its kind where it has no words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__


@contextlib.contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Each part in eval mode, until the end of the block; then each in the mode that it had."""
    training = [part for part in network.modules() if part.training]
    network.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own report of a failure (logs and a printed graph): the error says what is to be said."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            # torch 2.14 says so of each nn.LSTM and nn.GRU; what is traced has their weights all the same
            warnings.filterwarnings("ignore", message=r"The tensor attributes \S*_flat_weights")
            yield
    finally:
        logging.disable(disabled)


def _dynamic_shapes(network: nn.Module, calls: Sequence[Call]) -> Any:
    """For each argument of ``forward`` which dimensions may be of any size: the samples', and those that differ."""
    flat = [tree_flatten((call.args, call.kwargs)) for call in calls]
    batch, (leaves, spec) = Dim("batch"), flat[0]
    of_leaf: list[Any] = []
    for place, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            of_leaf.append(None)
            continue
        sizes = {0: batch} if has_batch(leaf, calls[0].size) else {}
        for other, _ in flat[1:]:
            theirs = other[place].shape if place < len(other) and isinstance(other[place], Tensor) else leaf.shape
            differ = [
                place for place in range(1, leaf.dim()) if len(theirs) > place and theirs[place] != leaf.shape[place]
            ]
            sizes.update(dict.fromkeys(differ, Dim.DYNAMIC))
        of_leaf.append(sizes)
    args, kwargs = tree_unflatten(of_leaf, spec)
    bound = inspect.signature(network.forward).bind(*args, **kwargs)
    return tuple(bound.arguments.values())


def _operation(error: BaseException) -> str:
    """Where in the user's code it went wrong."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(_OWN)]
    lines = [line.strip() for line in str(error).splitlines()]
    for line, code in itertools.pairwise(lines):  # torch's own words for it
        if line.startswith("File ") and not line.startswith(tuple(f'File "{root}' for root in _OWN)):
            return f"{code!r} ({line.replace(', in forward', '')})"
    frame = next((frame for frame in reversed(frames) if _is_users(frame.filename)), None)
    return (
        "an operation of torch" if frame is None else f'{frame.line!r} (File "{frame.filename}", line {frame.lineno})'
    )


def _is_users(file: str) -> bool:
    """Whether a file is neither made up nor of Python itself."""
    return not file.startswith("<") and (not file.startswith(_PYTHON) or "site-packages" in file)
