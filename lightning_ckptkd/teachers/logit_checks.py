"""What is asked of the teachers' logits: that they are finite, close to others, and which teachers' they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_ckptkd.errors import TeacherError


def check_finite(logits: Tensor, names: Sequence[str]) -> None:
    """Check that no logit is NaN or infinite; on a GPU, this waits for it.

    Args:
        logits: Shape (M, N, ...).
        names: Of the M teachers, for the message.

    Raises:
        TeacherError: If one is; names the teacher and the sample.
    """
    finite = logits.isfinite()
    if not bool(finite.all()):
        first = (~finite).nonzero()[0].tolist()
        teacher, sample, *place = first
        raise TeacherError(
            f"Teacher {names[teacher]} gives {float(logits[tuple(first)])} for {name_place(place)} of "
            f"sample {sample} (from 0) of the batch. Choose another teacher with choice=, or mend the sample."
        )


def name_place(place: Sequence[int]) -> str:
    """In words, a place in the logits of one sample, (K,) or of any other shape."""
    return f"class {place[0]}" if len(place) == 1 else f"output {list(place)}"


def is_close(found: Tensor, reference: Tensor, tolerance: float) -> bool:
    """Whether logits differ by no more than a share of the largest of them (or of 1, if that is larger)."""
    scale = max(1.0, float(reference.abs().max()))
    return float((found.float() - reference.float()).abs().max()) <= tolerance * scale


def pick(logits: Tensor, which: Sequence[int]) -> Tensor:
    """The logits of some teachers, of (M, N, ...); the very same where they are all, in order."""
    if list(which) == list(range(len(logits))):
        return logits
    return logits[torch.tensor(which, device=logits.device)]
