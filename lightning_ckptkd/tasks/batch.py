"""What a batch holds once it is unpacked, and what can be done with it whatever that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


@dataclass(frozen=True)
class Batch:
    """A batch, unpacked once.

    Attributes:
        inputs: What the network is called with: a tensor (N, ...), a tuple of positions, a mapping of keywords, or
            any other object, which it is given as it is.
        targets: Shape (N, ...); None where there are none, as in prediction.
        whole: The batch as the loader gave it, where a network takes all of it; None where none does.
    """

    inputs: Any
    targets: Any = None
    whole: Any = None

    def __len__(self) -> int:
        """N, the number of samples."""
        return len(self.targets)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device, moved as Lightning moves batches."""
        target = torch.device(device)
        return self._changed(lambda part: move_data_to_device(part, target))

    def cast(self, dtype: torch.dtype) -> Batch:
        """The batch with inputs of this type where they are floating-point; targets stay as they are."""

        def change(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        return replace(self, inputs=_map(self.inputs, change), whole=_map(self.whole, change))

    def detached(self) -> Batch:
        """The batch without gradients, on the CPU."""
        return self._changed(lambda part: _map(part, Tensor.detach)).to("cpu")

    @property
    def is_plain(self) -> bool:
        """Whether inputs and targets are one tensor each, which can be cut and joined sample by sample."""
        return isinstance(self.inputs, Tensor) and isinstance(self.targets, Tensor) and self.whole is None

    def __getitem__(self, rows: slice) -> Batch:
        """Some of the samples of a plain batch."""
        return Batch(self.inputs[rows], self.targets[rows])

    def _changed(self, change: Callable[[Any], Any]) -> Batch:
        inputs, targets, whole = (
            part if part is None else change(part) for part in (self.inputs, self.targets, self.whole)
        )
        return Batch(inputs, targets, whole)


def split(batches: Sequence[Batch], batch_size: int) -> Iterator[Batch]:
    """Batches of ``batch_size`` samples at most where they are plain; others stay as they came."""
    for batch in batches:
        if batch.is_plain:
            for start in range(0, len(batch), batch_size):
                yield batch[start : start + batch_size]
        else:
            yield batch


def join(batches: Sequence[Batch]) -> list[Batch]:
    """One batch of all where they are plain and their samples of one shape; else the batches, apart as they came."""
    plain = all(batch.is_plain for batch in batches)
    if plain and len({(batch.inputs.shape[1:], batch.targets.shape[1:]) for batch in batches}) == 1:
        inputs, targets = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("inputs", "targets"))
        return [Batch(inputs, targets)]
    return list(batches)


def tensors_in(part: Any) -> list[Tensor]:
    """The tensors in any nesting of tuples, lists and mappings, and in objects with ``to_dict`` (PyG's)."""
    found: list[Tensor] = []
    for leaf in tree_leaves(part):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):  # kinds of mapping that torch does not know, such as transformers'
            found += tensors_in(dict(leaf))
        elif callable(getattr(leaf, "to_dict", None)):
            found += tensors_in(leaf.to_dict())
    return found


def describe(part: Any) -> str:
    """A batch or a part of it in words: each item with its type and shape."""
    if isinstance(part, Tensor):
        return f"{str(part.dtype).removeprefix('torch.')} tensor of shape {tuple(part.shape)}"
    if isinstance(part, Mapping):
        return "a mapping with " + ", ".join(f"{key!r}: {describe(value)}" for key, value in part.items())
    if isinstance(part, Sequence) and not isinstance(part, str):
        items = ", ".join(f"{place}: {describe(item)}" for place, item in enumerate(part))
        return f"{type(part).__name__} of {len(part)} ({items})"
    return type(part).__name__


def _map(part: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return change(part) if isinstance(part, Tensor) else tree_map_only(Tensor, change, part)
