"""Which way of running the teachers is the fastest here: remembered, or found by timing them on a batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError, near_names
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.teachers.ensemble import TeacherEnsemble, TeacherPath, device_of
from lightning_ckptkd.teachers.processor import has_instructions
from lightning_ckptkd.teachers.remembered import KnownWay, WayMemory
from lightning_ckptkd.teachers.way_trial import WayTrial

ACCELERATIONS = ("auto", "compile", "none")
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Acceleration:
    """How teachers may run.

    Attributes:
        mode: ``auto`` times on the first batch what gives the plain loop's logits to 1e-5 (BatchNorm folded, channels
            last, compiled code where ten minutes of their time are ahead) and keeps the fastest; ``compile`` compiles
            in any case; ``none`` is the plain loop. What ``auto`` and ``compile`` find is remembered.
        bf16: Whether they may run in bfloat16 too, where the processor has instructions for it, that is faster, and
            gives their logits to 1e-2. How far the logits of the first batch differ is in the log.
        fp16: The same in float16, which CPUs mostly have no instructions for.

    Raises:
        ArgumentError: If the mode is unknown.
    """

    mode: str = "auto"
    bf16: bool = False
    fp16: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ACCELERATIONS:
            near = near_names(str(self.mode), ACCELERATIONS)
            raise ArgumentError(f"acceleration={self.mode!r} is unknown. Near names: {near}.")
        check_types(Acceleration, vars(self))

    @classmethod
    def of(cls, option: str | Acceleration) -> Acceleration:
        """An option's value, which may be the mode alone.

        Raises:
            ArgumentError: If the mode is unknown.
        """
        return option if isinstance(option, Acceleration) else cls(option)

    def halves(self, device: torch.device) -> list[str]:
        """Names of the half precisions that are allowed and that a device has instructions for."""
        return [name for name, dtype in HALVES.items() if getattr(self, name) and has_instructions(device, dtype)]


@dataclass(frozen=True)
class Calibration:
    """What was picked.

    Attributes:
        path: How the teachers run from now on.
        seconds: Time of the picked path for the batch; None where nothing was timed.
        logits: Those of the batch, (M, N, ...), in that path; None where it has to be run.
        origin: Where it is from, in words.
        difference: The largest and the mean difference of the logits from the plain loop's, in half precision.
        left_out: Half precisions that were allowed and are not tried, as the processor has no instructions for them.
    """

    path: TeacherPath
    seconds: float | None = None
    logits: Tensor | None = None
    origin: str = ""
    difference: tuple[float, float] | None = None
    left_out: tuple[str, ...] = ()

    def describe(self, ensemble: TeacherEnsemble) -> str:
        """One line for the log."""
        ways = [name.replace("_", " ") for name in self.path.names()]
        one = len(ensemble) == 1
        how = ", ".join(ways) or ("as it is" if one else "as they are")
        line = f"1 teacher runs {how}" if one else f"{len(ensemble)} teachers run {how}"
        if self.seconds is not None:
            line += f", {1000 * self.seconds:.0f} ms a batch"
        if self.origin:
            line += f"; {self.origin}"
        if self.difference is not None:
            largest, mean = self.difference
            line += f"; their logits differ from the plain loop's by {largest:.2g} at most, {mean:.2g} on average"
        if self.left_out:
            line += f"; not tried for lack of instructions: {', '.join(self.left_out)}"
        return line


_AUTO = Acceleration()


def calibrate(
    ensemble: TeacherEnsemble,
    batch: Batch,
    acceleration: Acceleration = _AUTO,
    *,
    batches: float = 0,
    known: TeacherPath | None = None,
    memory: WayMemory | None = None,
) -> Calibration:
    """Put an ensemble on the fastest path that gives what the plain loop gives.

    BatchNorm is folded wherever that is exact. Channels-last, compiled code and half precision are kept where they are
    faster. Where torch is told to be deterministic, or a path is known, nothing depends on a time; a known path that
    fails or gives other logits is left, with one line. On a batch whose logits are not all finite the plain loop is
    left: whoever trains on them has to refuse it.

    Args:
        ensemble: Is changed in place.
        batch: On the ensemble's device.
        acceleration: What may be tried.
        batches: How many are ahead; 0: nobody knows. What can't be earned back in these is not tried.
        known: The path that a run before took.
        memory: Where the fastest path is remembered; None: nowhere.
    """
    if acceleration.mode == "none":
        return Calibration(TeacherPath())
    start = time.perf_counter()
    halves = acceleration.halves(device_of(batch))
    trial = WayTrial(ensemble, batch, halves, batches)
    if not bool(trial.reference.isfinite().all()):  # nothing compares equal to NaN
        return Calibration(TeacherPath())
    timed = not torch.are_deterministic_algorithms_enabled()
    remembered = memory.read() if memory is not None and known is None and timed else None
    if known is None and not timed:
        known = TeacherPath(folded=True, **dict.fromkeys(halves[:1], True))
    wanted = known if remembered is None else remembered.path
    origin, spent = "found", ""
    if wanted is not None and trial.follow(_allowed(wanted, halves)):
        origin = "known, checked"
        if remembered is not None and memory is not None:
            origin, trial.seconds = f"remembered in {memory.file}, checked", remembered.seconds
    elif timed:
        known = remembered = None
        trial.find()
    else:
        trial.fold()
    if known is None:
        tried = None if remembered is None else remembered.compiled
        compiled = trial.compile(tried, always=acceleration.mode == "compile")
        way = KnownWay(replace(ensemble.path, compiled=False), trial.seconds, compiled)
        if memory is not None and trial.complete and way != remembered and memory.write(way) and remembered is None:
            spent = f"; remembered in {memory.file}"
    left_out = [name for name in HALVES if getattr(acceleration, name) and name not in halves]
    origin = f"{origin} in {time.perf_counter() - start:.2f} s{spent}"
    seconds = trial.seconds if trial.compiled_seconds is None else trial.compiled_seconds
    return Calibration(ensemble.path, seconds, trial.logits, origin, trial.difference(), tuple(left_out))


def _allowed(path: TeacherPath, halves: Sequence[str]) -> TeacherPath:
    """A path without the half precisions that are not allowed here, as in a run that is resumed with other options."""
    return replace(path, **{name: name in halves and getattr(path, name) for name in HALVES})
