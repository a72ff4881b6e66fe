"""Whether a GPU computes while it copies a snapshot to the host."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.harvest import Worker, quiet_trainer, work_data
from lightning_ckptkd import CheckpointHarvester
from lightning_ckptkd.snapshots.host_copy import HostCopy
from lightning_ckptkd.snapshots.layout import plan_layout

Spans = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Overlap:
    """Seconds of a copy, of other work on the GPU, of both when the work is issued right behind the copy.

    Attributes:
        copy: The copy alone, by the GPU's clock.
        work: The work alone.
        both: The two together.
        host: How long the thread that asks for the copy is held up.
    """

    copy: float
    work: float
    both: float
    host: float

    @property
    def hidden(self) -> float:
        """Part of the shorter of the two that the other one hides: 0 where they run in turn, 1 at best."""
        return (self.copy + self.work - self.both) / min(self.copy, self.work)

    def __str__(self) -> str:
        parts = ("copy", self.copy), ("work", self.work), ("both", self.both), ("host held up", self.host)
        return ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in parts)


def measure_events(network: nn.Module, device: torch.device, repeats: int = 5) -> Overlap:
    """The copy that the harvester makes, and matrix products that touch none of the weights, by CUDA's events.

    Args:
        network: Whose weights are copied.
        device: A GPU.
        repeats: The shortest of so many is taken.
    """
    weights = network.to(device).state_dict()
    copy = HostCopy(pinned=True)
    matrix = torch.randn(4096, 4096, device=device)
    host: list[float] = []

    def fill() -> None:
        copy.reserve(plan_layout(weights))
        start = time.perf_counter()
        copy.fill(weights)
        host.append(time.perf_counter() - start)

    def work(times: int) -> None:
        for _ in range(times):
            torch.mm(matrix, matrix)

    def seconds(*calls: Callable[[], None]) -> float:
        found: list[float] = []
        for _ in range(repeats + 1):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(device)
            start.record()
            for call in calls:
                call()
            stop.record()  # the training stream waits for the copy, so it is in
            torch.cuda.synchronize(device)
            found.append(start.elapsed_time(stop) / 1e3)
        return min(found[1:])

    copying = seconds(fill)
    held_up = min(host[1:])
    times = max(1, round(copying / seconds(lambda: work(20)) * 20))
    return Overlap(copying, seconds(lambda: work(times)), seconds(fill, lambda: work(times)), held_up)


def measure_profile(network: nn.Module, device: torch.device, folder: Path) -> tuple[float, float]:
    """A training of nine steps that is harvested after each third, under torch's profiler.

    Args:
        network: Is trained.
        device: A GPU.
        folder: For the harvest.

    Returns:
        The part of the copies to the host in which kernels run too, and how long the copies take together in seconds.
    """
    harvester = CheckpointHarvester(folder / "harvest", every_n_train_steps=3)
    trainer = quiet_trainer(device, folder, [harvester], max_epochs=1, max_steps=9)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        trainer.fit(Worker(network), work_data(device, 9))
        torch.cuda.synchronize(device)
    copies, kernels = [], []
    for event in profiled.events():
        if event.device_type != DeviceType.CUDA:
            continue
        span = event.time_range.start / 1e6, event.time_range.end / 1e6
        name = event.name.lower()
        if "memcpy dtoh" in name:
            copies.append(span)
        elif "memcpy" not in name and "memset" not in name:
            kernels.append(span)
    return share_covered(copies, kernels), sum(end - start for start, end in merged(copies))


def merged(spans: Spans) -> list[tuple[float, float]]:
    """The union of some spans, in order, none touching another.

    Args:
        spans: (start, end) of each.
    """
    found: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


def share_covered(spans: Spans, others: Spans) -> float:
    """The part of the union of some spans that others cover; 0 where there are none.

    Args:
        spans: (start, end) of each.
        others: Likewise.
    """
    mine, theirs = merged(spans), merged(others)
    total = sum(end - start for start, end in mine)
    common = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in mine for b in theirs)
    return common / total if total else 0.0
