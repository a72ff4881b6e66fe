"""The one door for checkpoints that others wrote: no code of theirs runs, each failure is an error that names the file.

Of a ``.ckpt`` file the tensors of its ``state_dict`` are made, and what is plain (numbers, strings, dicts, lists) can
be looked up. Whatever else it holds stays a description; nothing that it names is imported or called.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from lightning_ckptkd.errors import CkptKDError, SnapshotError
from lightning_ckptkd.snapshots.fields import shown
from lightning_ckptkd.snapshots.inert_pickle import Call, Items, PickleError, kind_of
from lightning_ckptkd.snapshots.layout import plan_layout
from lightning_ckptkd.snapshots.tensor_plan import plan_tensor
from lightning_ckptkd.snapshots.torch_archive import TorchArchive, open_archive
from lightning_ckptkd.snapshots.weights import Unread, select_weights

_MAX_GROWTH = 4  # a checkpoint holds at least the weights; a compressed or tied one may hold less
_SHARDS = ("torch.distributed.tensor.", "torch.distributed._tensor.", "torch.distributed._shard.")


class CheckpointFile:
    """An open checkpoint.

    Args:
        path: The file, for messages.
        archive: What was read of it.
        remedy: What to do with a file that is refused, for messages.
    """

    def __init__(self, path: Path, archive: TorchArchive, remedy: str) -> None:
        self.path = path
        self._archive = archive
        self._remedy = remedy
        self._content = archive.content if isinstance(archive.content, Items) else Items()
        state = self._content.get("state_dict")
        if not isinstance(state, Items):
            raise SnapshotError(f"{path} is not a Lightning checkpoint: it has no 'state_dict'. {_sentence(remedy)}")
        self._state = state

    def get(self, name: str) -> object:
        """What the checkpoint holds at a name, as :func:`read_pickle` gives it; None where there is nothing."""
        return self._content.get(name)

    def natural(self, name: str) -> int:
        """The integer from 0 at a name.

        Raises:
            SnapshotError: If there is none.
        """
        value = self.get(name)
        if type(value) is not int or not 0 <= value < 2**63:
            found = shown(value) if value is None or isinstance(value, (int, float, str)) else kind_of(value)
            raise SnapshotError(
                f"{self.path} is not a Lightning checkpoint: its {name!r} is {found}. {_sentence(self._remedy)}"
            )
        return value

    def number(self, value: object) -> float | None:
        """A number that the checkpoint holds, as such or as a tensor of one element; None where it is neither."""
        if isinstance(value, (int, float)):
            with contextlib.suppress(OverflowError):  # an integer too large for a float
                return float(value)
            return None
        plan = plan_tensor(value)
        return float(self._archive.read(plan).double()) if plan is not None and plan.numel == 1 else None

    def describe(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name of each plain tensor to its type and shape, none of them being read."""
        plans = ((name, plan_tensor(value)) for name, value in self._state.named())
        return {name: (str(plan.dtype), plan.shape) for name, plan in plans if plan is not None}

    def names(self) -> list[str]:
        """The names in the state dict."""
        return [name for name, _ in self._state.named()]

    def weights(self, submodule: str | None = None) -> dict[str, Tensor]:
        """The weights on the CPU, of all or of one part, as :func:`select_weights` names them.

        Raises:
            ArgumentError: If none belong to ``submodule``, or one is no plain tensor or can't be stored.
            SnapshotError: If they are one rank's shards, damaged, or far larger than the file.
        """
        state: dict[str, object] = {}
        for name, value in self._state.pairs:
            if not isinstance(name, str):
                raise SnapshotError(f"{self.path}: its state dict has a key that is no name. {_sentence(self._remedy)}")
            kind = _type_of(value)
            if kind.startswith(_SHARDS):
                raise SnapshotError(
                    f"{self.path} holds one rank's shards ({name!r} is {kind}), not whole weights. Save it with "
                    "ModelParallelStrategy(save_distributed_checkpoint=False) or from a full state dict "
                    f"(get_model_state_dict with full_state_dict=True), or {self._remedy}."
                )
            plan = plan_tensor(value)
            state[name] = Unread(kind) if plan is None else self._archive.read(plan)
        weights = select_weights(state, submodule)
        self.check_size(plan_layout(weights).data_bytes)
        return weights

    def check_size(self, needed: int) -> None:
        """Refuse weights that are far larger than their file: few bytes can stand for terabytes.

        Args:
            needed: Bytes that the weights would take.

        Raises:
            SnapshotError: If they are.
        """
        if needed > _MAX_GROWTH * self._archive.size + 2**20:
            raise SnapshotError(
                f"{self.path} has {self._archive.size} bytes, but its weights would take {needed}. It is damaged or "
                f"hostile: {self._remedy}."
            )


@contextlib.contextmanager
def open_checkpoint(path: Path, action: str, remedy: str) -> Iterator[CheckpointFile]:
    """Open a checkpoint; it can be read until the context ends. Errors in the context name the file.

    Args:
        path: The file; a link is followed.
        action: What is done with it, for messages: "taken over".
        remedy: What to do with one that is refused, for messages.

    Raises:
        SnapshotError: If it is missing, no regular file, no checkpoint, damaged or hostile.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # a ValueError of a NUL character in a path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SnapshotError(f"checkpoint {path} can't be opened: {reason}. {_sentence(remedy)}") from None
    with open(descriptor, "rb") as file:  # noqa: PTH123
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise SnapshotError(f"{path} is no regular file: {remedy}.")
        try:
            checkpoint = CheckpointFile(path, open_archive(file), remedy)
        except CkptKDError:
            raise
        except Exception as error:  # zipfile, struct and others have many kinds
            reason = str(error) if isinstance(error, PickleError) else f"{type(error).__name__}: {shown(str(error))}"
            raise SnapshotError(
                f"{path} can't be read as a checkpoint: {reason}. Nothing in it was run. {_sentence(remedy)}"
            ) from None
        try:
            yield checkpoint
        except CkptKDError:
            raise
        except Exception as error:  # what is in the file is as hostile as it is: whatever it does names the file
            raise SnapshotError(
                f"{path} can't be {action}: {type(error).__name__}: {str(error)[:200]!r}. {_sentence(remedy)}"
            ) from error


def _type_of(value: object) -> str:
    """What a value is; of a tensor of another class, that class."""
    for _ in range(4):  # a parameter of such a tensor
        if not isinstance(value, Call) or not isinstance(value.arguments, tuple) or not value.arguments:
            break
        first, *others = value.arguments
        if value.path.startswith("torch._utils._rebuild_parameter"):
            value = first
        elif value.path == "torch._tensor._rebuild_from_type_v2" and others:
            value = others[0]
        elif value.path == "torch._utils._rebuild_wrapper_subclass":
            value = first
        else:
            break
    return kind_of(value)


def _sentence(remedy: str) -> str:
    return f"{remedy[0].upper()}{remedy[1:]}."
