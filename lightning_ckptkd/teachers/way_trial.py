"""Trying ways to run teachers on one batch: as few passes as tell, the last of which gives the batch's logits."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_ckptkd.tasks.batch import Batch
from lightning_ckptkd.teachers.ensemble import TeacherEnsemble, TeacherPath, device_of, is_images
from lightning_ckptkd.teachers.logit_checks import is_close
from lightning_ckptkd.teachers.remembered import structure

EXACT, ROUGH = 1e-5, 1e-2  # differences from the plain loop that are allowed, as a share of the largest logit
COMPILE_WORTH = 600.0  # seconds of teachers' time ahead from which on compiling is tried
FEW = 20  # batches ahead in which a trial can't be earned back
_CLEARLY = 0.97  # a way is taken where it needs at most this share of the time of the best before
_HOPELESS = 3.0  # times the best: a first pass of a new way is not slower than that for being the first
_CHEAP = 0.1  # seconds: a pass that is slower by less is made again, since something else may have held it up
_LOST = 1.15  # times the best: not tried a second time


class WayTrial:
    """One batch, on which ways are tried.

    Where all teachers are of one structure, one of them stands for all when a way is timed; all are compared.

    Args:
        ensemble: Is changed in place: it is left on the path that was found.
        batch: On its device.
        halves: Half precisions that may be tried, by their names in :class:`TeacherPath`.
        batches: How many are ahead; 0: nobody knows.

    Attributes:
        reference: The plain loop's logits, (M, N, ...).
        logits: Those of the path that the ensemble is on; None before there are any.
        seconds: Of a batch on that path without compiling; None where nothing was timed.
        compiled_seconds: Of a batch on compiled code, where that is kept.
        complete: Whether all ways were tried that may be.
    """

    def __init__(self, ensemble: TeacherEnsemble, batch: Batch, halves: Sequence[str], batches: float) -> None:
        self._ensemble, self._batch, self._halves, self._batches = ensemble, batch, halves, batches
        one = len({structure(member) for member in ensemble.members}) == 1
        self._places = [0] if one else list(range(len(ensemble)))
        self._rough = torch.is_autocast_enabled(device_of(batch).type)
        self.reference, self._pairs = ensemble.look(batch)
        self._last = self.reference
        self.logits: Tensor | None = None
        self.seconds: float | None = None
        self.compiled_seconds: float | None = None
        self.complete = True

    def follow(self, path: TeacherPath) -> bool:
        """Take a path that was the fastest before; tell whether it works, with one line where it does not."""
        ensemble, halves = self._ensemble, {"bf16": path.bf16, "fp16": path.fp16}
        rough = self._rough or any(halves.values())
        try:
            ensemble.take(channels_last=path.channels_last)
            logits = self._fold() if path.folded else ensemble(self._batch)
            if any(halves.values()) or path.compiled:
                ensemble.take(**halves)
                if path.compiled:
                    ensemble.compile(self._batch)
                logits = ensemble(self._batch)
            if is_close(logits, self.reference, ROUGH if rough else EXACT):
                self.logits = logits
                return True
            reason = "gives other logits"
        except Exception as error:  # of whatever kind; where the teachers can't run at all, the trial raises it again
            reason = f"fails ({type(error).__name__}: {str(error)[:200]})"
        ensemble.forget_compiled()
        ensemble.take(channels_last=False, bf16=False, fp16=False)
        rank_zero_info(f"The teachers' known way ({', '.join(path.names())}) {reason}, and is found anew.")
        return False

    def fold(self) -> None:
        """Fold BatchNorm wherever that is exact, which no time decides."""
        self.logits = self._fold()

    def find(self) -> None:
        """Keep the fastest way without compiling."""
        self.fold()
        if 0 < self._batches < FEW:
            self.complete = False
            return
        if is_images(self._batch):
            self._try(EXACT, channels_last=True)
        for half in self._halves:
            self._try(ROUGH, **{**dict.fromkeys(self._halves, False), half: True})

    def compile(self, before: bool | None, *, always: bool) -> bool | None:
        """Compile the teachers where that is faster and is earned back in the batches ahead.

        Args:
            before: Whether it was faster when it was last tried; None: it was not.
            always: Whatever it costs.

        Returns:
            Whether it is faster; None: nobody knows.
        """
        if not always and (before is False or self._batches < FEW or self._best() * self._batches <= COMPILE_WORTH):
            return before
        best = self._time() if before else self._best()  # what was remembered is of another hour of the machine
        ensemble, start = self._ensemble, time.perf_counter()
        try:
            ensemble.compile(self._batch, self._places)
            once, share = time.perf_counter() - start, len(self._places) / len(ensemble)
            self._time()
            own = self._time()
            if own > _CLEARLY * best:
                ensemble.forget_compiled()
                return False
            if not always and (best - own) * self._batches < once / share:
                ensemble.forget_compiled()
                return before
            ensemble.compile(self._batch)
            logits = ensemble(self._batch)
            if is_close(logits, self.reference, ROUGH if self._is_rough() else EXACT):
                self.logits, self.compiled_seconds = logits, own
                return True
        except Exception as error:  # of whatever kind: a network that can't be compiled is no reason to stop
            rank_zero_warn(
                f"The teachers can't be compiled and run without: {type(error).__name__}: {str(error)[:500]}"
            )
        ensemble.forget_compiled()
        return False

    def difference(self) -> tuple[float, float] | None:
        """The largest and the mean difference of the logits from the plain loop's; None where they are exact."""
        path = self._ensemble.path
        if self.logits is None or not (path.bf16 or path.fp16):
            return None
        difference = (self.logits.float() - self.reference.float()).abs()
        return float(difference.max()), float(difference.mean())

    def _try(self, tolerance: float, **change: bool) -> None:
        """Keep a change of the path where it is clearly faster and gives the reference's logits."""
        ensemble, best = self._ensemble, self._best()
        before = {name: getattr(ensemble.path, name) for name in change}
        try:
            ensemble.take(**change)
            own = self._time()
            cheap = _CHEAP * len(ensemble) / len(self._places)
            if own <= max(_HOPELESS * best, best + cheap):
                own = min(own, self._time())
            if own <= _LOST * best:  # by turns, so that nothing else that the machine does decides it
                ensemble.take(**before)
                best = min(best, self._time())
                ensemble.take(**change)
                own = min(own, self._time())
            if own <= _CLEARLY * best:
                logits = self._last if len(self._places) == len(ensemble) else ensemble(self._batch)
                if is_close(logits, self.reference, ROUGH if self._rough else tolerance):
                    self.logits, self.seconds = logits, own
                    return
        except Exception as error:  # such as a view() of what now lies otherwise; the way before is known to work
            rank_zero_info(f"The teachers can't run {' '.join(change)}: {type(error).__name__}: {str(error)[:200]}")
        ensemble.take(**before)
        self.seconds = best

    def _fold(self) -> Tensor:
        ensemble = self._ensemble
        if any(p.dtype in (torch.bfloat16, torch.float16) for member in ensemble.members for p in member.parameters()):
            return ensemble(self._batch)  # weights of three digits can't be multiplied with others and stay exact
        logits, exact = ensemble.fold(self._batch, EXACT, (self.reference, self._pairs))
        if not exact:
            rank_zero_warn(
                "BatchNorm can't be folded into the layers before it in some teachers, since their logits would "
                "change. They run as they are."
            )
        return logits

    def _best(self) -> float:
        if self.seconds is None:
            self.seconds = self._time()
        return self.seconds

    def _time(self) -> float:
        seconds, self._last = _run_timed(self._ensemble, self._batch, self._places)
        return seconds * len(self._ensemble) / len(self._places)

    def _is_rough(self) -> bool:
        return self._rough or self._ensemble.path.bf16 or self._ensemble.path.fp16


def _run_timed(teachers: TeacherEnsemble, batch: Batch, places: Sequence[int]) -> tuple[float, Tensor]:
    device = device_of(batch)
    _wait(device)
    start = time.perf_counter()
    logits = teachers(batch, places)
    _wait(device)
    return time.perf_counter() - start, logits


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
