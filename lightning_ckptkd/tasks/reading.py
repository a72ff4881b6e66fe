"""Which part of a batch is what: the options that say it, and what is taken where they don't."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError, near_names
from lightning_ckptkd.tasks.batch import Batch, describe, tensors_in

Key = str | int

INPUT_NAMES = (
    *("x", "image", "images", "pixel_values", "input", "inputs"),
    *("input_ids", "inputs_embeds", "input_values", "input_features"),
)
TARGET_NAMES = ("y", "label", "labels", "target", "targets")
_MASK_OF = ("image", "images", "pixel_values")  # beside one of these, and no other target, a mask is the target
_TOKENS = ("input_ids", "inputs_embeds", "tokens")
_OF_TOKENS = ("attention_mask", "token_type_ids", "padding_mask", "mask")
_OF_SAMPLES = ("lengths", "length", *_OF_TOKENS)

STILL_WORKS = (
    "Detection, self-supervised views and generation have no logits to compare: harvesting works for them, and "
    "choosing by position (rule='full', 'half' or 'spaced')."
)
_REMEDY = (
    "Say what is what with input_keys and target_key (names, positions, or paths such as '1.0'), or give unpack_batch, "
    "a function of the batch that returns (inputs, targets)."
)


@dataclass(frozen=True)
class BatchReader:
    """Unpacks batches.

    Without options a batch is (inputs, targets), a mapping with one of the usual names for the target (beside images
    that may be ``mask``), or an object that has it as an attribute. A tuple with more than two tensors is refused:
    which of them is the target can't be told, and guessing takes lengths for labels.

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
        check_types(BatchReader, vars(self))
        if self.input_keys is not None and not isinstance(self.input_keys, (str, int)) and not self.input_keys:
            raise ArgumentError("input_keys names nothing. Name what the network is called with, or leave it out.")
        if self.unpack_batch is not None and (self.input_keys is not None or self.target_key is not None):
            raise ArgumentError(
                "unpack_batch says all that input_keys and target_key could say. Give it alone, or these without it."
            )

    def __call__(self, batch: Any) -> Batch:
        """Unpack one batch.

        Raises:
            ArgumentError: If inputs or targets can't be told, or a key is not there; says what is. If a mask or
                lengths are of other samples or tokens than the inputs beside them.
        """
        name = None
        if self.unpack_batch is not None:
            inputs, targets = self._unpacked(batch)
        else:
            target = self.target_key if self.target_key is not None else _find_target(batch)
            targets = pick(batch, target, "target_key")
            inputs, name = self._inputs(batch, target)
        if not isinstance(targets, Tensor):
            raise ArgumentError(
                f"The target of a batch should be a tensor, but is {describe(targets)}. {_REMEDY} {STILL_WORKS}"
            )
        _check_masks(inputs)
        return Batch(inputs, targets, batch if self.whole else None, name)

    def inputs_only(self, batch: Any) -> Batch:
        """The same for prediction, where a batch may have no target, and be the inputs alone.

        Raises:
            ArgumentError: As for any batch.
        """
        if self.unpack_batch is None and self.target_key is None:
            if self.input_keys is not None:
                inputs, name = self._inputs(batch, None)
                return Batch(inputs, None, batch if self.whole else None, name)
            alone = isinstance(batch, (Tensor, PackedSequence)) or (_is_tuple(batch) and len(batch) == 1)
            if alone or (not _is_tuple(batch) and _named_target(batch) is None):
                inputs, name = (batch[0], None) if _is_tuple(batch) else _without(batch, None)
                _check_masks(inputs)
                return Batch(inputs, None, batch if self.whole else None, name)
        return self(batch)

    def _unpacked(self, batch: Any) -> tuple[Any, Any]:
        assert self.unpack_batch is not None
        found: Any = self.unpack_batch(batch)
        if not isinstance(found, tuple) or len(found) != 2:
            raise ArgumentError(f"unpack_batch should return (inputs, targets), but returned {describe(found)}.")
        return found

    def _inputs(self, batch: Any, target: Key | None) -> tuple[Any, str | None]:
        """The inputs and, where they are one part that has one, its name."""
        keys = self.input_keys
        if keys is None:
            return _find_inputs(batch, target, given=self.target_key is not None)
        if isinstance(keys, (str, int)):
            return pick(batch, keys, "input_keys"), _name_of(keys)
        parts = [pick(batch, key, "input_keys") for key in keys]
        if isinstance(batch, Mapping) and all(isinstance(key, str) for key in keys):
            return {str(key).rsplit(".", 1)[-1]: part for key, part in zip(keys, parts, strict=True)}, None
        return tuple(parts), None


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
    for step in [key] if isinstance(key, int) else _steps(batch, key):
        try:
            if isinstance(found, Mapping):
                found = found[step]
            elif _is_tuple(found) and step not in getattr(found, "_fields", ()):
                found = found[int(step)]
            else:
                found = getattr(found, str(step))
        except (KeyError, IndexError, ValueError, AttributeError, TypeError):
            names = list(map(str, found)) if isinstance(found, Mapping) else _attributes(found)
            near = f" Near names: {near_names(str(step), names)}." if names else ""
            raise ArgumentError(f"{argument}={key!r} is not in the batch, which is {describe(batch)}.{near}") from None
    return found


def _steps(batch: Any, key: str) -> list[str]:
    return [key] if isinstance(batch, Mapping) and key in batch else key.split(".")


def _find_target(batch: Any) -> Key:
    found: Key | None = _named_target(batch)
    if found is None and _is_tuple(batch):
        tensors = [place for place, item in enumerate(batch) if isinstance(item, Tensor)]
        if len(batch) > 2 and len(tensors) > 2:
            raise ArgumentError(
                f"A batch of {len(tensors)} tensors can't be told into inputs and target: it is {describe(batch)}. "
                f"{_REMEDY}"
            )
        found = 1 if len(batch) >= 2 else None
    if found is None:
        raise ArgumentError(
            f"A batch should be (inputs, targets) or have one of {TARGET_NAMES}, but is {describe(batch)}. {_REMEDY} "
            f"{STILL_WORKS}"
        )
    return found


def _named_target(batch: Any) -> str | None:
    if isinstance(batch, Mapping):
        found = next((name for name in TARGET_NAMES if name in batch), None)
        masks = found is None and "mask" in batch and any(name in batch for name in _MASK_OF)
        return "mask" if masks else found
    if isinstance(batch, (Tensor, PackedSequence)):
        return None
    names = getattr(batch, "_fields", ()) if _is_tuple(batch) else TARGET_NAMES
    return next(
        (name for name in TARGET_NAMES if name in names and isinstance(getattr(batch, name, None), Tensor)), None
    )


def _name_of(key: Key) -> str | None:
    """The name that a key says, None for a position."""
    name = str(key).rsplit(".", 1)[-1]
    return name if name.isidentifier() else None


def _find_inputs(batch: Any, target: Key | None, *, given: bool) -> tuple[Any, str | None]:
    """What is left without the target; of a tuple one part, since an order of several is for the user to say."""
    if not _is_tuple(batch) or (isinstance(target, str) and hasattr(batch, "_fields")):
        return _without(batch, target)
    place = int(str(target).split(".")[0]) % len(batch)
    rest = [item for other, item in enumerate(batch) if other != place]
    if given and sum(bool(tensors_in(item)) for item in rest) > 1:
        raise ArgumentError(
            f"target_key={target!r} leaves several parts of the batch, which is {describe(batch)}. Say with input_keys "
            "which of them the network is called with, in their order."
        )
    return (next((item for item in rest if tensors_in(item)), rest[0]) if given else batch[0]), None


def _without(batch: Any, target: Key | None) -> tuple[Any, str | None]:
    """A mapping (or a named tuple) without its target, or the only part left and its name; another object as it is."""
    names = batch._asdict() if hasattr(batch, "_asdict") else batch
    if not isinstance(names, Mapping) or isinstance(batch, PackedSequence):
        return batch, None
    root = target if target is None or target in names else str(target).split(".")[0]
    rest = {str(name): value for name, value in names.items() if name != root}
    if len(rest) != 1:
        return rest, None
    ((name, alone),) = rest.items()
    return alone, name


def _check_masks(inputs: Any) -> None:
    """Check that masks and lengths in a mapping are of the inputs beside them."""
    if not isinstance(inputs, Mapping):
        return
    main = next((name for name in (*_TOKENS, *INPUT_NAMES) if isinstance(inputs.get(name), Tensor)), None)
    if main is None or not inputs[main].dim():
        return
    shape = inputs[main].shape
    for name in _OF_SAMPLES:
        other = inputs.get(name)
        if not isinstance(other, Tensor) or not other.dim():
            continue
        by_token = name in _OF_TOKENS and main in _TOKENS and other.dim() == 2 and len(shape) >= 2
        if len(other) != len(inputs[main]) or (by_token and other.shape != shape[:2]):
            raise ArgumentError(
                f"{name} has the shape {tuple(other.shape)}, but {main} beside it {tuple(shape)}: they are not of the "
                "same samples and tokens. Pad both alike in collate_fn, or say with input_keys which inputs to take."
            )


def _is_tuple(batch: Any) -> bool:
    return isinstance(batch, Sequence) and not isinstance(batch, (str, PackedSequence))


def _attributes(part: Any) -> list[str]:
    known = part.to_dict() if callable(getattr(part, "to_dict", None)) else getattr(part, "__dict__", {})
    return [str(name) for name, value in known.items() if isinstance(value, Tensor)]
