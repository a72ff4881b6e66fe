"""The frozen ensemble: several snapshots behind one forward."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_ckptkd.errors import ArgumentError, TeacherError
from lightning_ckptkd.snapshots import Snapshot, SnapshotStore
from lightning_ckptkd.snapshots.weights import check_made, find_non_finite, harvested_part, load_into, select_weights
from lightning_ckptkd.tasks.alone import detach
from lightning_ckptkd.tasks.batch import Batch, tensors_in
from lightning_ckptkd.tasks.calling import call, takes_whole
from lightning_ckptkd.tasks.outputs import get_output
from lightning_ckptkd.teachers.folding import find_pairs, fold_pairs
from lightning_ckptkd.teachers.logit_checks import is_close
from lightning_ckptkd.trainer.namespaces import is_kind


@dataclass(frozen=True)
class TeacherPath:
    """How teachers run; all off is the plain loop.

    Attributes:
        folded: BatchNorm is folded into the layer before it.
        channels_last: Activations of images lie with their channels last.
        compiled: By ``torch.compile``, the weights being constants.
        bf16: Under autocast to bfloat16.
        fp16: Under autocast to float16.
    """

    folded: bool = False
    channels_last: bool = False
    compiled: bool = False
    bf16: bool = False
    fp16: bool = False

    def names(self) -> list[str]:
        """The ways that are on."""
        return [name for name, on in vars(self).items() if on]


class TeacherEnsemble:
    """M frozen teachers: in eval mode, without gradients.

    It is no ``nn.Module``, so that a module which holds it has no teacher among its parameters, buffers, children
    or checkpoint entries: nothing is there for an optimiser, ``train()`` or DDP's broadcast to find. The price is
    that it must be placed by hand, with :meth:`to`.

    Args:
        members: The teachers; they are frozen.
        names: A name for each, for messages.
        logits_key: Where the logits are in a teacher's output; None where it is the logits.

    Attributes:
        path: How they run.

    Raises:
        ArgumentError: If there are no members.
    """

    def __init__(self, members: Sequence[nn.Module], names: Sequence[str], logits_key: str | int | None = None) -> None:
        if not members:
            raise ArgumentError("members: an ensemble needs at least one teacher, got none.")
        self.members = [member.eval().requires_grad_(False) for member in members]
        self.names = list(names)
        self.logits_key = logits_key
        self.path = TeacherPath()
        self._compiled: dict[int, Any] = {}
        self._compiled_shapes: list[torch.Size] = []
        self._modules = self._find_modules()

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
            ArgumentError: If ``teacher`` has lazy layers that have not run yet.
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

    @property
    def take_whole(self) -> bool:
        """Whether one of them takes the batch as the loader gave it."""
        return any(takes_whole(member) for member in self.members)

    def __call__(self, batch: Batch, which: Sequence[int] | None = None) -> Tensor:
        """The logits of every teacher, or of some; the others do not run.

        Args:
            batch: N samples, on the teachers' device.
            which: Places of the teachers; None takes all M.

        Returns:
            Shape (M, N, ...), for classification (M, N, K), without gradient.

        Raises:
            ArgumentError: If a teacher's output holds no tensor of logits.
            TeacherError: If teachers differ in shape.
        """
        self._keep_eval()
        places = range(len(self)) if which is None else which
        with torch.inference_mode():
            seen = self._lay_out(batch)
            logits = [self._run(place, seen) for place in places]
        return self._stack(logits, places)

    def look(self, batch: Batch) -> tuple[Tensor, list[list[tuple[str, str]]]]:
        """The logits of all, (M, N, ...), and what could be folded in each: one forward pass, while none is folded."""
        self._keep_eval()
        logits: list[Tensor] = []
        with torch.no_grad():
            pairs = [
                find_pairs(member, lambda place=place: logits.append(self._run(place, batch)))  # type: ignore[misc]
                for place, member in enumerate(self.members)
            ]
        return self._stack(logits, range(len(self))), pairs

    def _keep_eval(self) -> None:
        if any(module.training for module in self._modules):  # somebody called train() on one of them
            for member in self.members:
                member.eval()

    def _lay_out(self, batch: Batch) -> Batch:
        if self.path.channels_last and is_images(batch):
            return replace(batch, inputs=batch.inputs.contiguous(memory_format=torch.channels_last))
        return batch

    def _stack(self, logits: Sequence[Tensor], places: Sequence[int]) -> Tensor:
        if any(found.shape != logits[0].shape for found in logits):
            shapes = ", ".join(
                f"{self.names[place]}: {tuple(found.shape)}" for place, found in zip(places, logits, strict=True)
            )
            raise TeacherError(
                f"The teachers' logits differ in shape, (N, K) for each ({shapes}). Choose teachers of one number of "
                "classes K with choice=."
            )
        return torch.stack(list(logits))  # outside: a loss can't keep tensors of inference mode for its gradient

    def _run(self, place: int, batch: Batch) -> Tensor:
        member = self.members[place]
        compiled = place in self._compiled and _shapes(batch) == self._compiled_shapes
        runs = self._compiled[place] if compiled else member
        if self.path.bf16 or self.path.fp16:
            with torch.autocast(device_of(batch).type, torch.bfloat16 if self.path.bf16 else torch.float16):
                output = call(runs, batch)
        else:
            output = call(runs, batch)
        return get_output(output, self.logits_key, type(member).__name__)

    def fold(
        self, batch: Batch, tolerance: float, looked: tuple[Tensor, list[list[tuple[str, str]]]] | None = None
    ) -> tuple[Tensor, bool]:
        """Fold BatchNorm into the layers before it, in each teacher whose logits stay the same.

        Args:
            batch: To compare on.
            tolerance: Difference that is allowed, as a share of the largest logit.
            looked: What :meth:`look` gave for this batch; None: it is called. What is folded is taken out of it.

        Returns:
            The logits that they give now, (M, N, ...), and whether no teacher's would have changed.
        """
        reference, pairs = self.look(batch) if looked is None else looked
        exact, logits = True, []
        untouched = self.path == TeacherPath()
        autocast = torch.is_autocast_enabled(device_of(batch).type)  # whose few digits would hide what changes
        with torch.no_grad(), torch.autocast(device_of(batch).type, enabled=False):
            seen = self._lay_out(batch)
            for place, member in enumerate(self.members):
                if not pairs[place]:
                    logits.append(reference[place] if untouched else self._run(place, seen))
                    continue
                before = self._run(place, seen) if autocast else reference[place]
                self.members[place] = _copy(member)  # one teacher more at a time, not twice as many
                try:
                    fold_pairs(self.members[place], pairs[place])
                    pairs[place] = []
                    after = self._run(place, seen)
                except Exception:
                    self.members[place] = member
                    raise
                if is_close(after, before, tolerance):
                    self.path = replace(self.path, folded=True)
                else:
                    self.members[place], exact = member, False
                    after = reference[place] if untouched else self._run(place, seen)
                logits.append(after)
        self._modules = self._find_modules()
        return self(batch) if autocast else self._stack(logits, range(len(self))), exact

    def take(self, **change: bool) -> None:
        """Change ``channels_last``, ``bf16`` or ``fp16`` of the path."""
        self.path = replace(self.path, **change)
        if "channels_last" in change:
            memory_format = torch.channels_last if self.path.channels_last else torch.contiguous_format
            for member in self.members:
                member.to(memory_format=memory_format)

    def compile(self, batch: Batch, which: Sequence[int] | None = None) -> None:
        """Compile the teachers, or some, for batches of this one's shapes; others run as before."""
        places = range(len(self)) if which is None else which
        for place in places:
            if place not in self._compiled:
                member = self.members[place]
                self._compiled[place] = torch.compile(member, dynamic=False, options={"freezing": True})
        self._compiled_shapes = _shapes(batch)
        self.path = replace(self.path, compiled=True)
        self(batch, places)

    def forget_compiled(self) -> None:
        """Run as before :meth:`compile`."""
        self._compiled = {}
        self.path = replace(self.path, compiled=False)

    def _find_modules(self) -> list[nn.Module]:
        return [child for member in self.members for child in member.modules()]


def is_images(batch: Batch) -> bool:
    """Whether the inputs are one tensor of images, (N, C, H, W)."""
    return isinstance(batch.inputs, Tensor) and batch.inputs.dim() == 4


def dtype_of(network: nn.Module) -> torch.dtype:
    """The type that a network computes in outside autocast: of its first floating-point parameter, or float32."""
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)


def device_of(batch: Batch) -> torch.device:
    """Where a batch's inputs are; the CPU where there is no tensor in them."""
    inputs = batch.inputs
    tensors = [inputs] if isinstance(inputs, Tensor) else tensors_in(inputs)
    return tensors[0].device if tensors else torch.device("cpu")


def _shapes(batch: Batch) -> list[torch.Size]:
    inputs = batch.inputs
    return [inputs.shape] if isinstance(inputs, Tensor) else [tensor.shape for tensor in tensors_in(inputs)]


def _copy(teacher: nn.Module) -> nn.Module:
    """A deep copy that runs alone; a LightningModule's Trainer, with its data and loops, is left behind."""
    check_made(teacher, "teacher")
    memo: dict[int, Any] = {}
    for part in teacher.modules():
        if is_kind(part, LightningModule) and part._trainer is not None:
            memo[id(part._trainer)] = None
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:  # which a pruned layer makes anew when it runs
                memo[id(value)] = value.detach().clone()
    try:
        copied = copy.deepcopy(teacher, memo)
    except (RuntimeError, TypeError, AttributeError, NotImplementedError, pickle.PicklingError, copy.Error) as error:
        raise TeacherError(
            f"teacher={type(teacher).__name__} can't be copied: {error}. Give a new instance of it without what can't "
            "be copied, or its network alone, as in teacher=model.network with submodule='network'."
        ) from error
    detach(copied)
    if is_kind(copied, LightningModule) and not any(True for _ in copied.parameters()):
        made: Any = copied
        made.configure_model()  # makes the layers of modules that leave it to the Trainer
        detach(copied)
    return copied
