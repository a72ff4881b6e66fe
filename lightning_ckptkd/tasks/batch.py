"""What a batch holds: the inputs X and the labels Y."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_ckptkd.errors import ArgumentError

_INPUT_KEYS = ("x", "image", "images", "pixel_values", "input", "inputs")
_LABEL_KEYS = ("y", "label", "labels", "target", "targets")


def inputs_and_labels(batch: Any) -> tuple[Tensor, Tensor]:
    """X and Y of one batch.

    Args:
        batch: ``(x, y, ...)``, or a mapping with one of the usual names for each.

    Returns:
        X of shape (N, ...), and Y of shape (N,): class indices.

    Raises:
        ArgumentError: If the batch has another form or Y is not class indices.
    """
    x: Any = None
    y: Any = None
    if isinstance(batch, Mapping):
        x = next((batch[key] for key in _INPUT_KEYS if key in batch), None)
        y = next((batch[key] for key in _LABEL_KEYS if key in batch), None)
        form = f"a mapping with {sorted(map(str, batch))}"
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) >= 2:
        x, y = batch[0], batch[1]
        form = f"{type(batch).__name__} of {[type(item).__name__ for item in batch]}"
    else:
        form = type(batch).__name__
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise ArgumentError(
            f"A batch should be (inputs, labels) or a mapping with {_INPUT_KEYS} and {_LABEL_KEYS}, but is {form}. "
            "Override unpack_batch() in a subclass to say where they are."
        )
    if y.dim() != 1 or y.is_floating_point() or len(y) != len(x):
        raise ArgumentError(
            f"Labels should be class indices of shape ({len(x)},), but are {y.dtype} of shape {tuple(y.shape)}. "
            "Override unpack_batch() in a subclass to turn them into indices."
        )
    return x, y


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Check that labels index a row of logits.

    Raises:
        ArgumentError: If a label is negative or not below ``num_classes``.
    """
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
        raise ArgumentError(
            f"Labels run from {int(labels.min())} to {int(labels.max())}, but the teacher has {num_classes} classes "
            f"(0 to {num_classes - 1}). Give the data that it was trained on, or map the labels."
        )
