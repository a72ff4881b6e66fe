"""Which part of a batch is what: the options that say it, and what is taken where they don't."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_ckptkd.errors import ArgumentError, near_names
from lightning_ckptkd.tasks.batch import Batch, describe

Key = str | int

INPUT_NAMES = ("x", "image", "images", "pixel_values", "input", "inputs")
TARGET_NAMES = ("y", "label", "labels", "target", "targets")

_REMEDY = (
    "Say what is what with input_keys and target_key (names, positions, or paths such as '1.0'), or give unpack_batch, "
    "a function of the batch that returns (inputs, targets)."
)


@dataclass(frozen=True)
class BatchReader:
    """Unpacks batches.

    Without options a batch is (inputs, targets), a mapping with one of the usual names for the target, or an object
    that has it as an attribute. A tuple with more than two tensors is refused: which of them is the target can't be
    told, and guessing takes lengths for labels.

    Attributes:
        input_keys: Name or position of what the network is called with; a list for several, which go to it by
            keyword where they are names in a mapping, else by position. A path into nested parts has dots: ``1.0`` is
            the first part of the second.
        target_key: Name, position or path of the target.
        unpack_batch: A function of the batch that returns (inputs, targets), instead of both.
        whole: Whether to keep the batch as it came, too.

    Raises:
        ArgumentError: If the options say the same thing twice.
    """

    input_keys: Key | Sequence[Key] | None = None
    target_key: Key | None = None
    unpack_batch: Callable[[Any], tuple[Any, Any]] | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        if self.unpack_batch is not None and (self.input_keys is not None or self.target_key is not None):
            raise ArgumentError(
                "unpack_batch says all that input_keys and target_key could say. Give it alone, or these without it."
            )

    def __call__(self, batch: Any) -> Batch:
        """Unpack one batch.

        Raises:
            ArgumentError: If inputs or targets can't be told, or a key is not there; says what is.
        """
        if self.unpack_batch is not None:
            inputs, targets = self.unpack_batch(batch)
        else:
            name = self.target_key if self.target_key is not None else _find_target(batch)
            targets = pick(batch, name, "target_key")
            inputs = self._inputs(batch, name)
        if not isinstance(targets, Tensor):
            raise ArgumentError(f"The target of a batch should be a tensor, but is {describe(targets)}. {_REMEDY}")
        return Batch(inputs, targets, batch if self.whole else None)

    def inputs_only(self, batch: Any) -> Batch:
        """The same for prediction, where a batch may have no target, and be the inputs alone.

        Raises:
            ArgumentError: As for any batch.
        """
        if self.input_keys is None and self.unpack_batch is None and isinstance(batch, (Tensor, PackedSequence)):
            return Batch(batch)
        return self(batch)

    def _inputs(self, batch: Any, target: Key) -> Any:
        keys = self.input_keys
        if keys is None:
            return _find_inputs(batch, target)
        if isinstance(keys, (str, int)):
            return pick(batch, keys, "input_keys")
        parts = [pick(batch, key, "input_keys") for key in keys]
        if isinstance(batch, Mapping) and all(isinstance(key, str) for key in keys):
            return {str(key).rsplit(".", 1)[-1]: part for key, part in zip(keys, parts, strict=True)}
        return tuple(parts)


def pick(batch: Any, key: Key, argument: str) -> Any:
    """A part of a batch.

    Args:
        batch: Any nesting of sequences, mappings and objects.
        key: A name, a position, or several of them with dots between.
        argument: What the user gives the key as, for messages.

    Raises:
        ArgumentError: If it is not there; lists near names.
    """
    found = batch
    for step in [key] if isinstance(key, int) else key.split("."):
        try:
            if isinstance(found, Mapping):
                found = found[step]
            elif isinstance(found, Sequence) and not isinstance(found, str):
                found = found[int(step)]
            else:
                found = getattr(found, str(step))
        except (KeyError, IndexError, ValueError, AttributeError):
            names = list(map(str, found)) if isinstance(found, Mapping) else _tensor_attributes(found)
            near = f" Near names: {near_names(str(step), names)}." if names else ""
            raise ArgumentError(f"{argument}={key!r} is not in the batch, which is {describe(batch)}.{near}") from None
    return found


def _find_target(batch: Any) -> Key:
    if isinstance(batch, Mapping):
        found: Key | None = next((name for name in TARGET_NAMES if name in batch), None)
    elif _is_tuple(batch):
        tensors = [place for place, item in enumerate(batch) if isinstance(item, Tensor)]
        if len(batch) > 2 and len(tensors) > 2:
            raise ArgumentError(
                f"A batch of {len(tensors)} tensors can't be told into inputs and target: it is {describe(batch)}. "
                f"{_REMEDY}"
            )
        found = 1 if len(batch) >= 2 else None
    else:
        found = next((name for name in TARGET_NAMES if isinstance(getattr(batch, name, None), Tensor)), None)
    if found is None:
        raise ArgumentError(
            f"A batch should be (inputs, targets) or have one of {TARGET_NAMES}, but is {describe(batch)}. {_REMEDY}"
        )
    return found


def _find_inputs(batch: Any, target: Key) -> Any:
    if isinstance(batch, Mapping):
        rest = {str(name): value for name, value in batch.items() if name != target}
        return next(iter(rest.values())) if len(rest) == 1 else rest
    return batch[0] if _is_tuple(batch) else batch


def _is_tuple(batch: Any) -> bool:
    return isinstance(batch, Sequence) and not isinstance(batch, (str, PackedSequence))


def _tensor_attributes(part: Any) -> list[str]:
    return [name for name, value in getattr(part, "__dict__", {}).items() if isinstance(value, Tensor)]
