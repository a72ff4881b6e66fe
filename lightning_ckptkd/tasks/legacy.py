"""The old way of reading batches, until every room asks tasks.reading."""

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


def get_logits(output: Any, key: str | int | None, model: str, argument: str = "logits_key") -> Tensor:
    """The logits in a model's output.

    Args:
        output: What the model returned.
        key: The index, key or attribute under which the output holds them; not used where the output is a tensor
            (some networks return a tuple in training and a tensor in evaluation).
        model: The model's name, for messages.
        argument: What the user gives the key as, for messages.

    Returns:
        Logits, shape (N, K).

    Raises:
        ArgumentError: If they aren't there, or are not (N, K).
    """
    found = output
    if key is not None and not isinstance(output, Tensor):
        keyed: Any = output
        by_item = isinstance(output, Mapping) or (isinstance(output, (tuple, list)) and isinstance(key, int))
        try:
            found = keyed[key] if by_item else getattr(output, str(key))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ArgumentError(
                f"{argument}={key!r}: {model} returns {describe_output(output)}. Name the part that holds its logits."
            ) from None
    if not isinstance(found, Tensor):
        raise ArgumentError(
            f"{model} returns {describe_output(found)}, not a tensor of logits. Say which part of it holds them "
            f"with {argument}: an index, a key or an attribute's name."
        )
    if found.dim() != 2:
        raise ArgumentError(
            f"Logits should have the shape (N, K), but those of {model} have {tuple(found.shape)}. Give a network that "
            f"returns one score a class for each sample or, with {argument}, say which part of its output holds them."
        )
    return found


def check_rows(logits: Tensor, samples: int, model: str) -> None:
    """Check that there is a row of logits for each sample.

    Args:
        logits: Shape (N, K).
        samples: Number of labels in the batch.
        model: Whose they are, for the message.

    Raises:
        ArgumentError: If N is another number.
    """
    if len(logits) != samples:
        raise ArgumentError(
            f"A batch of {samples} samples should have logits of shape ({samples}, K), but those of {model} have "
            f"{tuple(logits.shape)}. Give a network that returns one score a class for each sample."
        )


def describe_output(output: Any) -> str:
    """What a model's output is, in words."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"{type(output).__name__} with the keys {[str(key) for key in output]}"
    if isinstance(output, (tuple, list)):
        return f"{type(output).__name__} of {len(output)}"
    return type(output).__name__
