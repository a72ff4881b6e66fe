"""X as vectors, whatever a batch's inputs are: numbers as they are, token ids by bags of tokens, or the user's view."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.information.inputs import pool_inputs, token_bags
from lightning_ckptkd.selecting.masks import are_lengths, named_parts, real_positions
from lightning_ckptkd.selecting.probe import Probe
from lightning_ckptkd.tasks.batch import Batch, describe, tensors_in

# not "-> Tensor": jsonargparse would refuse functions whose return value is not annotated
InputView = Callable[[Batch], Any]
"""Gives X, a tensor of numbers (N, D), of a batch of N samples."""

_BOOKKEEPING = ("token_type_ids", "position_ids", "id", "idx", "index", "indices", "sample_id", "sample_idx")
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class InputVectors:
    """What I(X;F) takes for X.

    Attributes:
        values: Shape (N, D); None where it is left out.
        told: How they were made, or why there are none, in one line; empty where inputs are plain numbers.
    """

    values: Tensor | None
    told: str = ""


def input_vectors(probe: Probe, view: InputView | None = None) -> InputVectors:
    """X of a probe set.

    Floating-point parts are flattened (images pooled), and so are images of integers: uint8 or uint16 with three or
    four dimensions, channels first or last, and any integers with four. Other integers are token ids, of which only
    those at positions that a mask or lengths leave count. Of several parts each is scaled to a total variance of 1.

    Args:
        probe: The samples.
        view: The user's own.

    Raises:
        ArgumentError: If the view gives no finite numbers (N, D).
    """
    if view is not None:
        return InputVectors(_viewed(probe, view))
    inputs = probe.inputs
    if inputs is not None and _are_numbers(inputs):
        return InputVectors(_flat(inputs))
    parts = [dict(named_parts(batch.inputs)) for batch in probe.batches]
    parts = [{name: part for name, part in each.items() if name not in _BOOKKEEPING} for each in parts]
    parts = [{name: part for name, part in each.items() if tensors_in(part)} for each in parts]
    if not parts[0] or any(each.keys() != parts[0].keys() for each in parts):
        return _none(f"the inputs are {describe(probe.batches[0].inputs)}")
    blocks, bags = [], []
    for name in parts[0]:
        tensors = [each[name] for each in parts]
        what = f"{name!r}" if name else "the input"
        if not all(isinstance(tensor, Tensor) and tensor.dim() for tensor in tensors):
            return _none(f"{what} is {describe(tensors[0])}")
        if any(len(tensor) != len(batch) for tensor, batch in zip(tensors, probe.batches, strict=True)):
            return _none(f"{what} is {describe(tensors[0])} for {len(probe.batches[0])} samples")
        if not all(map(_are_numbers, tensors)):
            if not _count_positions(tensors, parts):
                blocks.append(_bags(probe, tensors))
                bags.append(what)
        elif len({tensor.shape[1:] for tensor in tensors}) > 1:
            return _none(f"samples of {what} have several shapes, such as {_two_shapes(tensors)}")
        else:
            blocks.append(_flat(torch.cat(tensors)))
    told = f"I(X;F): integers of {', '.join(bags)} are taken for token ids, by how often each is there." if bags else ""
    blocks = blocks if len(blocks) == 1 else [_scaled(block) for block in blocks]
    blocks = [block for block in blocks if bool((block != block[:1]).any())]
    if not blocks:
        return _none("they are the same for each sample")
    return InputVectors(torch.cat(blocks, 1), told)


def _none(why: str) -> InputVectors:
    return InputVectors(
        None,
        f"I(X;F) is left out, since {why}. Give rule=MI(input_view=...), a function of a batch that gives numbers "
        "(N, D), or input_weight=0.",
    )


def _viewed(probe: Probe, view: InputView) -> Tensor:
    found = [view(batch) for batch in probe.batches]
    for values, batch in zip(found, probe.batches, strict=True):
        if not isinstance(values, Tensor) or values.dim() != 2 or len(values) != len(batch):
            raise ArgumentError(
                f"input_view should give a tensor of shape (N, D), but gives {describe(values)} for a batch of "
                f"{len(batch)} samples."
            )
    if len({values.shape[1] for values in found}) > 1:
        raise ArgumentError(
            f"input_view gives {sorted({values.shape[1] for values in found})} numbers a sample, another number for "
            "one batch than for the next. Give D numbers for each sample, whatever its length."
        )
    joined = torch.cat([values.detach().double().cpu() for values in found])
    if not bool(joined.isfinite().all()):
        raise ArgumentError("input_view gives numbers that are not finite. Leave those out, or replace them.")
    return joined


def _are_numbers(tensor: Tensor) -> bool:
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        return True
    return tensor.dim() >= (3 if tensor.dtype in (torch.uint8, torch.uint16) else 4)


def _flat(tensor: Tensor) -> Tensor:
    last = tensor.dim() == 4 and tensor.shape[-1] in _CHANNELS and tensor.shape[1] not in _CHANNELS
    if last and not tensor.is_floating_point():
        tensor = tensor.permute(0, 3, 1, 2)
    return pool_inputs(tensor)


def _count_positions(tensors: Sequence[Tensor], parts: Sequence[dict[str, Tensor]]) -> bool:
    """Whether a tensor of a tuple is the lengths of another's sequences."""
    for tensor, each in zip(tensors, parts, strict=True):
        others = [other for other in each.values() if isinstance(other, Tensor) and other.dim() >= 2]
        if not any(are_lengths(tensor, (other.shape[0], other.shape[1])) for other in others):
            return False
    return True


def _bags(probe: Probe, tensors: Sequence[Tensor]) -> Tensor:
    ids, samples, first = [], [], 0
    for tensor, batch in zip(tensors, probe.batches, strict=True):
        flat = tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None]
        kept = real_positions(batch.inputs, (flat.shape[0], flat.shape[1]))
        kept = torch.ones_like(flat, dtype=torch.bool) if kept is None else kept
        ids.append(flat[kept].long())
        samples.append(first + kept.nonzero()[:, 0])
        first += len(flat)
    return token_bags(torch.cat(ids), torch.cat(samples), first)


def _scaled(block: Tensor) -> Tensor:
    variance = block.double().var(0, correction=0).sum()
    return block.double() / variance.sqrt() if bool(variance > 0) else block.double()


def _two_shapes(tensors: Sequence[Tensor]) -> str:
    return " and ".join(map(str, list(dict.fromkeys(tuple(tensor.shape[1:]) for tensor in tensors))[:2]))
