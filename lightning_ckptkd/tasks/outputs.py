"""Where in a model's output the logits are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_ckptkd.errors import ArgumentError
from lightning_ckptkd.shapes import Shaped
from lightning_ckptkd.tasks.batch import describe

_USUAL = ("logits", "out")  # of transformers' outputs and torchvision's Inception; of torchvision's segmentation


def get_output(output: Any, key: str | int | None, model: str, argument: str = "logits_key") -> Shaped[Tensor, "..."]:
    """The tensor of logits (or of predicted numbers) in a model's output.

    Args:
        output: What the model returned.
        key: The index, key or attribute under which the output holds them; not used where the output is a tensor
            (some networks return a tuple in training and a tensor in evaluation). None finds those called ``logits``
            or ``out``.
        model: The model's name, for messages.
        argument: What the user gives the key as, for messages.

    Returns:
        Shape (N, ...).

    Raises:
        ArgumentError: If they aren't there.
    """
    if isinstance(output, Tensor):
        return output
    found = output
    if key is not None:
        keyed: Any = output
        by_item = isinstance(output, Mapping) or (isinstance(output, (tuple, list)) and isinstance(key, int))
        try:
            found = keyed[key] if by_item else getattr(output, str(key))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise ArgumentError(
                f"{argument}={key!r}: {model} returns {describe(output)}. Name the part that holds its logits."
            ) from None
    else:
        parts = output if isinstance(output, Mapping) else {name: getattr(output, name, None) for name in _USUAL}
        found = next((parts[name] for name in _USUAL if isinstance(parts.get(name), Tensor)), output)
    if not isinstance(found, Tensor):
        raise ArgumentError(
            f"{model} returns {describe(found)}, not a tensor of logits. Say which part of it holds them "
            f"with {argument}: an index, a key or an attribute's name."
        )
    return found
