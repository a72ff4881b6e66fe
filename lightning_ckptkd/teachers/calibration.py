"""Which way of running the teachers is the fastest here, found by timing them on a batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_ckptkd.checks import check_types
from lightning_ckptkd.errors import ArgumentError, near_names
from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.teachers.ensemble import TeacherEnsemble, TeacherPath, device_of, is_images
from lightning_ckptkd.teachers.logit_checks import is_close

ACCELERATIONS = ("auto", "compile", "none")
EXACT, ROUGH = 1e-5, 1e-2  # differences from the plain loop that are allowed, as a share of the largest logit
_COMPILE_WORTH = 600.0  # seconds of teachers' time ahead from which on compiling is tried
_CLEARLY = 0.97  # a way is taken where it needs at most this share of the time of the best before
_REPEATS = 3


@dataclass(frozen=True)
class Acceleration:
    """How teachers may run.

    Attributes:
        mode: ``auto`` times on the first batch what gives the plain loop's logits to 1e-5 (BatchNorm folded, channels
            last, compiled code where ten minutes of their time are ahead) and keeps the fastest; ``compile`` compiles
            in any case; ``none`` is the plain loop.
        bf16: Whether they may run in bfloat16 too, where that is faster and gives their logits to 1e-2.

    Raises:
        ArgumentError: If the mode is unknown.
    """

    mode: str = "auto"
    bf16: bool = False

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


@dataclass(frozen=True)
class Calibration:
    """What was picked.

    Attributes:
        path: How the teachers run from now on.
        plain_seconds: Time of the plain loop for the batch; None where nothing was timed.
        seconds: Time of the picked path for it; likewise.
    """

    path: TeacherPath
    plain_seconds: float | None = None
    seconds: float | None = None

    def describe(self, ensemble: TeacherEnsemble) -> str:
        """One line for the log."""
        ways = [name.replace("_", " ") for name, on in vars(self.path).items() if on]
        line = f"{len(ensemble)} teachers run {', '.join(ways) or 'as they are'}"
        if self.plain_seconds is None or self.seconds is None:
            return line
        share = self.seconds / self.plain_seconds
        milliseconds = f"{1000 * self.seconds:.0f} ms a batch against {1000 * self.plain_seconds:.0f}"
        return f"{line}: {share:.2f} of the plain loop's time ({milliseconds})"


_AUTO = Acceleration()


def calibrate(
    ensemble: TeacherEnsemble,
    batch: Batch,
    acceleration: Acceleration = _AUTO,
    *,
    batches: float = 0,
    known: TeacherPath | None = None,
) -> Calibration:
    """Put an ensemble on the fastest path that gives what the plain loop gives.

    BatchNorm is folded wherever that is exact. Channels-last, compiled code and bfloat16 are kept where they are
    faster. Where torch is told to be deterministic, or a path is known, nothing depends on a time. On a batch whose
    logits are not all finite the plain loop is left: whoever trains on them has to refuse it.

    Args:
        ensemble: Is changed in place.
        batch: On the ensemble's device.
        acceleration: What may be tried.
        batches: How many are ahead.
        known: The path that a run before took.
    """
    if acceleration.mode == "none":
        return Calibration(TeacherPath())
    reference = ensemble(batch)
    if not bool(reference.isfinite().all()):  # nothing compares equal to NaN
        return Calibration(TeacherPath())
    if known is not None or torch.are_deterministic_algorithms_enabled():
        wanted = known if known is not None else TeacherPath(folded=True, bf16=acceleration.bf16)
        _follow(ensemble, batch, wanted, reference)
        return Calibration(ensemble.path)
    plain = _seconds(ensemble, batch)
    _fold(ensemble, batch)
    best = _seconds(ensemble, batch)
    if is_images(batch):
        best = _try(ensemble, batch, best, reference, channels_last=True)
    if acceleration.mode == "compile" or best * batches > _COMPILE_WORTH:
        best = _compile(ensemble, batch, best, reference)
    if acceleration.bf16:
        best = _try(ensemble, batch, best, reference, bf16=True)
    return Calibration(ensemble.path, plain, best)


def _follow(ensemble: TeacherEnsemble, batch: Batch, path: TeacherPath, reference: Tensor) -> None:
    if path.folded:
        _fold(ensemble, batch)
    ensemble.take(channels_last=path.channels_last, bf16=path.bf16)
    if path.compiled:
        _compile(ensemble, batch, float("inf"), reference)


def _fold(ensemble: TeacherEnsemble, batch: Batch) -> None:
    if any(p.dtype in (torch.bfloat16, torch.float16) for member in ensemble.members for p in member.parameters()):
        return  # weights of three digits can't be multiplied with others and stay exact
    if not ensemble.fold(batch, EXACT):
        rank_zero_warn(
            "BatchNorm can't be folded into the layers before it in some teachers, since their logits would change. "
            "They run as they are."
        )


def _try(ensemble: TeacherEnsemble, batch: Batch, best: float, reference: Tensor, **change: bool) -> float:
    rough = change.get("bf16", False) or torch.is_autocast_enabled(device_of(batch).type)
    before = {name: getattr(ensemble.path, name) for name in change}
    ensemble.take(**change)
    seconds = _seconds(ensemble, batch)
    if seconds <= _CLEARLY * best and is_close(ensemble(batch), reference, ROUGH if rough else EXACT):
        return seconds
    ensemble.take(**before)
    return best


def _compile(ensemble: TeacherEnsemble, batch: Batch, best: float, reference: Tensor) -> float:
    try:
        ensemble.compile(batch)
        seconds = _seconds(ensemble, batch)
        if seconds <= _CLEARLY * best and is_close(ensemble(batch), reference, EXACT):
            return seconds
    except Exception as error:  # of whatever kind: a network that can't be compiled is no reason to stop
        rank_zero_warn(f"The teachers can't be compiled and run without: {type(error).__name__}: {str(error)[:500]}")
    ensemble.forget_compiled()
    return best


def _seconds(run: Callable[[Batch], Tensor], batch: Batch) -> float:
    """The shortest of some runs after a first one."""
    found = []
    device = device_of(batch)
    for _ in range(_REPEATS + 1):
        _wait(device)
        start = time.perf_counter()
        run(batch)
        _wait(device)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
