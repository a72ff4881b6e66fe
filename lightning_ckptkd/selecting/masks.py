"""Which positions of padded sequences are padding, by what came with the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

REAL = ("attention_mask", "mask")  # not 0 where a position is real, as transformers has it
PADDING = ("padding_mask", "key_padding_mask", "src_key_padding_mask")  # true where it is padding, as torch has it
LENGTHS = ("lengths", "length", "seq_lengths", "seq_lens")


def real_positions(inputs: Any, shape: tuple[int, int]) -> Tensor | None:
    """The positions of padded sequences that are no padding.

    Args:
        inputs: Of a batch: a mapping with a mask or lengths of the usual names, or a tuple in which one tensor is the
            number of positions of each sample.
        shape: (N, L).

    Returns:
        Shape (N, L), bool; None where nothing says so.
    """
    if isinstance(inputs, Mapping):
        for name in (*REAL, *PADDING):
            mask = inputs.get(name)
            if isinstance(mask, Tensor) and mask.shape == shape:
                return mask == 0 if name in PADDING else mask != 0
        for name in LENGTHS:
            found = inputs.get(name)
            if isinstance(found, Tensor) and found.shape == shape[:1]:
                return _before(found, shape[1])
    if type(inputs) in (tuple, list):
        for found in inputs:
            if isinstance(found, Tensor) and are_lengths(found, shape):
                return _before(found, shape[1])
    return None


def are_lengths(tensor: Tensor, shape: tuple[int, int]) -> bool:
    """Whether a tensor counts the positions of sequences that are padded to the longest of them, L."""
    whole = not tensor.is_floating_point() and tensor.dtype != torch.bool
    return whole and tensor.shape == shape[:1] and int(tensor.min()) >= 0 and int(tensor.max()) == shape[1]


def named_parts(inputs: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a batch's inputs that hold values, without masks and lengths of the usual names."""
    if isinstance(inputs, Mapping):
        left_out = (*REAL, *PADDING, *LENGTHS)
        yield from ((str(name), part) for name, part in inputs.items() if name not in left_out)
    elif type(inputs) in (tuple, list):
        yield from ((str(place), part) for place, part in enumerate(inputs))
    else:
        yield "", inputs


def _before(lengths: Tensor, longest: int) -> Tensor:
    return torch.arange(longest, device=lengths.device) < lengths[:, None]
