"""Where in a network F and the logits are read, found by one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.snapshots.weights import get_submodule
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.tasks.calling import call


@dataclass(frozen=True)
class Layers:
    """Where F is read.

    Attributes:
        pooled: Name of the module that gives the vectors; None where the logits are all that is needed.
        pooled_is_input: Whether its input is meant rather than its output.
        spatial: Name of the module whose output is the feature map; None where none is needed.
        gives_logits: Whether the network's output is taken for logits.
    """

    pooled: str | None
    pooled_is_input: bool
    spatial: str | None
    gives_logits: bool = True


@dataclass(frozen=True)
class Seen:
    """One forward pass, without what went through it.

    Attributes:
        output: What the network returned.
        is_head: Whether that is the output of its last layer itself: of an ``nn.Linear`` or, for an output with
            positions, a convolution.
        head: Name of the last ``nn.Linear`` that ran; where none did, of the last convolution that gave a map
            (N, C, H, W); None where neither did.
        maps: Names of the modules that gave a feature map, in order.
        names: Names of all modules that ran, in order.
    """

    output: Any
    is_head: bool
    head: str | None
    maps: tuple[str, ...]
    names: tuple[str, ...]


def watch(module: nn.Module, batch: Batch) -> Seen:
    """Run a network once and note what ran.

    Args:
        module: The network.
        batch: On its device.
    """
    maps: list[str] = []
    names: list[str] = []
    linear: list[str] = []
    convolutions: list[str] = []
    last: list[tuple[Tensor, int]] = []  # one output is kept, not all of them, whatever the batch's size

    def note(name: str, child: nn.Module, output: Any) -> None:
        if name:
            names.append(name)
        if name and is_map(output):
            maps.append(name)
        if isinstance(child, nn.Linear):
            linear.append(name)
        if isinstance(child, nn.Conv2d) and isinstance(output, Tensor) and output.dim() == 4:
            convolutions.append(name)
        if isinstance(child, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) and isinstance(output, Tensor):
            last[:] = [(output, output._version)] if isinstance(child, nn.Linear) or output.dim() > 2 else []

    with _hooks(module, note):
        output = forward(module, batch)
    is_head = bool(last) and _is_same(output, *last[0])
    heads = linear or convolutions
    return Seen(output, is_head, heads[-1] if heads else None, tuple(maps), tuple(names))


def find_layers(module: nn.Module, seen: Seen, layer: str | None, *, need_spatial: bool, need_layer: bool) -> Layers:
    """Decide where F is read.

    Args:
        module: The network.
        seen: A forward pass of it.
        layer: Name of a module whose output is F. None takes the input of the last ``nn.Linear`` that runs (of the last
            convolution where none does) and, for the feature map, the last output of shape (N, C, H, W) with more than
            one position.
        need_spatial: Whether a feature map is needed.
        need_layer: Whether the vectors of a layer are needed, and not the logits alone.

    Raises:
        ArgumentError: If the layer does not exist or none can be found.
    """
    spatial = layer
    if layer is not None:
        get_submodule(module, layer, "layer")
    elif seen.maps:
        spatial = seen.maps[-1]
    if need_spatial and spatial not in seen.maps:
        raise ArgumentError(
            f"layer={layer!r}: the convolutional decoder needs a feature map (N, C, H, W), and "
            f"{type(module).__name__} gives none there. Name a layer that does, or use input_estimator='gaussian'."
        )
    spatial = spatial if need_spatial else None
    if layer is not None:
        return Layers(layer, False, spatial)
    if not need_layer:
        return Layers(None, False, spatial)
    if seen.head is None:
        raise ArgumentError(
            f"layer=None: no nn.Linear or nn.Conv2d runs in {type(module).__name__}, so there is no last layer to read "
            f"F before. Name the layer whose output is F with layer=, such as one of {list(seen.names[-5:])}."
        )
    return Layers(seen.head, True, spatial)


def forward(module: nn.Module, batch: Batch) -> Any:
    """A network's output without gradients.

    Args:
        module: The network.
        batch: On its device.

    Raises:
        ArgumentError: If it has no ``forward``, or takes nothing of the batch.
    """
    with torch.no_grad():
        try:
            return call(module, batch)
        except NotImplementedError as error:
            raise ArgumentError(
                f"{type(module).__name__} has no forward(): {error}. Give it one that returns the logits, or harvest "
                "the network alone with CheckpointHarvester(submodule='...')."
            ) from None


def placed(module: nn.Module, batch: Batch) -> Batch:
    """A batch on a network's device, floating-point inputs in the type of its weights."""
    parameter = next(iter(module.parameters()), torch.empty(0))
    return batch.to(parameter.device).cast(parameter.dtype)


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a layer is called with, by position or by keyword, as in ``layer(input=x)``."""
    return args[0] if args else kwargs.get("input", next(iter(kwargs.values())))


def is_map(output: Any) -> bool:
    """Whether an output is a feature map (N, C, H, W) with more than one position."""
    return isinstance(output, Tensor) and output.dim() == 4 and output.shape[-2] * output.shape[-1] > 1


def _is_same(output: Any, head: Tensor, version: int) -> bool:
    """Whether an output is that of a layer, untouched, or another view of it."""
    if not isinstance(output, Tensor) or head._version != version:
        return False
    positions = output.dim() > 2 or head.dim() <= 2
    return positions and (output is head or (output.data_ptr() == head.data_ptr() and output.numel() == head.numel()))


@contextmanager
def _hooks(module: nn.Module, note: Callable[[str, nn.Module, Any], None]) -> Iterator[None]:
    handles = [
        child.register_forward_hook(lambda child, _, output, name=name: note(name, child, output))
        for name, child in module.named_modules()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
