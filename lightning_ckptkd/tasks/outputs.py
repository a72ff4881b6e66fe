"""Where in a model's output the logits are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_ckptkd.errors import ArgumentError


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
