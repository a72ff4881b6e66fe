"""One snapshot in host memory, laid out as the safetensors file that it becomes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping

import numpy
import torch
from torch import Tensor

from lightning_ckptkd.errors import SnapshotError
from lightning_ckptkd.snapshots.dtensor import is_dtensor
from lightning_ckptkd.snapshots.folders import Part
from lightning_ckptkd.snapshots.layout import Layout

#: Storage types by the name that an option gives them.
STORED_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_sharded(weights: Mapping[str, Tensor]) -> bool:
    """Whether no rank has all of the weights."""
    return any(is_dtensor(value) for value in weights.values())


class HostCopy:
    """A copy of the weights in one piece of host memory, used again for one snapshot after another.

    Args:
        pinned: Whether the memory is page-locked, so that a GPU copies into it by itself.
    """

    def __init__(self, pinned: bool = False) -> None:
        self._pinned = pinned
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._copied: torch.cuda.Event | None = None
        self._sha256: str | None = None
        self._hashing = threading.Lock()
        self.layout = Layout()

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors, as views of the memory."""
        return {
            name: self._memory[entry.start : entry.stop].view(entry.dtype).view(entry.shape)
            for name, entry in self.layout.entries.items()
        }

    def reserve(self, layout: Layout) -> None:
        """Make room for weights of this layout; what was held before is given up."""
        if self._memory.numel() < layout.data_bytes:
            self._memory = torch.empty(layout.data_bytes, dtype=torch.uint8, pin_memory=self._pinned)
        self.layout = layout
        self._copied = None
        self._sha256 = None

    def touch(self) -> None:
        """Have the memory mapped before it is needed: the first use of fresh pages costs more than the copy."""
        self._memory.numpy().fill(0)  # not torch, see parts()

    def fill(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights of the reserved layout.

        Returns when they may be changed again, which for a GPU is before they have arrived. Sharded weights are
        gathered one tensor at a time: their other ranks must call :func:`join_gathering`.
        """
        targets = self.tensors()
        devices = {weights[name].device for name in targets if not weights[name].is_cpu}
        device = devices.pop() if len(devices) == 1 else None
        if device is None or device.type != "cuda" or not self._pinned or is_sharded(weights):
            _copy(weights, targets, wait=True)
        else:
            training, side = torch.cuda.current_stream(device), _side_stream(device)
            side.wait_stream(training)
            with torch.cuda.stream(side):
                _copy(weights, targets, wait=False)
                self._copied = side.record_event()
            # What comes next on the GPU (an optimiser step, an averaging callback) may change the weights in place.
            # It waits there for the copy; this thread does not.
            training.wait_event(self._copied)

    def wait_until_copied(self) -> None:
        """Wait for what a GPU still copies."""
        if self._copied is not None:
            self._copied.synchronize()

    def matches(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether weights equal this copy, bit for bit."""
        self.wait_until_copied()
        return all(
            torch.equal(_as_integers(mine), _as_integers(_on_cpu(weights[name], mine.dtype)))
            for name, mine in self.tensors().items()
        )

    def parts(self) -> list[Part]:
        """The safetensors file, in two pieces that follow each other.

        Runs beside training, and so without torch: one operation on a second thread gives that thread OpenMP workers
        of its own, and from then on all of training is slower (1.4 times, on two cores), since OpenMP takes the
        cores for overbooked.

        Raises:
            SnapshotError: If a tensor does not fit the type that it is stored as.
        """
        self.wait_until_copied()
        halves = {name: half.numpy() for name, half in self.tensors().items() if half.dtype == torch.float16}
        overflown = [name for name, half in halves.items() if not numpy.isfinite(half).all()]
        if overflown:
            raise SnapshotError(
                f"{overflown[0]!r} holds values beyond fp16 (or NaN), so the snapshot would be wrong. "
                "Use dtype='bf16', or leave dtype out."
            )
        data = self._memory[: self.layout.data_bytes].numpy().data
        return [self.layout.header(), data]

    def sha256(self) -> str:
        """SHA-256 of the file, in hexadecimal; reckoned once a copy, whichever thread asks first."""
        with self._hashing:
            if self._sha256 is None:
                sha256 = hashlib.sha256()
                for part in self.parts():
                    sha256.update(part)
                self._sha256 = sha256.hexdigest()
            return self._sha256


def join_gathering(weights: Mapping[str, Tensor], layout: Layout) -> None:
    """What the other ranks do while one fills its copy from sharded weights."""
    for name in layout.entries:
        _full(weights[name])


def _copy(weights: Mapping[str, Tensor], targets: Mapping[str, Tensor], *, wait: bool) -> None:
    for name, target in targets.items():
        value = _full(Tensor.detach(weights[name]))
        if value.is_cpu and value.dtype == target.dtype and not value.is_conj() and not value.is_neg():
            # One thread is enough for memory, and torch's threads stumble where data loaders keep the cores busy.
            numpy.copyto(_as_integers(target).numpy(), _as_integers(value).numpy())
        else:
            target.copy_(value, non_blocking=not wait)


def _on_cpu(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.detach().to(device="cpu", dtype=dtype).resolve_conj().resolve_neg()


def _full(value: Tensor) -> Tensor:
    return value.full_tensor() if is_dtensor(value) else value


_side_streams: dict[torch.device, torch.cuda.Stream] = {}


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _side_streams:
        _side_streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _side_streams[device]


def _as_integers(value: Tensor) -> Tensor:
    """The same memory as integers of the same width: NaN equals itself."""
    return value.view(_INTEGERS[value.itemsize])
