"""How logits are stored: all of them or the largest, as fp16 or fp32.

Logits of one sample and teacher have the shape (K,), or another one: (K, H, W) of pixels, (L, K) of tokens. The largest
are kept of (K,) alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_ckptkd.errors import ArgumentError

#: What logits are stored as, by the name that an option gives it.
STORED_LOGITS = {"fp16": torch.float16, "fp32": torch.float32}

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def stored_layout(rows: int, teachers: int, shape: tuple[int, ...], dtype: str, top_k: int | None) -> Layout:
    """Name to type and shape of the tensors that :func:`encode` gives of logits of this shape."""
    if top_k is None:
        return {"logits": (STORED_LOGITS[dtype], (rows, teachers, *shape))}
    (classes,) = shape
    return {
        "values": (STORED_LOGITS[dtype], (rows, teachers, top_k)),
        "indices": (torch.int16 if classes < 2**15 else torch.int32, (rows, teachers, top_k)),
        "rest": (torch.float32, (rows, teachers)),
    }


def encode(logits: Tensor, dtype: str, top_k: int | None) -> dict[str, Tensor]:
    """Logits as they are stored.

    Args:
        logits: Finite, fp32, shape (rows, M, ...).
        dtype: A key of :data:`STORED_LOGITS`.
        top_k: None stores all.

    Returns:
        ``logits`` (rows, M, ...); or, of (rows, M, K), the k largest ``values`` (rows, M, k), their ``indices``
        (rows, M, k), and ``rest`` (rows, M), the logsumexp of the others.

    Raises:
        ArgumentError: If top_k is larger than K or the shape another, or a logit is beyond fp16.
    """
    rows, teachers, *shape = logits.shape
    if top_k is None:
        tensors = {"logits": logits}
    else:
        check_top_k(top_k, tuple(shape))
        values, indices = logits.topk(top_k, dim=2)
        rest = logits.scatter(2, indices, -math.inf).logsumexp(2)
        tensors = {"values": values, "indices": indices, "rest": rest}
    kept = tensors["logits" if top_k is None else "values"]
    largest, limit = float(kept.abs().amax()), torch.finfo(STORED_LOGITS[dtype]).max
    if largest > limit:
        raise ArgumentError(f"A logit of {largest:.6g} is beyond {dtype}, which ends at {limit:g}. Use dtype='fp32'.")
    layout = stored_layout(rows, teachers, tuple(shape), dtype, top_k)
    return {name: tensors[name].to(layout[name][0]).contiguous() for name in layout}


def check_top_k(top_k: int | None, shape: tuple[int, ...]) -> None:
    """Check that the largest k logits can be kept.

    Args:
        top_k: k; None for all.
        shape: Of the logits of one sample and teacher.

    Raises:
        ArgumentError: If k is more than K, or the shape is not (K,).
    """
    if top_k is not None and len(shape) != 1:
        raise ArgumentError(
            f"top_k={top_k} needs logits (N, K), but a teacher gives the shape {shape} for each sample. Leave it out."
        )
    if top_k is not None and top_k > shape[0]:
        raise ArgumentError(f"top_k={top_k} is more than the teachers' {shape[0]} classes. Lower it or leave it out.")


def decode(tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """Dense logits of stored ones.

    What was left out of the top k shares its probability evenly: at temperature 1 the kept classes have the
    probabilities that they had.

    Args:
        tensors: As :func:`encode` gives them, of B rows.
        shape: Of the logits of one sample and teacher.

    Returns:
        fp32, shape (M, B, ...).
    """
    if "logits" in tensors:
        return tensors["logits"].transpose(0, 1).to(torch.float32).contiguous()
    values, indices, rest = (tensors[name].transpose(0, 1) for name in ("values", "indices", "rest"))
    (classes,) = shape
    share = rest - math.log(max(classes - values.shape[2], 1))
    dense = share.unsqueeze(2).repeat(1, 1, classes)
    return dense.scatter_(2, indices.long(), values.float())
