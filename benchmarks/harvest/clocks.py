"""How long hooks, threads and the machine are busy."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override


@dataclass(frozen=True)
class Call:
    """One call of a callback's hook.

    Attributes:
        hook: Its name.
        epoch: The epoch whose end came last; -1 before the first.
        seconds: How long the training thread was in it.
        synchronised: The same until the GPU was idle again; None where it was not waited for.
    """

    hook: str
    epoch: int
    seconds: float
    synchronised: float | None


class HookClock:
    """Times all hooks that a callback has, from the outside.

    Args:
        callback: The callback; its hooks are wrapped in place.
        device: A GPU to wait for before and after each hook; None waits for none.
    """

    def __init__(self, callback: Callback, device: torch.device | None = None) -> None:
        self.calls: list[Call] = []
        self._device = device
        self._epoch = -1
        for hook in vars(Callback):
            if hook.startswith("on_") and getattr(type(callback), hook) is not getattr(Callback, hook):
                setattr(callback, hook, self._timed(hook, getattr(callback, hook)))

    def _timed(self, hook: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            self._epoch += hook == "on_train_epoch_end"
            if self._device is not None:
                torch.cuda.synchronize(self._device)
            start, synchronised = time.perf_counter(), None
            result = call(*args)
            seconds = time.perf_counter() - start
            if self._device is not None:
                torch.cuda.synchronize(self._device)
                synchronised = time.perf_counter() - start
            self.calls.append(Call(hook, self._epoch, seconds, synchronised))
            return result

        return timed

    def of_epoch(self, epoch: int) -> tuple[float, float | None]:
        """Seconds from the end of an epoch to the end of the next: in hooks, and with the GPU's."""
        calls = [call for call in self.calls if call.epoch == epoch]
        synchronised = [call.synchronised for call in calls if call.synchronised is not None]
        return sum(call.seconds for call in calls), sum(synchronised) if self._device is not None else None

    def by_hook(self) -> dict[str, float]:
        """Seconds in each hook."""
        hooks = sorted({call.hook for call in self.calls})
        return {hook: sum(call.seconds for call in self.calls if call.hook == hook) for hook in hooks}


class WriterClock(Callback):
    """CPU seconds of the harvester's thread; listed before the harvester, so that the thread still lives."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("ckptkd-recorder")]
        if not threads:
            raise RuntimeError("The harvester's thread is not found by its name; this benchmark is out of date.")
        self.seconds = sum(time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0)) for thread in threads)


class UsageClock:
    """Wall time, CPU time of this process and CPU time of all else on the machine, since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time(), machine_seconds()

    def read(self) -> tuple[float, float, float]:
        """The three, in seconds."""
        wall, process, machine = self._start
        own = time.process_time() - process
        return time.perf_counter() - wall, own, max(0.0, machine_seconds() - machine - own)

    def others_share(self) -> float:
        """The part of all cores that others took."""
        wall, _, others = self.read()
        return others / wall / len(os.sched_getaffinity(0))


def machine_seconds() -> float:
    """CPU time that everything on this machine has used, and that its host has taken from it."""
    with Path("/proc/stat").open(encoding="utf-8") as lines:
        user, nice, system, _idle, _waiting, *interrupts_and_stolen = map(int, lines.readline().split()[1:9])
    return (user + nice + system + sum(interrupts_and_stolen)) / os.sysconf("SC_CLK_TCK")
