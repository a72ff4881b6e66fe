"""Batches in which no sample is padded, or cut, for the sake of another: what a cache of logits is filled on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.teachers.views import CollateViews, ViewBatch, ViewSample

Form = tuple[tuple[int, ...], ...]
"""Shapes of the tensors in a batch, in order."""

_BOOKKEEPING = ("ptr",)  # of PyG's batches: one number more than there are graphs
_DEEPEST = 3  # objects within objects


class CollateApart:
    """Collates items into one :class:`ViewBatch`, or into several where one would change samples.

    Each sample is collated alone, too. Where a batch holds as many numbers as its samples have alone, it is taken as it
    is: images of one size, packed sequences, graphs, everything that is padded to one length whatever its company.
    Else samples are put together only with those of the same shapes.

    Args:
        collate_fn: Collates samples, also a single one; it may not draw random numbers.
    """

    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        self._collate = CollateViews(collate_fn)

    def __call__(self, items: Sequence[ViewSample]) -> list[ViewBatch]:
        """Collate some items, each once; their order may be another.

        Raises:
            ArgumentError: If ``collate_fn`` drew random numbers, can't collate a sample alone, or leaves samples out.
        """
        whole = self._collate(items)
        if len(items) == 1:
            return [whole]
        alone = [self._alone(item) for item in items]
        forms = [_form(batch.batch) for batch in alone]
        if _is_sum(_form(whole.batch), forms):
            return [whole]
        groups: dict[Form, list[int]] = {}
        for place, form in enumerate(forms):
            groups.setdefault(form, []).append(place)
        batches: list[ViewBatch] = []
        for form, places in groups.items():
            if len(places) == 1 or not form:  # or of a kind that nothing is known of
                batches += [alone[place] for place in places]
                continue
            batch = self._collate([items[place] for place in places])
            if not _is_sum(_form(batch.batch), [form] * len(places)):
                raise ArgumentError(
                    f"collate_fn={self._name} makes a batch of the shapes {_form(batch.batch)} of {len(places)} "
                    f"samples which alone have {form} each, so it is not known whose logits are whose. Use one that "
                    "keeps all samples, or train without the cache of teachers' logits."
                )
            batches.append(batch)
        return batches

    @property
    def _name(self) -> str:
        collate = self._collate.collate_fn
        return getattr(collate, "__qualname__", type(collate).__name__)

    def _alone(self, item: ViewSample) -> ViewBatch:
        try:
            return self._collate([item])
        except ArgumentError:
            raise
        except Exception as error:  # whatever a user's function raises
            raise ArgumentError(
                f"collate_fn={self._name} can't collate one sample alone ({type(error).__name__}: {error}), so that it "
                "is not known what a sample's company changes. Use one that can, or train without cached logits."
            ) from error


def _form(batch: Any) -> Form:
    return tuple(tuple(tensor.shape) for tensor in _tensors(batch))


def _is_sum(whole: Form, alone: Sequence[Form]) -> bool:
    """Whether each tensor of a batch has as many numbers as those of its samples; no if there are no tensors."""
    if not whole or any(len(form) != len(whole) for form in alone):
        return False
    return all(_size(shape) == sum(map(_size, shapes)) for shape, *shapes in zip(whole, *alone, strict=True) if shape)


def _size(shape: tuple[int, ...]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _tensors(part: Any, depth: int = 0) -> list[Tensor]:
    """The tensors in a batch, also in objects that torch does not know."""
    found: list[Tensor] = []
    for leaf in tree_leaves(part, is_leaf=lambda node: isinstance(node, PackedSequence)):
        if isinstance(leaf, PackedSequence):
            found.append(leaf.data)
        elif isinstance(leaf, Tensor):
            found.append(leaf)
        elif callable(getattr(leaf, "to_dict", None)):
            found += _tensors({name: value for name, value in leaf.to_dict().items() if name not in _BOOKKEEPING})
        elif isinstance(leaf, Mapping):
            found += _tensors(dict(leaf))
        elif hasattr(leaf, "__dict__") and depth < _DEEPEST:
            found += _tensors(dict(vars(leaf)), depth + 1)  # which may hold itself
    return found
