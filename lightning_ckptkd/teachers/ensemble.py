"""The frozen ensemble: several snapshots behind one forward."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_ckptkd.errors import ArgumentError, TeacherError
from lightning_ckptkd.logits import get_logits
from lightning_ckptkd.snapshots import Snapshot, SnapshotStore
from lightning_ckptkd.snapshots.weights import find_non_finite, harvested_part, load_into, select_weights


class TeacherEnsemble:
    """M frozen teachers: in eval mode, without gradients.

    It is no ``nn.Module``, so that a module which holds it has no teacher among its parameters, buffers, children
    or checkpoint entries: nothing is there for an optimiser, ``train()`` or DDP's broadcast to find. The price is
    that it must be placed by hand, with :meth:`to`.

    Args:
        members: The teachers; they are frozen.
        names: A name for each, for messages.
        logits_key: Where the logits are in a teacher's output; None where it is the logits.

    Raises:
        ArgumentError: If there are no members.
    """

    def __init__(self, members: Sequence[nn.Module], names: Sequence[str], logits_key: str | int | None = None) -> None:
        if not members:
            raise ArgumentError("members: an ensemble needs at least one teacher, got none.")
        self.members = [member.eval().requires_grad_(False) for member in members]
        self.names = list(names)
        self.logits_key = logits_key
        self._modules = [child for member in self.members for child in member.modules()]

    @classmethod
    def load(
        cls,
        store: SnapshotStore,
        snapshots: Sequence[Snapshot],
        teacher: nn.Module,
        *,
        submodule: str | None = None,
        logits_key: str | int | None = None,
    ) -> TeacherEnsemble:
        """Load verified snapshots into copies of a skeleton.

        Args:
            store: The harvest.
            snapshots: Which of it.
            teacher: The architecture; it is copied for each snapshot and left as it is.
            submodule: Part of the snapshots' weights to load, where ``teacher`` is only a part of what was harvested.
            logits_key: Where the logits are in a teacher's output.

        Raises:
            SnapshotError: If a file is missing, damaged or hostile.
            TeacherError: If a snapshot does not fit ``teacher``, or holds NaN or infinity.
        """
        recorded = store.manifest.source.get("submodule")
        members = []
        for snapshot in snapshots:
            weights = store.load(snapshot)
            name = find_non_finite(weights)
            if name is not None:
                raise TeacherError(
                    f"{store.folder / snapshot.file} holds NaN or infinity in {name!r} and can't teach. "
                    f"Choose others: `ckptkd select {store.folder}`."
                )
            member = harvested_part(_copy(teacher), recorded, weights)
            load_into(member, select_weights(weights, submodule), str(store.folder / snapshot.file))
            members.append(member)
        return cls(members, [snapshot.label for snapshot in snapshots], logits_key)

    def __len__(self) -> int:
        return len(self.members)

    def to(self, device: torch.device, dtype: torch.dtype) -> TeacherEnsemble:
        """Place the teachers; nothing happens where they are already there."""
        for member in self.members:
            member.to(device=device, dtype=dtype)
        return self

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """The logits of every teacher.

        Args:
            inputs: Shape (N, ...).

        Returns:
            Shape (M, N, K).

        Raises:
            ArgumentError: If a teacher gives no (N, K) logits.
        """
        if any(module.training for module in self._modules):  # somebody called train() on one of them
            for member in self.members:
                member.eval()
        return torch.stack(
            [get_logits(member(inputs), self.logits_key, type(member).__name__) for member in self.members]
        )


def _copy(teacher: nn.Module) -> nn.Module:
    """A deep copy that leaves a LightningModule's Trainer, with its data and loops, behind."""
    memo: dict[int, None] = {}
    if isinstance(teacher, LightningModule) and teacher._trainer is not None:
        memo[id(teacher._trainer)] = None
    try:
        copied = copy.deepcopy(teacher, memo)
    except RuntimeError as error:  # torch's, for a tensor with a graph that the module keeps
        raise TeacherError(
            f"teacher={type(teacher).__name__} can't be copied: {error}. Give a new instance of it."
        ) from error
    if isinstance(copied, LightningModule) and not any(True for _ in copied.parameters()):
        copied.configure_model()  # makes the layers of modules that leave it to the Trainer
    return copied
