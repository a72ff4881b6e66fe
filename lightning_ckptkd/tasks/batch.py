"""What a batch holds once it is unpacked, and what can be done with it whatever that is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves, tree_map

from lightning_ckptkd.shapes import Shaped

_DESCRIBED = 12  # items of a container that are listed in a message


@dataclass(frozen=True)
class Batch:
    """A batch, unpacked once.

    Attributes:
        inputs: What the network is called with: a tensor (N, ...), a tuple of positions, a mapping of keywords, or
            any other object, which it is given as it is.
        targets: Shape (N, ...); None where there are none, as in prediction.
        whole: The batch as the loader gave it, where a network takes all of it; None where none does.
        name: What the inputs are called in the loader's batch, where they are one named part of it.
    """

    inputs: Any
    targets: Any = None
    whole: Any = None
    name: str | None = None

    def __len__(self) -> int:
        """N, the number of samples; of graphs where a batch is one of those."""
        return count_samples(self.inputs) if self.targets is None else len(self.targets)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device, moved as Lightning moves batches; this one stays where it is."""
        target = torch.device(device)
        return self._changed(lambda part: move(part, target))

    def cast(self, dtype: torch.dtype) -> Batch:
        """The batch with inputs of this type where they are floating-point; targets stay as they are."""

        def change(tensor: Tensor) -> Tensor:
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        return replace(self, inputs=map_tensors(self.inputs, change), whole=map_tensors(self.whole, change))

    def detached(self) -> Batch:
        """The batch without gradients, on the CPU."""
        return self._changed(lambda part: map_tensors(part, Tensor.detach)).to("cpu")

    @property
    def is_plain(self) -> bool:
        """Whether inputs and targets are one tensor each, which can be cut and joined sample by sample."""
        return isinstance(self.inputs, Tensor) and isinstance(self.targets, Tensor) and self.whole is None

    def __getitem__(self, rows: slice) -> Batch:
        """Some of the samples of a plain batch."""
        return replace(self, inputs=self.inputs[rows], targets=self.targets[rows])

    def _changed(self, change: Callable[[Any], Any]) -> Batch:
        inputs, targets, whole = (
            part if part is None else change(part) for part in (self.inputs, self.targets, self.whole)
        )
        return Batch(inputs, targets, whole, self.name)


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
        return [replace(batches[0], inputs=inputs, targets=targets)]
    return list(batches)


def count_samples(inputs: Any) -> int:
    """N of inputs alone: the graphs of a batch, the sequences of a packed one, else the length of the first tensor."""
    for leaf in tree_leaves(inputs, is_leaf=lambda node: isinstance(node, PackedSequence)):
        if isinstance(leaf, PackedSequence):
            return int(leaf.batch_sizes[0])
        if isinstance(leaf, Tensor) and leaf.dim():
            return len(leaf)
        if isinstance(leaf, Mapping):
            return count_samples(dict(leaf))
        if isinstance(getattr(leaf, "num_graphs", None), int):
            return int(leaf.num_graphs)
    return 0


def move(part: Any, device: torch.device) -> Any:
    """Any part of a batch on a device, as Lightning moves batches.

    Objects whose ``to`` moves the object itself (PyG's, transformers') are copied first, so that what a loader or the
    caller keeps stays where it is.
    """
    from lightning.fabric.utilities.apply_func import move_data_to_device

    if isinstance(part, Tensor):
        return move_data_to_device(part, device)
    return tree_map(
        lambda leaf: move_data_to_device(_own(leaf) if callable(getattr(leaf, "to", None)) else leaf, device),
        part,
        is_leaf=lambda node: isinstance(node, PackedSequence),
    )


def map_tensors(part: Any, change: Callable[[Shaped[Tensor, "..."]], Shaped[Tensor, "..."]]) -> Any:
    """The same nesting with each tensor changed; objects that are neither known containers nor PyG's stay."""

    def change_leaf(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return change(leaf)
        if isinstance(leaf, MutableMapping):  # kinds that torch does not know, such as transformers'
            changed = copy.copy(leaf)
            changed.update({name: map_tensors(value, change) for name, value in leaf.items()})
            return changed
        if _is_graph(leaf):
            return copy.copy(leaf).apply(change)
        return leaf

    return change(part) if isinstance(part, Tensor) else tree_map(change_leaf, part)


def tensors_in(part: Any) -> list[Shaped[Tensor, "..."]]:
    """The tensors in any nesting of tuples, lists and mappings, and in objects with ``to_dict`` (PyG's)."""
    found: list[Tensor] = []
    for leaf in tree_leaves(part):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):  # kinds of mapping that torch does not know, such as transformers'
            found += tensors_in(dict(leaf))
        elif _is_graph(leaf):
            found += tensors_in(leaf.to_dict())
    return found


def describe(part: Any) -> str:
    """A batch or a part of it in words: each item with its type and shape."""
    if isinstance(part, Tensor):
        return f"{str(part.dtype).removeprefix('torch.')} tensor of shape {tuple(part.shape)}"
    if isinstance(part, PackedSequence):
        return f"PackedSequence of {count_samples(part)}"
    if isinstance(part, Mapping):
        return "a mapping with " + _list_items(part.items())
    if isinstance(part, Sequence) and not isinstance(part, str):
        items = _list_items(enumerate(part))
        return f"{type(part).__name__} of {len(part)} ({items})"
    if _is_graph(part):
        return f"{type(part).__name__} with " + _list_items(part.to_dict().items())
    return type(part).__name__


def _list_items(items: Iterable[tuple[Any, Any]]) -> str:
    described = [f"{name!r}: {describe(item)}" for name, item in items]
    return ", ".join([*described[:_DESCRIBED], "..."] if len(described) > _DESCRIBED else described)


def _is_graph(part: Any) -> bool:
    return callable(getattr(part, "to_dict", None)) and callable(getattr(part, "apply", None))


def _own(part: Any) -> Any:
    """An object that can be moved without moving the original's tensors: a shallow copy, unless it is a tensor."""
    return part if isinstance(part, (Tensor, PackedSequence)) else copy.copy(part)
